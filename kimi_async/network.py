"""Sockets for httpcore on asyncio's own transports, through the network backend that httpcore lets one choose.

Its default goes through anyio, whose locks, scopes and stream layers take a quarter of the CPU of a whole request.
asyncio's transports read ahead and write at once; what is left to do is to wait where nothing has come yet.
"""

import asyncio
import ipaddress
import ssl
from collections.abc import Iterable
from typing import Any, cast

import httpcore

HAPPY_EYEBALLS = 0.25
"""Seconds before a name's next address is tried beside the one that has not answered (RFC 8305, section 5)."""

READ_AHEAD = 65_536
"""Bytes that may come in before anybody asks for them."""

HEAD = 16_384
"""Bytes that may wait for what is written after them."""


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Connects; the loop resolves names and tries addresses side by side (RFC 8305)."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[object] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Open a TCP connection; raises httpcore's ConnectTimeout and ConnectError."""
        loop = asyncio.get_running_loop()
        # asyncio's race leaves a socket to the garbage collector when it is cancelled: one address needs none.
        races = isinstance(loop, asyncio.BaseEventLoop) and not _is_address(host)  # uvloop knows none
        race: dict[str, Any] = {"happy_eyeballs_delay": HAPPY_EYEBALLS} if races else {}
        local = None if local_address is None else (local_address, 0)
        try:
            async with asyncio.timeout(timeout):
                _, protocol = await loop.create_connection(_Connection, host, port, local_addr=local, **race)
        except TimeoutError as exc:
            raise httpcore.ConnectTimeout(f"no connection to {host}:{port} in {timeout} s") from exc
        except OSError as exc:
            raise httpcore.ConnectError(str(exc)) from exc
        return AsyncioStream(protocol)

    async def sleep(self, seconds: float) -> None:
        """Wait between two attempts to connect."""
        await asyncio.sleep(seconds)


class _Connection(asyncio.Protocol):
    """What the loop tells about one connection: bytes that came, its end, and whether it takes more."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.received = bytearray()
        self.ended = False
        self.error: Exception | None = None
        self._full = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.use(cast("asyncio.Transport", transport))  # uvloop's has all its methods and is none

    def use(self, transport: asyncio.Transport) -> None:
        """Talk through this one; nothing counts as written while any of it waits in asyncio's buffer."""
        self.transport = transport
        transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) > READ_AHEAD:
            self.transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> bool:
        self.ended = True
        _wake(self._reader)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.error = exc
        _wake(self._reader)
        self.resume_writing()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        _wake(self._writer)

    async def something(self, timeout: float | None) -> None:
        """Wait until there is something to read, or the end; raises TimeoutError."""
        loop = asyncio.get_running_loop()
        self._reader = loop.create_future()
        # A timer alone: ``asyncio.timeout`` costs as much as all the rest of reading a chunk of a stream.
        timer = None if timeout is None else loop.call_later(timeout, _expire, self._reader)
        try:
            await self._reader
        finally:
            if timer is not None:
                timer.cancel()

    async def room(self, timeout: float | None) -> None:
        """Wait until all that was written has gone out."""
        while self._full and not self.ended:
            self._writer = asyncio.get_running_loop().create_future()
            async with asyncio.timeout(timeout):
                await self._writer


class AsyncioStream(httpcore.AsyncNetworkStream):
    """One connection, for one reader and one writer at a time.

    httpcore writes a request in pieces, of which the last may be empty. The first waits for the second, so that head
    and body leave together: each journey through the operating system costs as much as composing the head.
    """

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._held = b""
        self._beginning = True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most so many bytes; none at the end. Raises httpcore's ReadTimeout and ReadError."""
        connection = self._connection
        if self._held:
            await self.write(b"", timeout)
        if not connection.received and not connection.ended:
            try:
                await connection.something(timeout)
            except TimeoutError as exc:
                raise httpcore.ReadTimeout(f"nothing came for {timeout} s") from exc
        if connection.error is not None and not connection.received:
            raise httpcore.ReadError(str(connection.error)) from connection.error
        self._beginning = True
        data = bytes(connection.received[:max_bytes])
        del connection.received[:max_bytes]
        if not connection.ended and not connection.transport.is_reading():
            connection.transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All of it, to the operating system, but for a first piece. Raises httpcore's WriteTimeout and WriteError."""
        connection = self._connection
        buffer, self._held = self._held + buffer, b""
        if not buffer:
            return
        if connection.transport.is_closing():
            raise httpcore.WriteError("the connection is closed")
        beginning, self._beginning = self._beginning, False
        if beginning and len(buffer) <= HEAD:
            self._held = buffer
            return
        connection.transport.write(buffer)
        try:
            await connection.room(timeout)
        except TimeoutError as exc:
            raise httpcore.WriteTimeout(f"nothing went out for {timeout} s") from exc
        if connection.error is not None:
            raise httpcore.WriteError(str(connection.error)) from connection.error

    async def aclose(self) -> None:
        """Close it, without waiting for the other side."""
        self._connection.transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Encrypt it from now on. Raises httpcore's ConnectTimeout and ConnectError."""
        connection = self._connection
        try:
            async with asyncio.timeout(timeout):
                transport = await asyncio.get_running_loop().start_tls(
                    connection.transport, connection, ssl_context, server_hostname=server_hostname
                )
        except TimeoutError as exc:
            connection.transport.abort()
            raise httpcore.ConnectTimeout(f"no TLS handshake in {timeout} s") from exc
        except OSError as exc:  # which ssl.SSLError is as well
            connection.transport.abort()
            raise httpcore.ConnectError(str(exc)) from exc
        except BaseException:  # cancelled: nobody else knows of this connection yet
            connection.transport.abort()
            raise
        assert transport is not None
        connection.use(transport)
        return AsyncioStream(connection)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks for: ``ssl_object``, and if an idle connection ``is_readable``, which means its end."""
        if info == "is_readable":
            return bool(self._connection.received) or self._connection.ended
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._connection.transport.get_extra_info(names.get(info, info))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
