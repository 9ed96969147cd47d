"""``kimi.chat.completions``: a chat request in all its forms, made ready and sent."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, TypeVar, Unpack, overload

import httpx
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from .chat import ChatCompletion, CompletionUsage, MessageInput, plain
from .errors import ConfigurationError, InvalidResponseError
from .exchange import Call, Exchange, as_wire, body_of
from .limits import Cost
from .parameters import ChatOptions, ParseOptions, check, request_body
from .responses import EXCERPT
from .schema import accepted
from .stream import ChatCompletionStream, TextStream, open_stream
from .tokens import MAX_LEARNED, TokenCounter

Format = TypeVar("Format", bound=BaseModel)


class Chat:
    """``kimi.chat``, as the openai SDK has it."""

    def __init__(self, completions: "Completions") -> None:
        self.completions = completions


class Completions:
    """``kimi.chat.completions``.

    All methods take the parameters of `ChatOptions`, and these:

    * ``messages``: the conversation; see ``kimi_async.parameters``.
    * ``model``: by default the client's.
    * ``extra_body``: further fields of the request, sent as they are and not checked.
    * ``timeout``: seconds for each read of the answer, or an ``httpx.Timeout``.
    * ``max_wait``: seconds it may wait, in line and between attempts together.

    and raise:

    * ConfigurationError: an argument that cannot work, or that the model would refuse; nothing was sent.
    * RequestTooLarge: no wait can make it fit the budgets or the model's context.
    * WaitTooLong: it would wait longer than ``max_wait``.
    * DailyBudgetExhausted: the tokens of the day are spent.
    * APIStatusError: Kimi's answer is an error; its subclasses say which.
    * APIConnectionError: no answer came, after ``max_attempts``.
    * InvalidResponseError: what came is no chat completion, after ``max_attempts``.
    """

    def __init__(
        self, exchange: Exchange, counter: TokenCounter, *, model: str | None, max_wait: float | None
    ) -> None:
        self._exchange = exchange
        self._counter = counter
        self._model = model
        self._max_wait = max_wait

    @overload
    async def create(
        self,
        *,
        messages: Sequence[MessageInput],
        model: str | None = None,
        stream: Literal[False] | None = None,
        extra_body: Mapping[str, object] | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self,
        *,
        messages: Sequence[MessageInput],
        model: str | None = None,
        stream: Literal[True],
        extra_body: Mapping[str, object] | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletionStream: ...

    async def create(
        self,
        *,
        messages: Sequence[MessageInput],
        model: str | None = None,
        stream: bool | None = None,
        extra_body: Mapping[str, object] | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion | ChatCompletionStream:
        """Ask for a chat completion; the same call as the openai SDK's.

        With ``stream=True`` it returns as soon as the first chunk is there. The request's slot is free again when
        the stream has ended, is closed, breaks, or is dropped.
        """
        body = _body(messages, model, options, function="create")
        if stream:
            return await self.open(body, extra_body=extra_body, timeout=timeout, max_wait=max_wait)
        return await self.send(body, extra_body=extra_body, timeout=timeout, max_wait=max_wait)

    @asynccontextmanager
    async def stream(
        self,
        *,
        messages: Sequence[MessageInput],
        model: str | None = None,
        extra_body: Mapping[str, object] | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncIterator[TextStream]:
        """Stream the text of an answer, and have all of it at the end; leaving the block hangs up.

        ::

            async with kimi.chat.completions.stream(messages=[...]) as stream:
                async for text in stream:
                    print(text, end="")
            print(stream.completion.usage)
        """
        body = _body(messages, model, options, function="stream")
        async with await self.open(body, extra_body=extra_body, timeout=timeout, max_wait=max_wait) as chunks:
            yield TextStream(chunks)

    async def parse(
        self,
        *,
        messages: Sequence[MessageInput],
        response_format: type[Format],
        model: str | None = None,
        extra_body: Mapping[str, object] | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
        **options: Unpack[ParseOptions],
    ) -> Format:
        """Ask for an answer in the form of a pydantic model, and return that.

        Raises:
            InvalidResponseError: also for an answer that was cut off at ``max_tokens``, or does not fit the model;
                its ``body`` is what came. Such an answer was paid for and is not tried again.
        """
        if not _is_model(response_format):
            raise ConfigurationError("parse: response_format is a pydantic model; for a dict use create")
        body = _body(messages, model, options, function="parse")
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": response_format.__name__,
                "schema": accepted(response_format.model_json_schema()),
            },
        }
        completion = await self.send(body, extra_body=extra_body, timeout=timeout, max_wait=max_wait)
        return _parsed(completion, response_format)

    async def send(
        self,
        body: Mapping[str, object],
        *,
        extra_body: Mapping[str, object] | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
    ) -> ChatCompletion:
        """Send a request as a dict, as on the wire; ``model`` and ``max_tokens`` are made explicit."""
        ready, cost = await self._ready(body, extra_body)
        if ready.get("stream"):
            raise ConfigurationError("stream=true: this call reads whole answers; pass stream=True to create instead")
        completion = await self._exchange.send(self._call(ready, cost, timeout, max_wait), whole)
        if completion.usage is not None:
            self._learn(ready, cost, completion.usage)
        return completion

    async def open(
        self,
        body: Mapping[str, object],
        *,
        extra_body: Mapping[str, object] | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_wait: float | None = None,
    ) -> ChatCompletionStream:
        """The same, streamed."""
        ready, cost = await self._ready({**body, "stream": True}, extra_body)
        if not ready.get("stream"):
            raise ConfigurationError("extra_body says stream=false: leave it out, or call create without stream")
        opened = partial(open_stream, on_usage=partial(self._learn, ready, cost))
        return await self._exchange.send(self._call(ready, cost, timeout, max_wait), opened)

    async def _ready(
        self, body: Mapping[str, object], extra_body: Mapping[str, object] | None
    ) -> tuple[dict[str, object], Cost]:
        """The body that goes out, and what it costs."""
        ready: dict[str, object] = {"model": self._model, **body} if self._model else dict(body)
        if not isinstance(ready.get("model"), str):
            raise ConfigurationError("no model: pass model=, or give the client one")
        try:
            _make_plain(ready)
            check(ready)
            if extra_body:
                ready.update(extra_body)
                _make_plain(ready)
            cost = await self._counter.cost(ready)
        except RecursionError as exc:
            raise ConfigurationError("the request cannot be written as JSON: it is nested too deeply") from exc
        if ready.get("max_tokens") is None and ready.get("max_completion_tokens") is None:
            ready["max_tokens"] = cost.max_tokens
        return ready, cost

    def _call(
        self,
        ready: Mapping[str, object],
        cost: Cost,
        timeout: float | httpx.Timeout | None,
        max_wait: float | None,
    ) -> Call:
        try:
            content = to_json(ready)
        except PydanticSerializationError as exc:
            raise ConfigurationError(f"the request cannot be written as JSON: {exc}") from exc
        return Call(
            path="/chat/completions",
            content=content,
            cost=cost,
            model=str(ready["model"]),
            timeout=timeout,
            max_wait=self._max_wait if max_wait is None else max_wait,
        )

    def _learn(self, body: Mapping[str, object], cost: Cost, usage: CompletionUsage) -> None:
        if 0 < usage.prompt_tokens - cost.prompt_tokens <= MAX_LEARNED:
            self._counter.learn(body, billed=usage.prompt_tokens)


def _body(
    messages: Sequence[MessageInput], model: str | None, options: Mapping[str, object], *, function: str
) -> dict[str, object]:
    if isinstance(messages, str):
        raise ConfigurationError("messages is a list of messages; for a single prompt use kimi.ask(prompt)")
    if any(callable(tool) for tool in _items(options.get("tools"))):
        raise ConfigurationError(f"{function}: tools holds a Python function; kimi.run_tools runs those")
    if _is_model(options.get("response_format")):
        raise ConfigurationError(f"{function}: response_format is a dict; for a pydantic model use parse")
    return request_body({"model": model, "messages": list(messages)}, options, function=function)


def _make_plain(body: dict[str, object]) -> None:
    """What Kimi answered is counted as the dict it goes out as."""
    messages = body.get("messages")
    if isinstance(messages, list | tuple):
        body["messages"] = [plain(message) for message in messages]


async def whole(response: httpx.Response) -> ChatCompletion:
    """An answer in one piece, for ``Exchange.send``."""
    completion = as_wire(await body_of(response), ChatCompletion, what="chat completion")
    completion._request_id = response.headers.get("msh-request-id")  # noqa: SLF001 - set once, here
    return completion


def _parsed(completion: ChatCompletion, response_format: type[Format]) -> Format:
    text, choice = completion.text, completion.choices[0]
    if choice.finish_reason == "length":
        raise InvalidResponseError("the answer was cut off at max_tokens; raise it", body=text[:EXCERPT])
    if choice.message.tool_calls and not text:
        names = ", ".join(call.function.name for call in choice.message.tool_calls)
        raise InvalidResponseError(f"the model called {names} instead of answering; use create, or run_tools", body="")
    try:
        return response_format.model_validate_json(text)
    except ValidationError as exc:
        problems = [": ".join((*map(str, error["loc"]), error["msg"])) for error in exc.errors()]
        what = f"the answer does not fit {response_format.__name__}: {'; '.join(problems)}"
        raise InvalidResponseError(what, body=text[:EXCERPT]) from exc


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _is_model(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
