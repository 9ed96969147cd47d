"""The client: composes the parts and owns nothing else."""

import os
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Self, Unpack

import httpx

from .batches import Batches
from .chat import ChatCompletion, MessageInput, as_messages
from .completions import Chat, Completions
from .conversation import Conversation
from .endpoints import Models, Tokenizers, Users
from .errors import ConfigurationError, KimiError
from .events import EventHook, log_event
from .exchange import TIMEOUT, Exchange, timeouts
from .fanout import as_completed, each
from .files import Files
from .jsonl import BatchRequest, BatchResult
from .ledger import Ledger
from .limiter import RateLimiter
from .limits import RateLimits
from .pace import PaceMode
from .parameters import ChatOptions, ToolOptions, TurnOptions, request_body
from .retry import MAX_ATTEMPTS
from .tokens import TokenCounter
from .tools import MAX_ROUNDS, Tool, ToolAnswer, Toolbox, converse, for_round
from .transport import RateLimitTransport
from .urls import checked, without_password

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

    ==================== =========================================================================
    ``chat.completions`` ``create``, ``stream`` and ``parse``, as in the openai SDK
    ``models``           ``list``: what there is, with context lengths
    ``users``            ``balance``: money
    ``tokenizers``       ``estimate``: Kimi's own count of a prompt
    ``files``            uploads: to extract text from, to look at, to run as a batch
    ``batches``          Kimi's own batches: cheaper, done within hours or days on its side
    ``limiter``          the account's `RateLimiter`
    ==================== =========================================================================

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
        self.base_url = base_url_of(base_url)
        self.model = model
        self.counter = TokenCounter(on_event=on_event)
        self.limiter = RateLimiter(limits or RateLimits.tier(0), ledger=ledger, pace=pace, on_event=on_event)
        self._transport = RateLimitTransport(self.limiter, transport, counter=self.counter)
        exchange = Exchange(
            self._transport,
            base_url=self.base_url,
            api_key=api_key or _environment("MOONSHOT_API_KEY", "KIMI_API_KEY"),
            timeout=TIMEOUT if timeout is None else timeouts(timeout),
            max_attempts=max_attempts,
            on_event=on_event,
            sleep=self.limiter.sleep,
        )
        self.chat = Chat(Completions(exchange, self.counter, model=model, max_wait=max_wait))
        self.models = Models(exchange)
        self.users = Users(exchange)
        self.tokenizers = Tokenizers(exchange, model=model)
        self.files = Files(exchange)
        self.batches = Batches(exchange, self.files, model=model)

    def __repr__(self) -> str:
        return f"<AsyncKimi {without_password(self.base_url)}, model {self.model}, {self.limiter!r}>"

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

    close = aclose  # the openai SDK's name

    async def ask(
        self,
        prompt: str,
        *,
        system: str | None = None,
        model: str | None = None,
        extra_body: Mapping[str, object] | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> str:
        """One prompt, the text of its answer. Takes and raises what ``chat.completions.create`` does."""
        body = request_body({"model": model, "messages": as_messages(prompt, system)}, options, function="ask")
        completion = await self.chat.completions.send(body, extra_body=extra_body, timeout=timeout, max_wait=max_wait)
        return completion.text

    async def map(
        self,
        prompts: Iterable[str] | AsyncIterable[str],
        *,
        system: str | None = None,
        model: str | None = None,
        extra_body: Mapping[str, object] | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[str]:
        """The texts of the answers to many prompts, in the order of the prompts; options as for ``ask``.

        Raises:
            KimiError: the error of the first prompt that failed, after all others have been answered. Use
                ``batch`` to keep the answers beside it.
        """
        if isinstance(prompts, str):
            raise ConfigurationError("prompts is a list of prompts; for a single one use kimi.ask(prompt)")
        fields = request_body({"model": model}, options, function="map")

        async def requests() -> AsyncGenerator[BatchRequest, None]:
            number = 0
            async for prompt in each(prompts):
                yield BatchRequest(custom_id=str(number), body={**fields, "messages": as_messages(prompt, system)})
                number += 1

        send = partial(self.chat.completions.send, extra_body=extra_body, timeout=timeout, max_wait=max_wait)
        results = {int(result.custom_id): result async for result in self._answers(requests(), send)}
        return [results[number].text for number in range(len(results))]

    async def run_tools(
        self,
        messages: str | Sequence[MessageInput],
        *,
        tools: Sequence[Tool],
        max_rounds: int = MAX_ROUNDS,
        model: str | None = None,
        extra_body: Mapping[str, object] | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
        **options: Unpack[ToolOptions],
    ) -> ToolAnswer:
        """Ask, run the tools that the model calls, send back what they say, until it answers.

        ::

            async def weather(city: str) -> str:
                ...

            answer = await kimi.run_tools("Is it raining in Oslo?", tools=[weather])

        All calls of one turn run at the same time, functions that are not async in threads. What goes wrong in a
        tool goes to the model, which may do better.

        Args:
            messages: a prompt, or a conversation; it is left as it is.
            tools: Python functions with type hints and docstrings; see `Toolbox`.
            max_rounds: turns with calls, each a request of its own, after which to give up. A ``tool_choice`` that
                forces a call holds for the first.
            model: like everything below, as for ``chat.completions.create``.
            extra_body: see there.
            timeout: see there.
            max_wait: see there.
            **options: see there.

        Returns:
            The answer, whose ``messages`` are the whole conversation.

        Raises:
            ToolRoundsExceeded: the model still called tools after that many turns.
            KimiError: what ``chat.completions.create`` raises.
        """
        toolbox = Toolbox(tools)
        fields = request_body({"model": model, "tools": toolbox.declarations or None}, options, function="run_tools")
        if fields.get("n") not in (None, 1):
            raise ConfigurationError(f"n={fields['n']!r}: a tool loop follows one answer")

        async def ask(conversation: list[Mapping[str, object]]) -> ChatCompletion:
            body = {**for_round(fields, conversation), "messages": conversation}
            return await self.chat.completions.send(body, extra_body=extra_body, timeout=timeout, max_wait=max_wait)

        return await converse(ask, as_messages(messages), toolbox, max_rounds)

    def conversation(
        self,
        *,
        system: str | None = None,
        model: str | None = None,
        tools: Sequence[Tool] = (),
        **options: Unpack[TurnOptions],
    ) -> Conversation:
        """A conversation that remembers its turns; see `Conversation`."""
        return Conversation(self, system=system, model=model, tools=tools, **options)

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
        async with aclosing(self._answers(requests, self.chat.completions.send, in_flight)) as results:
            async for result in results:
                yield result

    def _answers(
        self,
        requests: Iterable[BatchRequest] | AsyncIterable[BatchRequest],
        send: Callable[[dict[str, object]], Awaitable[ChatCompletion]],
        in_flight: int | None = None,
    ) -> AsyncGenerator[BatchResult, None]:
        async def answer(request: BatchRequest) -> BatchResult:
            try:
                completion = await send(request.body)
            except KimiError as exc:
                return BatchResult(custom_id=request.custom_id, error=exc)
            return BatchResult(custom_id=request.custom_id, completion=completion)

        slots = self.limiter.limits.concurrency
        ready = UNBOUNDED_IN_FLIGHT if slots is None else slots + 2 + slots // 8
        return as_completed(requests, answer, in_flight or ready)


def base_url_of(given: str | None) -> str:
    """The base URL that holds: the one given, else the environment's, else Kimi's own.

    Raises:
        ConfigurationError: it is none.
    """
    url = given or _environment("MOONSHOT_BASE_URL", "KIMI_BASE_URL") or BASE_URL
    checked(url, "base_url", schemes=("https", "http"), like=BASE_URL)
    return url.rstrip("/")


def _environment(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)
