"""A streamed answer: its chunks as they come, and what they make when put together."""

import asyncio
import weakref
from codecs import getincrementaldecoder
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Literal, Self

import httpx
from httpx_sse import EventSource, ServerSentEvent

from .assembly import Assembly, usage_of
from .chat import ChatCompletion, ChatCompletionChunk, CompletionUsage
from .errors import APIStatusError, InvalidResponseError, StreamBroken
from .exchange import as_wire, body_of, described
from .responses import EXCERPT, status_error

DONE = "[DONE]"
"""The data of the event that ends an answer; without it, the answer broke off."""

TAIL = 1.0
"""Seconds that the connection gets to end the answer properly after `DONE`, so that it can be used again."""

Chunks = AsyncGenerator[ChatCompletionChunk | None, None]
"""None is the end as it should be; closing the generator closes the answer."""

_STATUS = {
    "content_filter": 400,
    "invalid_request_error": 400,
    "engine_overloaded_error": 429,
    "exceeded_current_quota_error": 429,
    "rate_limit_reached_error": 429,
}
"""The status that goes with an error's type, for one that comes inside a stream; 500 for all others."""


async def open_stream(
    response: httpx.Response, on_usage: Callable[[CompletionUsage], None] | None = None
) -> "ChatCompletionStream":
    """Wait for the first chunk, up to which a request can be tried again; for ``Exchange.send``.

    Args:
        response: with status 200, and nothing of it read yet.
        on_usage: told of the usage when the answer is complete; of one choice's, where the choices have their own.

    Raises:
        InvalidResponseError: the answer is no stream, or not one of chunks.
        APIStatusError: the first event is an error.
    """
    if "text/event-stream" not in response.headers.get("content-type", "").lower():
        text = (await body_of(response)).decode(errors="replace")
        raise InvalidResponseError(f"asked for a stream, got {text[:80]!r}", body=text[:EXCERPT])
    chunks = _chunks(response)
    first = await anext(chunks)
    if first is None:
        await chunks.aclose()
        raise InvalidResponseError("an answer without a single chunk", body="")
    arrivals = _Arrivals(first, chunks, on_usage)
    return ChatCompletionStream(arrivals, request_id=response.headers.get("msh-request-id"))


class ChatCompletionStream:
    """The chunks of one answer; iterate over it, as an async context manager if you may stop early.

    A task of its own reads the answer as fast as it comes. So the slot is free when Kimi has finished, or the
    connection has failed, however slow the consumer is, and also if it stops reading and asks for something else.
    Closing the stream, being cancelled while waiting for a chunk, and dropping the last reference to it all hang up.

    Raises:
        StreamBroken: from iterating, after the last chunk that arrived, if the answer did not end as it should, be
            it that the consumer itself hung up.
        RuntimeError: from iterating in two tasks at once.
    """

    def __init__(self, arrivals: "_Arrivals", *, request_id: str | None = None) -> None:
        self.request_id = request_id
        self._position = 0
        self._arrivals = arrivals
        self._assembly = Assembly()
        loop = asyncio.get_running_loop()
        self._reading = loop.create_task(self._arrivals.read())
        weakref.finalize(self, _drop, loop, self._arrivals, self._reading).atexit = False

    def __repr__(self) -> str:
        return (
            f"<ChatCompletionStream {self._arrivals.state}, {self._position}/{len(self._arrivals.chunks)} chunks read>"
        )

    @property
    def completion(self) -> ChatCompletion:
        """What has arrived so far, put together."""
        for chunk in self._arrivals.chunks[self._assembly.chunks :]:
            self._assembly.add(chunk)
        return self._assembly.whole(self.request_id)

    @property
    def exhausted(self) -> bool:
        """Whether the whole answer has arrived and been read."""
        return self._arrivals.state == "complete" and self._position == len(self._arrivals.chunks)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChatCompletionChunk:
        arrivals = self._arrivals
        if self._position == len(arrivals.chunks):
            try:
                await arrivals.more()
            except asyncio.CancelledError:  # with nobody left to read on
                _hang_up(arrivals, self._reading)
                raise
        if self._position < len(arrivals.chunks):
            self._position += 1
            return arrivals.chunks[self._position - 1]
        if arrivals.state == "complete":
            await asyncio.wait([self._reading])  # until the slot is free
            raise StopAsyncIteration
        so_far = f"{len(arrivals.chunks)} chunk{'s' * (len(arrivals.chunks) > 1)}"
        why = f"the answer broke off after {so_far}: {described(arrivals.error)}" if arrivals.error else None
        closed = f"this stream was closed, or its reader cancelled, after {so_far}; there may have been more"
        raise StreamBroken(why or closed, partial=self.completion) from arrivals.error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hang up if the answer has not ended; what has arrived can still be read."""
        _hang_up(self._arrivals, self._reading)
        await asyncio.wait([self._reading])
        await self._arrivals.abandon()  # for a task that was cancelled before it began

    close = aclose  # the openai SDK's name


class TextStream:
    """The text of one answer as it comes; iterating yields what each chunk adds to it.

    Attributes:
        chunks: the same with everything else: thinking, tool calls, further choices.
    """

    def __init__(self, chunks: ChatCompletionStream) -> None:
        self.chunks = chunks

    async def __aiter__(self) -> AsyncIterator[str]:
        async for chunk in self.chunks:
            if text := chunk.text:
                yield text

    @property
    def completion(self) -> ChatCompletion:
        """What has arrived so far, put together; its ``finish_reason`` is None while there is more to come."""
        return self.chunks.completion

    async def get_final_completion(self) -> ChatCompletion:
        """Read on to the end, and put everything together. Raises StreamBroken if it breaks off."""
        async for _ in self.chunks:
            pass
        return self.chunks.completion


class _Arrivals:
    """What has come of an answer. Knows nothing of the stream that shows it, so that one may be dropped."""

    def __init__(
        self, first: ChatCompletionChunk, rest: Chunks, on_usage: Callable[[CompletionUsage], None] | None = None
    ) -> None:
        self.chunks = [first]
        self.state: Literal["open", "complete", "broken", "abandoned"] = "open"
        self.error: Exception | None = None
        self._rest = rest
        self._on_usage = on_usage
        self._reader: asyncio.Future[None] | None = None

    async def read(self) -> None:
        """Take in all that comes; how it ends is kept for the consumer."""
        try:
            async for chunk in self._rest:
                if chunk is None:
                    self._complete()
                else:
                    self.chunks.append(chunk)
                self._wake()
        except Exception as exc:  # noqa: BLE001 - raised where the chunks are consumed
            if self.state == "open":  # else all has arrived, and only closing failed
                self.state, self.error = "broken", exc
        finally:
            await self.abandon()

    def _complete(self) -> None:
        usage = usage_of(self.chunks)
        if usage is not None and self._on_usage is not None:
            self._on_usage(usage)
        self.state = "complete"

    async def abandon(self) -> None:
        """Nobody wants what may still come."""
        if self.state == "open":
            self.state = "abandoned"
        self._wake()
        await self._rest.aclose()

    async def more(self) -> None:
        """Wait for another chunk, or the end."""
        if self.state == "open":
            if self._reader is not None and not self._reader.done():
                raise RuntimeError("another task is waiting for the next chunk of this stream")
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def _drop(loop: asyncio.AbstractEventLoop, arrivals: _Arrivals, reading: "asyncio.Task[None]") -> None:
    with suppress(RuntimeError):  # the loop is closed, and so is all that ran on it
        loop.call_soon_threadsafe(_hang_up, arrivals, reading)  # the garbage collector may run in any thread


def _hang_up(arrivals: _Arrivals, reading: "asyncio.Task[None]") -> None:
    if arrivals.state == "open":  # else it has ended by itself, or is about to
        arrivals.state = "abandoned"
        reading.cancel()


class _EventStream(httpx.Response):
    """An answer whose text is UTF-8 whatever its headers say, perhaps with a byte order mark: the standard of SSE.

    httpx's own way to that text, which is ready for all encodings and sizes, costs a quarter of the CPU of a chunk.
    """

    async def aiter_text(self, chunk_size: int | None = None) -> AsyncIterator[str]:
        assert isinstance(self.stream, httpx.AsyncByteStream)
        decode = getincrementaldecoder("utf-8-sig")("replace").decode
        async for content in self.aiter_bytes() if "content-encoding" in self.headers else self.stream:
            if text := decode(content):
                yield text


async def _chunks(response: httpx.Response) -> Chunks:
    answer = _EventStream(response.status_code, headers=response.headers, stream=response.stream)
    events = EventSource(answer).aiter_sse()
    try:
        async with aclosing(events):
            async for event in events:
                if event.data == DONE:
                    yield None
                    await _read_tail(events)
                    return
                if event.data:
                    yield _chunk(event.data, response.headers)
            raise InvalidResponseError(f"it ended without {DONE}", body="")
    finally:
        await response.aclose()


async def _read_tail(events: AsyncGenerator[ServerSentEvent, None]) -> None:
    with suppress(TimeoutError, httpx.RequestError):
        async with asyncio.timeout(TAIL):
            async for _ in events:
                pass


def _chunk(data: str, headers: httpx.Headers) -> ChatCompletionChunk:
    chunk = as_wire(data, ChatCompletionChunk, what="chunk of a chat completion")
    if not chunk.choices and (error := (chunk.model_extra or {}).get("error")) is not None:
        raise _streamed_error(error, data, headers)
    return chunk


def _streamed_error(error: object, data: str, headers: httpx.Headers) -> APIStatusError:
    kind = error.get("type") if isinstance(error, dict) else None
    return status_error(_STATUS.get(str(kind), 500), headers, data.encode(), model="")
