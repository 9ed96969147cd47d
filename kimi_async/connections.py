"""The connection pool: a stack of one-connection transports, the last one used on top.

httpx's own pool looks at all its connections for every request and again when it closes: from 100 connections on
that is most of the CPU that a request takes. A stack takes the top one and puts it back.
"""

import asyncio
import ssl
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Self
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from .network import AsyncioBackend

KEEPALIVE = 60.0
"""Seconds after which an idle connection is not used again; as long as the minute between two full windows."""

Trace = Callable[[str, dict[str, object]], Awaitable[None]]
"""httpcore's request extension ``"trace"``: it is told of each step by name."""

Stream = httpcore.AsyncNetworkStream

_NETWORK = AsyncioBackend()


class ConnectionStack(httpx.AsyncBaseTransport):
    """An httpx transport with as many connections as there are requests in flight, each kept for the next.

    Args:
        proxy: URL of a proxy; by default what ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` say.
        verify: the SSL context that all connections share; by default httpx's.
    """

    def __init__(self, *, proxy: str | None = None, verify: ssl.SSLContext | None = None) -> None:
        self._proxy = proxy
        self._verify = verify or httpx.create_ssl_context()
        self._idle: list[httpx.AsyncBaseTransport] = []
        self._all: list[httpx.AsyncBaseTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request over the connection used last, or a new one."""
        connection = self._idle.pop() if self._idle else self._connection(request.url)
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            self._idle.append(connection)  # httpcore has closed what was open; the transport can connect anew
            raise
        tell_when_closed(response, lambda _: self._idle.append(connection))
        return response

    def _connection(self, url: httpx.URL) -> httpx.AsyncBaseTransport:
        connection: httpx.AsyncBaseTransport
        if proxy := self._proxy or _environment_proxy(url):
            one = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE)
            connection = httpx.AsyncHTTPTransport(verify=self._verify, limits=one, proxy=proxy)
        else:
            connection = DirectConnection(self._verify)
        self._all.append(connection)
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        """Close all connections."""
        self._idle.clear()
        while self._all:
            await self._all.pop().aclose()


class DirectConnection(httpx.AsyncBaseTransport):
    """One HTTP/1.1 connection, opened when there is a request, and anew when it has been closed or has expired."""

    def __init__(self, verify: ssl.SSLContext) -> None:
        self._verify = verify
        self._connection: httpcore.AsyncHTTP11Connection | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the next one only after its answer was closed."""
        url = request.url
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        sent = httpcore.Request(
            request.method, target, headers=request.headers.raw, content=request.stream, extensions=request.extensions
        )
        try:
            connection = await self._ready(target.origin, sent)
            answer = await connection.handle_async_request(sent)
        except _HTTPCORE_ERRORS as exc:
            raise _httpx_error(exc) from exc
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Body(answer), extensions=answer.extensions
        )

    async def _ready(self, origin: httpcore.Origin, request: httpcore.Request) -> httpcore.AsyncHTTP11Connection:
        connection = self._connection
        if connection is not None:
            if connection.is_idle() and not connection.has_expired() and connection.can_handle_request(origin):
                return connection
            await self.aclose()
        stream = await _open(origin, self._verify, request)
        self._connection = httpcore.AsyncHTTP11Connection(origin, stream, keepalive_expiry=KEEPALIVE)
        return self._connection

    async def aclose(self) -> None:
        """Close it."""
        if self._connection is not None:
            await self._connection.aclose()
            self._connection = None


async def _open(origin: httpcore.Origin, verify: ssl.SSLContext, request: httpcore.Request) -> Stream:
    """What ``httpcore.AsyncHTTPConnection`` does for its first request; the later ones it would only slow down."""
    trace: Trace = request.extensions.get("trace") or _ignore
    host, timeout = origin.host.decode("ascii"), request.extensions.get("timeout", {}).get("connect")
    stream = await _traced("connect_tcp", trace, _NETWORK.connect_tcp, host=host, port=origin.port, timeout=timeout)
    if origin.scheme == b"https":
        verify.set_alpn_protocols(["http/1.1"])
        name = request.extensions.get("sni_hostname") or host
        tls = {"ssl_context": verify, "server_hostname": name, "timeout": timeout}
        stream = await _traced("start_tls", trace, stream.start_tls, **tls)
    return stream


async def _traced(step: str, trace: Trace, take: Callable[..., Awaitable[Stream]], **arguments: object) -> Stream:
    """Take a step, and tell of it as httpcore does (https://www.encode.io/httpcore/extensions/#trace)."""
    await trace(f"connection.{step}.started", arguments)
    try:
        stream = await take(**arguments)
    except BaseException as exc:
        await trace(f"connection.{step}.failed", {"exception": exc})
        raise
    await trace(f"connection.{step}.complete", {"return_value": stream})
    return stream


async def _ignore(event: str, info: dict[str, object]) -> None:
    """Nobody wants to know."""


class _Body(httpx.AsyncByteStream):
    """An answer's body, with httpx's errors."""

    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        # Not ``aiter_stream``, which may be called once: the openai SDK comes back for what follows "[DONE]".
        assert isinstance(self._answer.stream, AsyncIterable)
        try:
            async for chunk in self._answer.stream:
                yield chunk
        except _HTTPCORE_ERRORS as exc:
            raise _httpx_error(exc) from exc

    async def aclose(self) -> None:
        await self._answer.aclose()


def tell_when_closed(response: httpx.Response, told: Callable[[bool], None]) -> None:
    """Call ``told`` once, when the answer is closed, with whether its body had ended by itself, well or not.

    An answer that is dropped unread, as by a client whose user leaves a loop, is closed by the garbage collector.
    """
    if not isinstance(response.stream, ClosingStream):
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = ClosingStream(response.stream)
    response.stream.tell(told)


class ClosingStream(httpx.AsyncByteStream):
    """An answer's body that tells of its end."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._end = _End(stream)
        weakref.finalize(self, self._end.dropped, asyncio.get_running_loop()).atexit = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        end = self._end
        try:
            async for chunk in end.stream:
                yield chunk
        except (httpx.NetworkError, httpx.ProtocolError):
            end.reached = True
            raise
        end.reached = True

    def tell(self, told: Callable[[bool], None]) -> None:
        """Add one to be told, after those before it."""
        self._end.told.append(told)

    async def aclose(self) -> None:
        """Close it, and tell, once."""
        await self._end.aclose()


class _End:
    """How a body ends; it outlives the body."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self.stream = stream
        self.reached = False
        self.told: list[Callable[[bool], None]] = []
        self._closing: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        try:
            await self.stream.aclose()
        finally:
            told, self.told = self.told, []
            for tell in told:
                tell(self.reached)

    def dropped(self, loop: asyncio.AbstractEventLoop) -> None:
        """In whatever thread the garbage collector runs."""
        if self.told:
            with suppress(RuntimeError):  # the loop is closed, and its connections with it
                loop.call_soon_threadsafe(self._close_soon, loop)

    def _close_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.told:
            self._closing = loop.create_task(self.aclose())


_HTTPX_ERRORS: dict[type[Exception], type[httpx.TransportError]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
}
_HTTPCORE_ERRORS = tuple(_HTTPX_ERRORS)


def _httpx_error(error: Exception) -> httpx.TransportError:
    """The error of httpx that has the same name."""
    return _HTTPX_ERRORS[type(error)](str(error))


def _environment_proxy(url: httpx.URL) -> str | None:
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
