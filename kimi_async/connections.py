"""The connection pool: for each host a stack of one-connection transports, the last one used on top.

httpx's own pool looks at all its connections for every request and again when it closes: from 100 connections on
that is most of the CPU that a request takes. A stack takes the top one and puts it back.
"""

import asyncio
import os
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Self
from urllib.request import getproxies, proxy_bypass

import httpx

from .errors import ConfigurationError
from .http11 import KEEPALIVE, Http11Connection, traced
from .network import AsyncioStream, connect_tcp
from .urls import checked, without_password

PORTS = {"http": 80, "https": 443}
PROXIES = ("http", "https", "socks5", "socks5h")


class ConnectionStack(httpx.AsyncBaseTransport):
    """An httpx transport with as many connections as there are requests in flight, each kept for the next.

    Args:
        proxy: URL of a proxy, or ``""`` for none; by default what ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and
            ``NO_PROXY`` say.
        verify: the SSL context that all connections share; by default httpx's.

    Raises:
        ConfigurationError: ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` names no certificates.
    """

    def __init__(self, *, proxy: str | None = None, verify: ssl.SSLContext | None = None) -> None:
        self._proxy = proxy
        self._verify = verify or _environment_certificates()
        self._idle = _idle()
        self._all: list[httpx.AsyncBaseTransport] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request over the connection used last, or a new one.

        Raises:
            RuntimeError: the stack was closed.
            ConfigurationError: the proxy is none, or needs a library that is not installed; nothing was sent.
            httpx.TransportError: whatever else goes wrong.
        """
        self._enter_loop()
        if self._closed:
            raise RuntimeError("no request can be sent: the connections were closed")
        url = request.url
        idle = self._idle[url.scheme, url.netloc]  # another host's may go another way: NO_PROXY names hosts
        connection = idle.pop() if idle else self._connection(url)
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            idle.append(connection)  # what was open is closed; the transport can connect anew
            raise
        tell_when_closed(response, lambda _: idle.append(connection))
        if self._closed:  # while it was opened through a proxy: httpx's transport has no more to do with it
            await response.extensions["network_stream"].aclose()
        return response

    def _enter_loop(self) -> None:
        """The connections of a loop that has ended are of no use in another."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._idle, self._all = _idle(), []

    def _connection(self, url: httpx.URL) -> httpx.AsyncBaseTransport:
        connection: httpx.AsyncBaseTransport
        if proxy := _environment_proxy(url) if self._proxy is None else self._proxy:
            name = _proxy_variable(url.scheme, proxy) if self._proxy is None else "proxy"
            connection = _through(proxy, name, self._verify)
        else:
            connection = DirectConnection(self._verify)
        self._all.append(connection)
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        """Close all connections, those in use as well; none is opened afterwards."""
        self._enter_loop()
        self._closed = True
        self._idle = _idle()  # whoever is still under way returns its connection to the old one
        while self._all:
            await self._all.pop().aclose()


class DirectConnection(httpx.AsyncBaseTransport):
    """One HTTP/1.1 connection to one host, opened for a request, and anew when it has been closed or has expired."""

    def __init__(self, verify: ssl.SSLContext) -> None:
        self._verify = verify
        self._connection: Http11Connection | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the next one only after its answer was closed."""
        connection = self._connection
        if connection is None or not connection.ready:
            await self._drop()
            connection = self._connection = Http11Connection(await _open(request, self._verify))
        if self._closed:
            await self._drop()
            raise httpx.ConnectError("the connection was closed while it was opened")
        return await connection.send(request)

    async def aclose(self) -> None:
        """Close it; none is opened afterwards."""
        self._closed = True
        await self._drop()

    async def _drop(self) -> None:
        if self._connection is not None:
            await self._connection.aclose()
            self._connection = None


def _idle() -> defaultdict[tuple[str, bytes], list[httpx.AsyncBaseTransport]]:
    """Stacks of connections that nobody uses, by scheme and host."""
    return defaultdict(list)


async def _open(request: httpx.Request, verify: ssl.SSLContext) -> AsyncioStream:
    """A stream to a request's host, with the steps traced that httpcore traces."""
    url, timeout = request.url, request.extensions.get("timeout", {}).get("connect")
    if url.scheme not in PORTS:
        raise httpx.UnsupportedProtocol(f"the URL begins with '{url.scheme}://', not with https:// or http://")
    host = url.raw_host.decode("ascii")
    place = {"host": host, "port": url.port or PORTS[url.scheme], "timeout": timeout}
    opened: list[AsyncioStream] = []

    async def connect() -> AsyncioStream:
        opened.append(await connect_tcp(**place))
        return opened[0]

    try:
        stream = await traced(request, "connection.connect_tcp", place, connect)
        if url.scheme == "https":
            verify.set_alpn_protocols(["http/1.1"])
            name = request.extensions.get("sni_hostname") or host
            tls = {"ssl_context": verify, "server_hostname": name, "timeout": timeout}
            stream = await traced(request, "connection.start_tls", tls, partial(stream.start_tls, **tls))
    except BaseException:  # of a trace, perhaps, when the socket is open already
        for stream in opened:
            await stream.aclose()
        raise
    return stream


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
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Parts(self, self._end)

    def tell(self, told: Callable[[bool], None]) -> None:
        """Add one to be told, after those before it."""
        self._end.told.append(told)

    async def aclose(self) -> None:
        """Close it, and tell, once."""
        await self._end.aclose()

    def __del__(self) -> None:
        self._end.dropped(self._loop)


class _Parts:
    """Reads a body once. No generator: the event loop keeps a list of those, which costs as much as the reading."""

    def __init__(self, body: ClosingStream, end: "_End") -> None:
        self._body = body  # which is not dropped as long as somebody reads it
        self._end = end
        self._parts = aiter(end.stream)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._parts)
        except (StopAsyncIteration, httpx.NetworkError, httpx.ProtocolError):
            self._end.reached = True
            raise


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


def _environment_proxy(url: httpx.URL) -> str | None:
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _proxy_variable(scheme: str, proxy: str) -> str:
    """Where that proxy was set; systems keep theirs elsewhere too."""
    names = f"{scheme}_proxy", "all_proxy"
    values = proxy, proxy.removeprefix("http://")
    return next((name for name, value in os.environ.items() if name.lower() in names and value in values), "proxy")


def _through(proxy: str, name: str, verify: ssl.SSLContext) -> httpx.AsyncBaseTransport:
    url = checked(proxy, name, schemes=PROXIES, like="http://127.0.0.1:3128")
    one = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE)
    try:
        return httpx.AsyncHTTPTransport(verify=verify, limits=one, proxy=url)
    except ImportError as exc:
        shown = without_password(proxy)
        raise ConfigurationError(f"{name}={shown!r}: a SOCKS proxy needs: pip install 'httpx[socks]'") from exc


def _environment_certificates() -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context()
    except OSError as exc:  # which names no file; ssl.SSLError is one
        name = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)
        if name is None:
            raise
        raise ConfigurationError(f"{name}={os.environ[name]!r}: {exc.strerror or exc}") from exc
