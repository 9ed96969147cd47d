"""The gateway as an ASGI application: routes, keys, and the life of one chat completion."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict
from functools import lru_cache
from itertools import count
from random import Random
from typing import Any

from . import answers
from .account import Account
from .answers import Answer
from .fate import Dice, Fate
from .requests import ChatRequest, CountPrompt, InvalidRequest, parse_chat, parse_prompt
from .settings import MockSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Clock = Callable[[], float]

ABORT = "kimi_async.abort"
"""ASGI extension: ``scope["extensions"][ABORT]["abort"]()`` closes the connection with no answer."""

_REMEMBERED_REQUESTS = 512
_BEARER = b"Bearer "
_PROMPT_END = 3  # tokens; the estimate endpoint leaves out the beginning of the answer


class _HungUp(Exception):
    """The client is gone."""


class _Dropped(Exception):
    """The client shall see its connection closed."""


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
        # The one thing drawn in the order of arrival: it is what makes that order.
        self._network = Random(settings.seed)
        self._bad_keys = frozenset(key.encode() for key in settings.bad_keys)
        self._request_ids = count(1)
        self._counts: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._routes = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("GET", "/v1/models"): self._models,
            ("GET", "/v1/users/me/balance"): self._balance,
            ("POST", "/v1/tokenizers/estimate-token-count"): self._estimate,
            ("GET", "/v1/stats"): self._stats,
            ("GET", "/stats"): self._stats,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI 3 has it."""
        try:
            answer = await self._answer(scope, receive)
        except _HungUp:
            self._counts["hung_up"] += 1
            return
        except _Dropped:
            await _close(scope, receive)
            return
        self._statuses[str(answer.status)] += 1
        headers = answer.signed(b"%032x" % next(self._request_ids))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    def stats(self) -> dict[str, object]:
        """Everything counted so far: the account's statistics, and what was served."""
        return {
            **asdict(self.account.stats()),
            "prompt_tokens": self._counts["prompt_tokens"],
            "completion_tokens": self._counts["completion_tokens"],
            "hung_up": self._counts["hung_up"],
            "answers": dict(self._statuses),
            "faults": dict(self._faults),
            "policy": self.settings.policy,
            "limits": asdict(self.settings.limits),
        }

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            return answers.error(404, "resource_not_found_error", "The requested resource was not found")
        if route != self._stats and (denied := self._denied(scope)) is not None:
            return denied
        try:
            return await route(receive)
        except InvalidRequest as exc:
            return answers.error(exc.status, exc.kind, str(exc))

    def _denied(self, scope: Scope) -> Answer | None:
        for name, value in scope["headers"]:
            if name == b"authorization":
                if not value.startswith(_BEARER) or len(value) == len(_BEARER):
                    break
                if value[len(_BEARER) :] in self._bad_keys:
                    return answers.error(401, "invalid_authentication_error", "Invalid Authentication")
                return None
        return answers.error(401, "incorrect_api_key_error", "Incorrect API key provided")

    async def _chat(self, receive: Receive) -> Answer:
        body = await _read(receive)
        if self.settings.network_jitter:
            await asyncio.sleep(self._network.random() * self.settings.network_jitter)
        request = self._parse(body)
        refusal = self.account.admit(self._clock(), request.tokens)
        if refusal is not None:
            return answers.refused(refusal)
        try:
            fate = self._dice.roll(body, max_tokens=request.max_tokens, n=request.n)
            return await self._generate(request, fate, receive)
        finally:
            # The slot is free before the first byte of the answer is written, because a client may send its next
            # request the moment it has the last one. Nothing is awaited in between that could let another
            # request in, so the peak of requests in flight is still exact.
            self.account.release()

    def _parse_chat(self, body: bytes) -> ChatRequest:
        return parse_chat(body, self._count_prompt, serve_retired=self.settings.serve_retired)

    async def _generate(self, request: ChatRequest, fate: Fate, receive: Receive) -> Answer:
        if fate.fault is not None:
            self._faults[fate.fault] += 1
        if fate.fault == "overload":
            return answers.OVERLOADED
        if not await _still_there(receive, fate.latency):
            raise _HungUp
        if fate.fault == "drop":
            raise _Dropped
        if fate.fault == "error_5xx":
            return answers.broken(fate.throw)
        self._counts["prompt_tokens"] += request.prompt_tokens
        self._counts["completion_tokens"] += sum(fate.completion_tokens)
        answer = answers.completion(request, fate)
        return answers.garbled(answer, fate.throw) if fate.fault == "garble" else answer

    async def _models(self, receive: Receive) -> Answer:
        return answers.model_list()

    async def _balance(self, receive: Receive) -> Answer:
        return answers.BALANCE

    async def _estimate(self, receive: Receive) -> Answer:
        parsed = parse_prompt(await _read(receive))
        tokens = self._count_prompt(parsed["messages"], None, parsed["model"]) - _PROMPT_END
        return answers.json_answer({"data": {"total_tokens": tokens}})

    async def _stats(self, receive: Receive) -> Answer:
        return answers.json_answer(self.stats())


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _HungUp
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _still_there(receive: Receive, seconds: float) -> bool:
    """Wait; whether the client did so too. A timeout on ``receive`` watches it without a second task."""
    if seconds <= 0:
        return True
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return True
    return False


async def _close(scope: Scope, receive: Receive) -> None:
    """Close the connection. Merely returning without an answer would make the server send a 500 of its own."""
    extension = scope.get("extensions", {}).get(ABORT)
    if extension is None:
        raise ConnectionResetError("the mock gateway dropped the connection")
    extension["abort"]()
    # The server learns of it a turn of the loop later, and then knows that no answer is owed.
    while (await receive())["type"] != "http.disconnect":
        pass
