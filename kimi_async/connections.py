"""The connection pool: a stack of one-connection transports, the last one used on top.

httpx's own pool looks at all its connections for every request and again when it closes: from 100 connections on
that is most of the CPU that a request takes. A stack takes the top one and puts it back.
"""

import ssl
from collections.abc import AsyncIterator
from typing import Self
from urllib.request import getproxies, proxy_bypass

import httpx

KEEPALIVE = 60.0
"""Seconds after which an idle connection is not used again; as long as the minute between two full windows."""


class ConnectionStack(httpx.AsyncBaseTransport):
    """An httpx transport with as many connections as there are requests in flight, each kept for the next.

    Args:
        proxy: URL of a proxy; by default what ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` say.
        verify: the SSL context that all connections share; by default httpx's.
    """

    def __init__(self, *, proxy: str | None = None, verify: ssl.SSLContext | None = None) -> None:
        self._proxy = proxy
        self._verify = verify or httpx.create_ssl_context()
        self._idle: list[httpx.AsyncHTTPTransport] = []
        self._all: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request over the connection used last, or a new one."""
        connection = self._idle.pop() if self._idle else self._connection(request.url)
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            self._idle.append(connection)  # httpcore has closed what was open; the transport can connect anew
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Returning(response.stream, connection, self._idle)
        return response

    def _connection(self, url: httpx.URL) -> httpx.AsyncHTTPTransport:
        one = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE)
        proxy = self._proxy or _environment_proxy(url)
        connection = httpx.AsyncHTTPTransport(verify=self._verify, limits=one, proxy=proxy)
        self._all.append(connection)
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        """Close all connections."""
        self._idle.clear()
        while self._all:
            await self._all.pop().aclose()


class _Returning(httpx.AsyncByteStream):
    """An answer's body; its connection goes back on the stack when it is closed."""

    def __init__(
        self,
        stream: httpx.AsyncByteStream,
        connection: httpx.AsyncHTTPTransport,
        idle: list[httpx.AsyncHTTPTransport],
    ) -> None:
        self._stream = stream
        self._connection: httpx.AsyncHTTPTransport | None = connection
        self._idle = idle

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            if self._connection is not None:
                self._idle.append(self._connection)
                self._connection = None


def _environment_proxy(url: httpx.URL) -> str | None:
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
