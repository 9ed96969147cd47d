"""HTTP/1.1 on one connection, for a client (RFC 9112)."""

import time
from collections.abc import Awaitable, Callable
from typing import Protocol, Self, TypeVar

import httpx

from .answer import AnswerParser

KEEPALIVE = 60.0
"""Seconds after which an idle connection is not used again; as long as the minute between two full windows."""

READ = 65_536
"""Bytes asked for at a time."""

Trace = Callable[[str, dict[str, object]], Awaitable[None]]
"""httpcore's request extension ``"trace"``: it is told of each step by name."""

Result = TypeVar("Result")


class Stream(Protocol):
    """What HTTP is spoken over: the part that is used of `AsyncioStream`, with its errors."""

    @property
    def stale(self) -> bool:
        """Whether something has come, or the end, while nothing was awaited."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most so many bytes; none at the end."""
        ...

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All of it."""

    async def aclose(self) -> None:
        """Close it."""


class Http11Connection:
    """One request after the other over a stream, each after the answer to the one before was closed.

    It traces as httpcore does (https://www.encode.io/httpcore/extensions/#trace), but that the ``"request"`` it tells
    of is httpx's. It does not pipeline, make tunnels (CONNECT) or switch protocols; `AnswerParser` says which answers
    it refuses.

    Args:
        stream: open, and used by nobody else.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._answer = AnswerParser()
        self._lasts = False
        self._idle_until = time.monotonic() + KEEPALIVE

    @property
    def ready(self) -> bool:
        """Whether it takes a request: idle, not for too long, and the server has not closed it meanwhile."""
        return time.monotonic() < self._idle_until and not self._stream.stale

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Write a request, and read the head of its answer. Where that fails, the connection is closed.

        Raises:
            httpx.LocalProtocolError: it is no request of HTTP/1.1.
            httpx.TransportError: whatever else goes wrong.
        """
        self._idle_until = 0.0
        answer = self._answer
        info: dict[str, object] = {"request": request}
        answer.begin(request.method)
        try:
            try:
                message = await traced(request, "http11.send_request_headers", info, _composed, request)
                await traced(request, "http11.send_request_body", info, self._write, message, request)
                self._lasts = not message.closes
            except httpx.WriteError:
                self._lasts = False  # a server may answer, and close, before it has read all of a request
            await traced(request, "http11.receive_response_headers", info, self._read_head, request)
        except BaseException:
            await traced(request, "http11.response_closed", {}, self.aclose)
            raise
        extensions = {
            "http_version": answer.version,
            "reason_phrase": answer.reason,
            "network_stream": self._stream,
        }
        body = _Body(self, answer, request)
        return httpx.Response(answer.status, headers=answer.headers, stream=body, extensions=extensions)

    async def _write(self, message: "_Message", request: httpx.Request) -> None:
        """Head and body leave together: a journey through the operating system costs more than to compose them."""
        stream, timeout = request.stream, _timeout(request, "write")
        if isinstance(stream, httpx.ByteStream):
            await self._stream.write(message.head + message.piece(b"".join(stream)) + message.end(), timeout)
        else:
            assert isinstance(stream, httpx.AsyncByteStream)
            waiting = message.head
            async for content in stream:
                await self._stream.write(waiting + message.piece(content), timeout)
                waiting = b""
            await self._stream.write(waiting + message.end(), timeout)

    async def _read_head(self, request: httpx.Request) -> tuple[bytes, int, bytes, list[tuple[bytes, bytes]]]:
        answer = self._answer
        while not answer.has_head:
            await self.read(request)
        return answer.version, answer.status, answer.reason, answer.headers

    async def read(self, request: httpx.Request) -> None:
        """Let the parser have what comes next of the answer to this request."""
        self._answer.feed(await self._stream.read(READ, _timeout(request, "read")))

    async def finish(self) -> None:
        """Be ready for the next request if both sides have said all that they had to say; else close."""
        if self._lasts and self._answer.keep_alive:
            self._idle_until = time.monotonic() + KEEPALIVE
        else:
            await self.aclose()

    async def aclose(self) -> None:
        """Close it."""
        self._idle_until = 0.0
        await self._stream.aclose()


class _Body(httpx.AsyncByteStream):
    """An answer's body. No generator: the event loop keeps a list of those, which costs more than reading a part."""

    def __init__(self, connection: Http11Connection, answer: AnswerParser, request: httpx.Request) -> None:
        self._connection = connection
        self._answer = answer
        self._request = request
        self._began = False
        self._ended = False
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        if self._closed:
            raise httpx.StreamClosed
        if not self._began:
            self._began = True
            await self._tell("started", {"request": self._request})
        try:
            part = await self._part()
        except BaseException as exc:
            await self._tell("failed", {"exception": exc})
            await self.aclose()
            raise
        if part is None:
            self._ended = True
            await self._tell("complete", {"return_value": None})
            raise StopAsyncIteration
        return part

    async def _part(self) -> bytes | None:
        parts = self._answer.parts
        while not (parts or self._answer.ended):
            await self._connection.read(self._request)
        return parts.pop(0) if parts else None

    async def _tell(self, phase: str, info: dict[str, object]) -> None:
        if (trace := self._request.extensions.get("trace")) is not None:
            await trace(f"http11.receive_response_body.{phase}", info)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await traced(self._request, "http11.response_closed", {}, self._connection.finish)


async def traced(
    request: httpx.Request,
    step: str,
    info: dict[str, object],
    take: Callable[..., Awaitable[Result]],
    *arguments: object,
) -> Result:
    """Take a step, and tell the request's trace of it."""
    trace: Trace | None = request.extensions.get("trace")
    if trace is None:
        return await take(*arguments)
    await trace(f"{step}.started", info)
    try:
        result = await take(*arguments)
    except BaseException as exc:
        await trace(f"{step}.failed", {"exception": exc})
        raise
    await trace(f"{step}.complete", {"return_value": result})
    return result


def _timeout(request: httpx.Request, which: str) -> float | None:
    timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
    return timeouts.get(which)


# -- requests -----------------------------------------------------------------------------------------------------

_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_VISIBLE = bytes(range(0x21, 0x7F))
_VALUE = b"\t " + _VISIBLE + bytes(range(0x80, 0x100))
_ONCE = {b"host", b"content-length", b"transfer-encoding"}


class _Message:
    """A request's head, and how its body is delimited: by its length, or in chunks (RFC 9112, sections 6 and 7).

    Attributes:
        head: all of it.
        closes: whether it asks for the connection to be closed after the answer (RFC 9112, section 9.6).
    """

    def __init__(self, head: bytes, length: int | None, *, closes: bool) -> None:
        self.head = head
        self.closes = closes
        self._left = length

    def piece(self, content: bytes) -> bytes:
        """The next piece."""
        if self._left is None:
            return b"%x\r\n%b\r\n" % (len(content), content) if content else b""
        self._left -= len(content)
        if self._left < 0:
            raise httpx.LocalProtocolError("Too much data for declared Content-Length")
        return content

    def end(self) -> bytes:
        """What follows the last one."""
        if self._left is None:
            return b"0\r\n\r\n"
        if self._left:
            raise httpx.LocalProtocolError("Too little data for declared Content-Length")
        return b""


async def _composed(request: httpx.Request) -> _Message:
    """A request, to be written. Raises httpx.LocalProtocolError."""
    method, target, headers = request.method.encode(), request.url.raw_path, request.headers.raw
    if not method or method.translate(None, _TOKEN) or method == b"CONNECT":
        raise httpx.LocalProtocolError(f"Illegal method {request.method!r}")
    if not target or target.translate(None, _VISIBLE):
        raise httpx.LocalProtocolError(f"Illegal target {target!r}")
    fields = {name.lower(): value for name, value in headers}
    _check(headers, fields)
    lines = [b"%b: %b" % header for header in headers]
    head = b"\r\n".join((b"%b %b HTTP/1.1" % (method, target), *lines, b"", b""))
    usual = len(fields) == len(headers) and fields.get(b"connection", b"keep-alive") == b"keep-alive"
    return _Message(head, _length(fields), closes=not usual and _closes(headers))


def _closes(headers: list[tuple[bytes, bytes]]) -> bool:
    options = b",".join(value for name, value in headers if name.lower() == b"connection")
    return b"close" in {option.strip() for option in options.lower().split(b",")}


def _length(fields: dict[bytes, bytes]) -> int | None:
    """Of the body; None if it goes out in chunks."""
    length = fields.get(b"content-length")
    coding = fields.get(b"transfer-encoding")
    if coding is None:
        if length is not None and not length.isdigit():
            raise httpx.LocalProtocolError("bad Content-Length")
        return int(length or 0)
    if length is not None or coding.lower() != b"chunked":
        raise httpx.LocalProtocolError("Only Transfer-Encoding: chunked is supported, without Content-Length")
    return None


def _check(headers: list[tuple[bytes, bytes]], fields: dict[bytes, bytes]) -> None:
    """Refuse what could be read as another header, or as another request. No value is quoted: it may be a key."""
    if b"" in fields or b"".join(fields).translate(None, _TOKEN):
        raise httpx.LocalProtocolError(f"Illegal header name among {sorted(fields)}")
    for name, value in headers:
        if value.translate(None, _VALUE):
            raise httpx.LocalProtocolError(f"Illegal value of header {name.decode()}")
    if b"host" not in fields:
        raise httpx.LocalProtocolError("Missing mandatory Host: header")
    if len(fields) < len(headers) and any(_doubled(headers)):
        raise httpx.LocalProtocolError("A header that can be there but once is there twice")


def _doubled(headers: list[tuple[bytes, bytes]]) -> list[bytes]:
    names = [name.lower() for name, _ in headers]
    return [name for name in _ONCE if names.count(name) > 1]
