"""The client: composes the parts and owns nothing else."""

import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

import httpx
from pydantic_core import PydanticSerializationError, to_json

from .chat import BatchRequest, BatchResult, ChatCompletion, MessageInput, as_messages, plain
from .errors import ConfigurationError, KimiError
from .events import EventHook, log_event
from .exchange import TIMEOUT, Exchange, timeouts
from .fanout import as_completed, each
from .ledger import Ledger
from .limiter import RateLimiter
from .limits import Cost, RateLimits
from .pace import PaceMode
from .retry import MAX_ATTEMPTS
from .tokens import TokenCounter
from .transport import RateLimitTransport

BASE_URL = "https://api.moonshot.cn/v1"

UNBOUNDED_IN_FLIGHT = 128
"""Requests of a batch under way at once where the account has no concurrency limit."""


class AsyncKimi:
    """An async client for Kimi's chat completions that never exceeds the account's limits.

    ::

        async with AsyncKimi(model="kimi-k2.6", limits=RateLimits.tier(1)) as kimi:
            print(await kimi.ask("用一句话介绍月亮"))

    Args:
        api_key: by default ``MOONSHOT_API_KEY`` or ``KIMI_API_KEY`` of the environment.
        base_url: by default ``MOONSHOT_BASE_URL`` or ``KIMI_BASE_URL``, else ``https://api.moonshot.cn/v1``.
        model: for calls that name none.
        limits: the account's; by default tier 0, the least that any account has.
        ledger: where reservations are recorded; by default the memory of this process.
        pace: ``"even"`` spaces requests at ``minute / rpm``, for a gateway that refuses bursts.
        max_attempts: of one request, where failures pass; refusals for a budget do not count.
        timeout: seconds for each read of an answer, or an ``httpx.Timeout``.
        max_wait: seconds that a request may wait, in line and between attempts together; None for no bound.
        transport: what sends the requests, under the limiter; by default one connection for each slot.
        on_event: receives what happens inside; by default it is logged.

    Raises:
        ConfigurationError: no API key, or one that no header can carry; a base URL that is none.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        model: str | None = None,
        limits: RateLimits | None = None,
        ledger: Ledger | None = None,
        pace: PaceMode = "smooth",
        max_attempts: int = MAX_ATTEMPTS,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        on_event: EventHook = log_event,
    ) -> None:
        self.base_url = _base_url(base_url or _environment("MOONSHOT_BASE_URL", "KIMI_BASE_URL") or BASE_URL)
        self.model = model
        self.max_wait = max_wait
        self.counter = TokenCounter(on_event=on_event)
        self.limiter = RateLimiter(limits or RateLimits.tier(0), ledger=ledger, pace=pace, on_event=on_event)
        self.chat = Chat(self)
        self._transport = RateLimitTransport(self.limiter, transport, counter=self.counter)
        self._exchange = Exchange(
            self._transport,
            url=f"{self.base_url}/chat/completions",
            api_key=api_key or _environment("MOONSHOT_API_KEY", "KIMI_API_KEY"),
            timeout=TIMEOUT if timeout is None else timeouts(timeout),
            max_attempts=max_attempts,
            on_event=on_event,
            sleep=self.limiter.sleep,
        )

    def __repr__(self) -> str:
        return f"<AsyncKimi {self.base_url}, model {self.model}, {self.limiter!r}>"

    async def __aenter__(self) -> Self:
        await self.counter.load()  # half a second, better before the traffic than in it
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def ask(
        self,
        prompt: str,
        *,
        system: str | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> str:
        """One prompt, the text of its answer. Raises what ``chat.completions.create`` raises."""
        completion = await self.chat.completions.create(
            messages=as_messages(prompt, system), model=model, max_tokens=max_tokens, temperature=temperature
        )
        return completion.text

    async def map(
        self,
        prompts: Iterable[str] | AsyncIterable[str],
        *,
        system: str | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> list[str]:
        """The texts of the answers to many prompts, in the order of the prompts.

        Raises:
            KimiError: the error of the first prompt that failed, after all others have been answered. Use
                ``batch`` to keep the answers beside it.
        """
        if isinstance(prompts, str):
            raise ConfigurationError("prompts is a list of prompts; for a single one use kimi.ask(prompt)")
        options = _given(model=model, max_tokens=max_tokens, temperature=temperature)

        async def requests() -> AsyncGenerator[BatchRequest, None]:
            number = 0
            async for prompt in each(prompts):
                body = {"messages": as_messages(prompt, system), **options}
                yield BatchRequest(custom_id=str(number), body=body)
                number += 1

        results = {int(result.custom_id): result async for result in self.batch(requests())}
        return [results[number].text for number in range(len(results))]

    async def batch(
        self, requests: Iterable[BatchRequest] | AsyncIterable[BatchRequest], *, in_flight: int | None = None
    ) -> AsyncGenerator[BatchResult, None]:
        """Answer many requests; results come as they complete, each with its answer or its error.

        Requests are taken as there is room for them, so there may be more than memory holds. An error that ends the
        whole batch, such as a wrong key, is every later request's error too: stop at the first if you like.

        Args:
            requests: their ``body`` may leave out the model if the client has one.
            in_flight: how many to work on at once; by default the account's slots and a few more, so that there is
                always a next one in line.
        """
        if in_flight is not None and in_flight < 1:
            raise ConfigurationError(f"in_flight={in_flight}: must be at least 1")
        slots = self.limiter.limits.concurrency
        ready = UNBOUNDED_IN_FLIGHT if slots is None else slots + 2 + slots // 8
        results = as_completed(requests, self._answer, in_flight or ready)
        try:
            async for result in results:
                yield result
        finally:
            await results.aclose()

    async def _answer(self, request: BatchRequest) -> BatchResult:
        try:
            completion = await self.complete(request.body)
        except KimiError as exc:
            return BatchResult(custom_id=request.custom_id, error=exc)
        return BatchResult(custom_id=request.custom_id, completion=completion)

    async def complete(
        self,
        body: Mapping[str, object],
        *,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
    ) -> ChatCompletion:
        """Send a request as it is, a dict as on the wire; ``create`` is the typed way.

        ``model`` and ``max_tokens`` are made explicit where they are missing.

        Raises:
            KimiError: see ``kimi_async.errors``.
        """
        body = {"model": self.model, **body} if self.model else body
        if not isinstance(body.get("model"), str):
            raise ConfigurationError("no model: pass model=, or give the client one")
        if body.get("stream"):
            raise ConfigurationError("stream=true: this client reads whole answers; leave stream out")
        messages = body.get("messages")
        if isinstance(messages, list | tuple):  # what Kimi answered is counted as the dict it goes out as
            body = {**body, "messages": [plain(message) for message in messages]}
        cost = await self.counter.cost(body)
        if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
            body = {**body, "max_tokens": cost.max_tokens}
        try:
            content = to_json(body)
        except PydanticSerializationError as exc:
            raise ConfigurationError(f"the request cannot be written as JSON: {exc}") from exc
        completion = await self._exchange.complete(
            content,
            cost=cost,
            model=str(body["model"]),
            timeout=timeout,
            max_wait=self.max_wait if max_wait is None else max_wait,
        )
        self._learn(body, cost, completion)
        return completion

    def _learn(self, body: Mapping[str, object], cost: Cost, completion: ChatCompletion) -> None:
        billed = 0 if completion.usage is None else completion.usage.prompt_tokens
        messages, tools = body.get("messages"), body.get("tools")
        if billed > cost.prompt_tokens and isinstance(messages, list):
            model = str(body["model"])
            counted = self.counter.prompt_tokens(messages, tools if isinstance(tools, list) else None, model=model)
            self.counter.learn(model, counted=counted, billed=billed)


class Chat:
    """``kimi.chat``, as the openai SDK has it."""

    def __init__(self, kimi: AsyncKimi) -> None:
        self.completions = Completions(kimi)


class Completions:
    """``kimi.chat.completions``."""

    def __init__(self, kimi: AsyncKimi) -> None:
        self._kimi = kimi

    async def create(
        self,
        *,
        messages: Sequence[MessageInput],
        model: str | None = None,
        max_tokens: int | None = None,
        max_completion_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        n: int | None = None,
        stop: str | Sequence[str] | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        response_format: Mapping[str, object] | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_choice: str | Mapping[str, object] | None = None,
        extra_body: Mapping[str, object] | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
    ) -> ChatCompletion:
        """Ask for a chat completion; the same call as the openai SDK's.

        Args:
            messages: the conversation; dicts, or messages that Kimi answered.
            model: by default the client's.
            max_tokens: tokens the answer may have. The gateway charges all of them at once, whatever is generated.
                Left out, the model's own default is charged and sent.
            max_completion_tokens: the newer name of the same.
            temperature: as Kimi's reference has it, like all parameters up to ``tool_choice``.
            top_p: see there.
            n: answers to generate, 1 to 5; each is charged ``max_tokens``.
            stop: up to five texts that end the answer.
            presence_penalty: see there.
            frequency_penalty: see there.
            response_format: ``{"type": "json_object"}`` and the like.
            tools: functions the model may call.
            tool_choice: which of them it must.
            extra_body: further fields of the request, sent as they are.
            timeout: seconds for each read of the answer, or an ``httpx.Timeout``.
            max_wait: seconds it may wait, in line and between attempts together.

        Raises:
            RequestTooLarge: no wait can make it fit the budgets or the model's context.
            WaitTooLong: it would wait longer than ``max_wait``.
            DailyBudgetExhausted: the tokens of the day are spent.
            APIStatusError: Kimi's answer is an error; its subclasses say which.
            APIConnectionError: no answer came, after ``max_attempts``.
            InvalidResponseError: what came is no chat completion, after ``max_attempts``.
            ConfigurationError: an argument that cannot work.
        """
        if isinstance(messages, str):
            raise ConfigurationError("messages is a list of messages; for a single prompt use kimi.ask(prompt)")
        body = _given(
            model=model,
            messages=list(messages),
            max_tokens=max_tokens,
            max_completion_tokens=max_completion_tokens,
            temperature=temperature,
            top_p=top_p,
            n=n,
            stop=stop,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            response_format=response_format,
            tools=tools,
            tool_choice=tool_choice,
        )
        return await self._kimi.complete({**body, **(extra_body or {})}, timeout=timeout, max_wait=max_wait)


def _given(**options: object) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}


def _environment(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _base_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise ConfigurationError(f"base_url={url!r}: {exc}") from exc
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigurationError(f"base_url={url!r}: must begin with https:// or http:// and a host, like {BASE_URL}")
    return url.rstrip("/")
