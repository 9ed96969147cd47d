"""The gateway as an ASGI application: routes, keys, and the life of one chat completion."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from itertools import count, islice
from random import Random

from . import answers, stream
from .account import Account
from .answers import Answer
from .batches import Batches
from .exchange import Dropped, Exchange, HungUp, Receive, Scope, Send, Watch
from .fate import Dice, Fate
from .files import Files, Route
from .replies import Reply
from .requests import ChatRequest, CountPrompt, parse_chat, parse_prompt
from .rules import InvalidRequest
from .settings import MockSettings
from .stream import DONE, ChunkStream

Clock = Callable[[], float]

_REMEMBERED_REQUESTS = 512
_BEARER = b"Bearer "
_ITEM = 3  # the segment of a path that is an id
_PROMPT_END = 3  # tokens; the estimate endpoint leaves out the beginning of the answer


class Gateway:
    """An ASGI application that behaves like ``api.moonshot.cn`` for one account.

    Args:
        settings: limits, speed and faults.
        count_prompt: counts the tokens of a prompt; blocks the loop while it does.
        clock: seconds; default the running loop's. A server on uvloop passes ``time.monotonic``, for uvloop's
            clock stands still during a turn of the loop and knows only whole milliseconds.
    """

    def __init__(self, settings: MockSettings, count_prompt: CountPrompt, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.account = Account(settings)
        self._count_prompt = count_prompt
        # Counting costs as much as all the rest; a refused request comes again, and load tests repeat theirs.
        self._parse = lru_cache(maxsize=_REMEMBERED_REQUESTS)(self._parse_chat)
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._dice = Dice(settings)
        self._batch_dice = Dice(settings)
        # The one thing drawn in the order of arrival: it is what makes that order.
        self._network = Random(settings.seed)
        self._bad_keys = frozenset(key.encode() for key in settings.bad_keys)
        self._request_ids = count(1)
        self._counts: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._first_admitted: float | None = None
        self.files = Files()
        self._routes: dict[tuple[str, str], Route] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("GET", "/v1/models"): self._models,
            ("GET", "/v1/users/me/balance"): self._balance,
            ("POST", "/v1/tokenizers/estimate-token-count"): self._estimate,
            ("GET", "/v1/stats"): self._stats,
            ("GET", "/stats"): self._stats,
            **self.files.routes(),
            **Batches(settings.batch_seconds, self.files, self._complete_in_batch, self._clock).routes(),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI 3 has it."""
        exchange = Exchange(scope, receive, send)
        try:
            answer = await self._answer(exchange)
            if isinstance(answer, Answer):
                self._statuses[str(answer.status)] += 1
                await exchange.start(answer.status, answer.signed(self._next_id()))
                await exchange.end(answer.body, answer.cut)
            else:
                await exchange.end(answer)
        except HungUp:
            self._counts["hung_up"] += 1
        except Dropped:
            await exchange.close()

    def stats(self) -> dict[str, object]:
        """Everything counted so far: the account's statistics, and what was served.

        ``repeated`` are requests whose body was admitted before, ``billed_again`` those of them that brought a
        second answer to it, which costs money; of more than 100,000 bodies the oldest are forgotten. ``faults`` are
        those that a client met before it hung up; ``slow`` is not among them. ``prompt_tokens`` and
        ``completion_tokens`` are what is billed: those of a stream all before its first chunk.
        """
        return {
            **asdict(self.account.stats()),
            "prompt_tokens": self._counts["prompt_tokens"],
            "completion_tokens": self._counts["completion_tokens"],
            "repeated": self._counts["repeated"],
            "billed_again": self._counts["billed_again"],
            "hung_up": self._counts["hung_up"],
            "streams": self._counts["streams"],
            "chunks": self._counts["chunks"],
            "answers": dict(self._statuses),
            "faults": dict(self._faults),
            "policy": self.settings.policy,
            "limits": asdict(self.settings.limits),
        }

    async def _answer(self, exchange: Exchange) -> Answer | bytes:
        route = self._route(exchange)
        if route is None:
            return answers.error(404, "resource_not_found_error", "The requested resource was not found")
        if route != self._stats and (denied := self._denied(exchange.scope)) is not None:
            return denied
        try:
            return await route(exchange)
        except InvalidRequest as exc:
            return answers.invalid(exc)

    def _route(self, exchange: Exchange) -> Route | None:
        method, path = exchange.scope["method"], exchange.scope["path"]
        found = self._routes.get((method, path))
        if found is None and len(parts := path.split("/")) > _ITEM:
            exchange.item = parts[_ITEM]
            found = self._routes.get((method, "/".join((*parts[:_ITEM], "{id}", *parts[_ITEM + 1 :]))))
        return found

    def _denied(self, scope: Scope) -> Answer | None:
        for name, value in scope["headers"]:
            if name == b"authorization":
                if not value.startswith(_BEARER) or len(value) == len(_BEARER):
                    break
                if value[len(_BEARER) :] in self._bad_keys:
                    return answers.error(401, "invalid_authentication_error", "Invalid Authentication")
                return None
        return answers.error(401, "incorrect_api_key_error", "Incorrect API key provided")

    async def _chat(self, exchange: Exchange) -> Answer | bytes:
        body = await exchange.read()
        if self.settings.network_jitter:
            await asyncio.sleep(self._network.random() * self.settings.network_jitter)
        request = self._parse(body)
        self.files.check(request.file_ids)
        refusal = self.account.admit(self._clock(), request.tokens)
        if refusal is not None:
            return answers.refused(refusal)
        try:
            fate = self._dice.roll(body, max_tokens=request.max_tokens, n=request.n)
            return await self._generate(request, fate, exchange)
        finally:
            # The slot is free before the first byte of the answer is written, or the [DONE] of a stream, because a
            # client may send its next request the moment it has the last one. Nothing is awaited in between that
            # could let another request in, so the peak of requests in flight is still exact.
            self.account.release()

    def _parse_chat(self, body: bytes) -> ChatRequest:
        return parse_chat(body, self._count_prompt, serve_retired=self.settings.serve_retired)

    async def _generate(self, request: ChatRequest, fate: Fate, exchange: Exchange) -> Answer | bytes:
        self._counts["repeated"] += fate.repeated
        if self._overloaded() or fate.fault == "overload":
            self._faults["overload"] += 1
            return answers.OVERLOADED
        replies = _replies(request, fate)
        generation = self._generation_seconds(replies)
        await exchange.wait(fate.latency if request.stream else fate.latency + generation)
        in_the_middle = request.stream and fate.fault in ("garble", "cut")
        if fate.fault is not None and not in_the_middle:
            self._faults[fate.fault] += 1
        if fate.fault == "drop":
            raise Dropped
        if fate.fault == "error_5xx":
            return answers.broken(fate.throw)
        usage = answers.usage(request, fate, replies)
        self._counts["prompt_tokens"] += usage.prompt_tokens
        self._counts["completion_tokens"] += usage.completion_tokens
        self._counts["billed_again"] += fate.history.billed > 0
        fate.history.billed += 1
        if request.stream:
            chunks = ChunkStream(request, fate.identity, replies, usage, self.settings.tokens_per_chunk)
            await self._stream(chunks, fate, generation, exchange)
            return DONE
        answer = answers.json_answer(answers.completion(request, fate, replies, usage))
        if fate.fault == "garble":
            return answers.garbled(answer, fate.throw)
        return answers.truncated(answer, fate.throw) if fate.fault == "cut" else answer

    def _overloaded(self) -> bool:
        if not self.settings.faults.overload_lasts:
            return False
        now = self._clock()
        if self._first_admitted is None:
            self._first_admitted = now
        return self.settings.faults.overloaded(now - self._first_admitted)

    def _generation_seconds(self, replies: tuple[Reply, ...]) -> float:
        speed = self.settings.tokens_per_second
        return 0.0 if speed is None else max(reply.tokens for reply in replies) / speed

    async def _stream(self, chunks: ChunkStream, fate: Fate, seconds: float, exchange: Exchange) -> None:
        """Send all but ``[DONE]``, spread over the time that generation takes."""
        self._statuses["200"] += 1
        self._counts["streams"] += 1
        await exchange.start(200, answers.signed(stream.HEADERS, self._next_id()))
        events: Iterable[bytes] = self._garbled(chunks, fate.throw) if fate.fault == "garble" else chunks
        if fate.fault == "cut":
            events = islice(chunks, chunks.middle(fate.throw))
        with Watch(exchange.receive) as watch:
            await self._pour(events, seconds / len(chunks), exchange, watch)
        if fate.fault == "cut":
            self._faults["cut"] += 1
            raise Dropped

    def _garbled(self, chunks: ChunkStream, throw: float) -> Iterator[bytes]:
        """The same with one chunk in the middle that is no JSON, by a throw in [0, 1)."""
        wrong = chunks.middle(throw)
        for number, event in enumerate(chunks):
            if number == wrong:
                self._faults["garble"] += 1
            yield stream.GARBLED if number == wrong else event

    async def _pour(self, events: Iterable[bytes], step: float, exchange: Exchange, watch: Watch) -> None:
        due = self._clock()
        for event in events:
            await exchange.send({"type": "http.response.body", "body": event, "more_body": True})
            self._counts["chunks"] += 1
            due += step
            await watch.pause(due - self._clock() if step else 0)

    def _complete_in_batch(self, body: bytes) -> tuple[int, dict[str, object]]:
        try:
            request = self._parse(body)
            self.files.check(request.file_ids)
        except InvalidRequest as exc:
            return exc.status, answers.envelope(exc.kind, str(exc))
        fate = self._batch_dice.roll(body, max_tokens=request.max_tokens, n=request.n)
        replies = _replies(request, fate)
        return 200, answers.completion(request, fate, replies, answers.usage(request, fate, replies))

    def _next_id(self) -> bytes:
        return b"%032x" % next(self._request_ids)

    async def _models(self, exchange: Exchange) -> Answer:
        return answers.model_list()

    async def _balance(self, exchange: Exchange) -> Answer:
        return answers.BALANCE

    async def _estimate(self, exchange: Exchange) -> Answer:
        parsed = parse_prompt(await exchange.read())
        tokens = self._count_prompt(parsed["messages"], None, parsed["model"]) - _PROMPT_END
        return answers.json_answer({"data": {"total_tokens": tokens}})

    async def _stats(self, exchange: Exchange) -> Answer:
        return answers.json_answer(self.stats())


def _replies(request: ChatRequest, fate: Fate) -> tuple[Reply, ...]:
    return tuple([request.script.reply(drawn, request.max_tokens) for drawn in fate.completion_tokens])
