"""Sockets on asyncio's own transports, with httpx's errors.

httpcore's go through anyio, whose locks, scopes and stream layers take a quarter of the CPU of a whole request.
asyncio's transports read ahead and write at once; what is left to do is to wait where nothing has come yet.
"""

import asyncio
import ipaddress
import math
import select
import ssl
import sys
from typing import Any, cast

import httpx

HAPPY_EYEBALLS = 0.25
"""Seconds before a name's next address is tried beside the one that has not answered (RFC 8305, section 5)."""

READ_AHEAD = 65_536
"""Bytes that may come in before anybody asks for them."""

DRAINED = 0.005
"""Seconds between two looks at whether encrypted bytes have gone out; asyncio tells nobody of it."""

_MALFORMED = (ValueError, OverflowError)
"""What host names and ports that cannot exist raise: a label that is empty or too long, a port above 65,535."""


async def connect_tcp(host: str, port: int, timeout: float | None = None) -> "AsyncioStream":
    """Open a TCP connection; the loop resolves names and tries addresses side by side (RFC 8305).

    Raises:
        httpx.ConnectTimeout: not in so many seconds.
        httpx.ConnectError: not at all.
    """
    loop = asyncio.get_running_loop()
    # asyncio's race leaves a socket to the garbage collector when it is cancelled: one address needs none.
    races = isinstance(loop, asyncio.BaseEventLoop) and not _is_address(host)  # uvloop knows none
    race: dict[str, Any] = {"happy_eyeballs_delay": HAPPY_EYEBALLS} if races else {}
    try:
        async with asyncio.timeout(timeout):
            _, protocol = await loop.create_connection(_Connection, host, port, **race)
    except TimeoutError as exc:
        raise httpx.ConnectTimeout(f"no connection to {host}:{port} in {timeout} s") from exc
    except (OSError, *_MALFORMED) as exc:
        raise httpx.ConnectError(str(exc)) from exc
    return AsyncioStream(protocol)


class _Connection(asyncio.Protocol):
    """What the loop tells about one connection: bytes that came, its end, and whether it takes more."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._raw: asyncio.Transport
        self._arrived: _Arrived
        self.received = bytearray()
        self.ended = False
        self.error: Exception | None = None
        self._full = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._deadline = math.inf
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = self._raw = cast("asyncio.Transport", transport)  # uvloop's has its methods and is none
        self._arrived = _Arrived(transport.get_extra_info("socket").fileno())
        self.transport.set_write_buffer_limits(high=0)  # written is what does not wait in asyncio's buffer

    def encrypt(self, transport: asyncio.Transport) -> None:
        """Talk through this one, which is asyncio's TLS, from now on."""
        self.transport = transport
        transport.set_write_buffer_limits(high=1)  # it pauses at its limit, and a socket's transport only above it

    def abort(self) -> None:
        """Close it at once; it did not end by itself, and so nothing that is read afterwards is complete."""
        self.error = self.error or ConnectionAbortedError("the connection was closed on this side")
        self.transport.abort()

    @property
    def stale(self) -> bool:
        """Whether something has come, or the end: here, or as far as the operating system."""
        return bool(self.received) or self.ended or self._arrived()

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
        self.error = self.error or exc
        self._set_alarm(math.inf)
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
        self._deadline = math.inf if timeout is None else loop.time() + timeout
        if self._alarm_at > self._deadline:
            self._set_alarm(self._deadline)
        await self._reader

    def _set_alarm(self, when: float) -> None:
        """There is one alarm, which is early rather than late: a timer for each read costs as much as the read."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = None if math.isinf(when) else asyncio.get_running_loop().call_at(when, self._ring)

    def _ring(self) -> None:
        again = math.inf
        if self._reader is not None and not self._reader.done():
            if asyncio.get_running_loop().time() >= self._deadline:
                self._reader.set_exception(TimeoutError())
            else:
                again = self._deadline
        self._set_alarm(again)

    async def room(self, timeout: float | None) -> None:
        """Wait until all that was written has gone out: through TLS, and from there to the operating system."""
        if not (self._full or self._raw.get_write_buffer_size()):
            return
        async with asyncio.timeout(timeout):
            while self._full and not self.ended:
                self._writer = asyncio.get_running_loop().create_future()
                await self._writer
            while self._raw.get_write_buffer_size() and not self.ended:  # noqa: ASYNC110 - TLS is told, we are not
                await asyncio.sleep(DRAINED)


class AsyncioStream:
    """One connection, for one reader and one writer at a time; the methods of ``httpcore.AsyncNetworkStream``."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most so many bytes; none at the end. Raises httpx's ReadTimeout and ReadError."""
        connection = self._connection
        if not connection.received and not connection.ended:
            try:
                await connection.something(timeout)
            except TimeoutError as exc:
                raise httpx.ReadTimeout(f"nothing came for {timeout} s") from exc
        if connection.error is not None and not connection.received:
            raise httpx.ReadError(str(connection.error)) from connection.error
        data = bytes(connection.received[:max_bytes])
        del connection.received[:max_bytes]
        if len(connection.received) <= READ_AHEAD and not (connection.ended or connection.transport.is_reading()):
            connection.transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All of it, to the operating system. Raises httpx's WriteTimeout and WriteError."""
        connection = self._connection
        if connection.transport.is_closing():
            raise httpx.WriteError("the connection is closed")
        connection.transport.write(buffer)
        try:
            await connection.room(timeout)
        except TimeoutError as exc:
            raise httpx.WriteTimeout(f"nothing went out for {timeout} s") from exc
        if connection.error is not None:
            raise httpx.WriteError(str(connection.error)) from connection.error

    async def aclose(self) -> None:
        """Close it, without waiting for the other side. Whoever still reads gets httpx's ReadError."""
        self._connection.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> "AsyncioStream":
        """Encrypt it from now on. Raises httpx's ConnectTimeout and ConnectError."""
        connection = self._connection
        try:
            async with asyncio.timeout(timeout):
                transport = await asyncio.get_running_loop().start_tls(
                    connection.transport, connection, ssl_context, server_hostname=server_hostname
                )
        except TimeoutError as exc:
            connection.abort()
            raise httpx.ConnectTimeout(f"no TLS handshake in {timeout} s") from exc
        except (OSError, *_MALFORMED) as exc:  # which ssl.SSLError is as well
            connection.abort()
            raise httpx.ConnectError(str(exc)) from exc
        except BaseException:  # cancelled: nobody else knows of this connection yet
            connection.abort()
            raise
        if transport is None:
            raise httpx.ConnectError("the connection was lost right after the TLS handshake")
        connection.encrypt(transport)
        return AsyncioStream(connection)

    @property
    def stale(self) -> bool:
        """Whether something has come, or the end, of a connection from which nothing is awaited."""
        return self._connection.stale

    def get_extra_info(self, info: str) -> Any:
        """What httpcore's streams know: ``ssl_object``, ``client_addr``, ``server_addr``, ``socket``."""
        if info == "is_readable":
            return self.stale
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._connection.transport.get_extra_info(names.get(info, info))


class _Arrived:
    """Whether a socket has something to read, or has ended, before the loop has had a turn to tell: in 0.6 us.

    Windows has no ``poll``; there it is always False.
    """

    def __init__(self, fileno: int) -> None:
        if sys.platform != "win32":
            self._poll = select.poll()
            self._poll.register(fileno, select.POLLIN)

    def __call__(self) -> bool:
        return sys.platform != "win32" and bool(self._poll.poll(0))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
