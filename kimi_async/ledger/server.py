"""A Valkey or Redis server, as far as a journal needs one: commands in turn, a script, messages, and trust.

A server may restart, fail over, be demoted, or move keys to another node. So whoever is answered by one that has just
started, or by another than before, waits before it trusts what is there; and whoever is told that it asks the wrong
one asks the right one. The first that answers is trusted, if it is up for long.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004 - its own name
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from kimi_async.errors import ConfigurationError, KimiError, LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ANSWER = 5.0
"""Seconds that the server may take to answer, or to let us connect."""

SETTLING = 2.0
"""Seconds after a server's start in which nobody reserves: those who know more than it does come first."""

RECONNECT = 0.25
"""Seconds between two tries to listen again; several fit into ``SETTLING``."""

SILENCE = 10.0
"""Seconds without a message after which the connection that listens is tried."""

_OURS = {
    "protocol": 2,
    "decode_responses": False,
    "encoding": "utf-8",
    "socket_timeout": None,
    "retry": Retry(NoBackoff(), 0),
    "health_check_interval": 0,
}
"""Of a connection, whatever a URL says."""

Command = tuple[object, ...]

Reply = Any
"""Integers, bytes, None, or lists of them."""


class Script:
    """One of the Lua scripts beside this file."""

    def __init__(self, name: str) -> None:
        self.text = resources.files(__package__).joinpath(name).read_bytes()
        self.digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


class Server:
    """One connection for commands, and one to listen on.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as redis-py reads it; what is said here about time-outs
            and the protocol goes before the URL's options.

    Attributes:
        place: what may be shown of the URL.

    Raises:
        ConfigurationError: no such URL; from any method, the server does not accept our user or password.
        LedgerUnavailable: from any method: it cannot be reached, or does not do what it was asked.
    """

    def __init__(self, url: str) -> None:
        self.place = without_password(url)
        try:
            self._settings: dict[str, Any] = {**parse_url(url), **_OURS, "socket_connect_timeout": ANSWER}
        except ValueError:
            raise ConfigurationError(f"{self.place}: no URL of a server; a password's /?#@:% are escaped") from None
        self._kind: type[AbstractConnection] = self._settings.pop("connection_class", Connection)
        try:
            self._to({})
        except (TypeError, ValueError, RedisError):
            raise ConfigurationError(f"{self.place}: there is no such option after the URL's '?'") from None
        self._node: dict[str, Any] = {}
        self._connection: AbstractConnection | None = None
        self._one_at_a_time = asyncio.Lock()
        self._run: bytes | None = None
        self._greeted: bytes | None = None
        self._settled = 0.0
        self._listener: AbstractConnection | None = None
        self._listening: asyncio.Task[None] | None = None

    # -- commands -----------------------------------------------------------------------------------------------

    async def call(self, *commands: Command) -> list[Reply]:
        """Send commands at once; their replies."""
        async with self._translated():
            return await self._call(*commands)

    async def run(
        self,
        script: Script,
        keys: tuple[str, ...],
        *arguments: object,
        before: Command | None = None,
        after: Command | None = None,
        settled: bool = False,
    ) -> tuple[Reply, Reply]:
        """Send a script, and maybe commands right before and after it; the replies to the first and to the script.

        Where ``settled``, only to a server that can be trusted; another counts as one that cut us off.
        """
        first, then = [before] if before else [], [after] if after else []
        called = (len(keys), *keys, *arguments)
        async with self._translated():
            try:
                replies = await self._call(*first, ("EVALSHA", script.digest, *called), *then, settled=settled)
            except NoScriptError:
                replies = await self._call(*first, ("EVAL", script.text, *called), *then, settled=settled)
        return replies[0] if first else None, replies[len(first)]

    async def add(self, key: str, member: str) -> list[str]:
        """Add to a set, wherever in a cluster it is; all of its members, in order."""
        async with self._translated():
            names = await self._add(key, member, {})
        return sorted(name.decode() for name in names)

    async def _add(self, key: str, member: str, place: dict[str, Any]) -> list[bytes]:
        connection = self._to(place)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            _, names = await _ask(connection, ("SADD", key, member), ("SMEMBERS", key))
        except MovedError as moved:
            there = self._node_of(moved)
        else:
            return list(names)
        finally:
            await connection.disconnect(nowait=True)
        return await self._add(key, member, there)

    async def _call(self, *commands: Command, settled: bool = False) -> list[Reply]:
        async with self._one_at_a_time:
            try:
                return await self._send(*commands, settled=settled)
            except MovedError as moved:
                await self._turn_to(self._node_of(moved))
                return await self._send(*commands, settled=settled)
            except ResponseError as exc:
                if _is_deposed(exc):
                    await self._turn_to({})
                    if self._listener is not None:
                        await self._listener.disconnect(nowait=True)
                raise

    async def _send(self, *commands: Command, settled: bool) -> list[Reply]:
        connection = await self._connected()
        if settled and time.monotonic() < self._settled:
            raise ConnectionError("another server than before, or one that has just started")
        replies = await _ask(connection, *commands)
        self._run = self._greeted
        return replies

    @asynccontextmanager
    async def _translated(self) -> "AsyncIterator[None]":
        try:
            async with asyncio.timeout(ANSWER):
                yield
        except (AuthenticationError, NoPermissionError) as exc:
            raise self._unwelcome(exc) from exc
        except BusyLoadingError as exc:
            self._settled = time.monotonic() + SETTLING
            raise LedgerUnavailable(f"{self.place} is reading its data; try again") from exc
        except TimeoutError as exc:
            raise LedgerUnavailable(f"{self.place} does not answer within {ANSWER:g} s") from exc
        except (RedisError, OSError) as exc:
            if isinstance(exc.__cause__, AuthenticationError):  # redis-py's connection to a Unix socket wraps it
                raise self._unwelcome(exc) from exc
            raise LedgerUnavailable(f"{self.place}: {exc}") from exc

    def _unwelcome(self, exc: Exception) -> ConfigurationError:
        return ConfigurationError(f"{self.place}: {exc}; check the URL's user and password")

    # -- the connection -----------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as we know."""
        return self._connection is not None and self._connection.is_connected

    async def has_settled(self) -> bool:
        """Whether what the server knows can be trusted: those who know more have had the time to say so."""
        if not self.is_connected:
            async with self._translated(), self._one_at_a_time:
                await self._connected()
        return time.monotonic() >= self._settled

    async def settle(self) -> None:
        """Wait until it can, if nothing else happens."""
        await asyncio.sleep(max(self._settled - time.monotonic(), 0.0))

    async def _connected(self) -> AbstractConnection:
        connection = self._connection = self._connection or self._to(self._node)
        if not connection.is_connected:
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                await self._greet(connection)
            except BaseException:
                self._connection, self._node = None, {}  # where one knows who has the keys now
                await connection.disconnect(nowait=True)
                raise
        return connection

    def _to(self, node: dict[str, Any]) -> AbstractConnection:
        """A connection yet to be made: to where the URL leads, or to a cluster's node."""
        return self._kind(**self._settings | node)

    def _node_of(self, moved: MovedError) -> dict[str, Any]:
        if "path" in self._settings:
            raise ConfigurationError(f"{self.place}: {moved}; a cluster has redis:// or rediss:// URLs") from moved
        return {"host": moved.host, "port": moved.port} if moved.host else {"port": moved.port}

    async def _greet(self, connection: AbstractConnection) -> None:
        """Learn whether this is the server that we knew, and how long it has been up."""
        try:
            (text,) = await _ask(connection, ("INFO", "server"))
        except ResponseError:  # we may not ask, so entries' ids alone tell what was lost
            return
        about = dict(line.partition(b":")[::2] for line in text.splitlines())
        young = SETTLING - int(about.get(b"uptime_in_seconds", SETTLING))
        run = about.get(b"run_id", b"")
        if self._run not in {None, run}:
            young = SETTLING
        self._greeted = run
        self._settled = max(self._settled, time.monotonic() + young)

    async def _turn_to(self, node: dict[str, Any]) -> None:
        """Leave the server that has not, or no longer, what we ask for."""
        self._node = node
        await self._disconnect()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect()

    async def aclose(self) -> None:
        """Close both connections."""
        try:
            if self._listening is not None:
                self._listening.cancel()
                await asyncio.wait([self._listening])
        finally:
            await self._disconnect()

    # -- messages -----------------------------------------------------------------------------------------------

    async def listen(self, channel: str, on_message: Callable[[], None]) -> None:
        """Subscribe to a channel; being cut off from it counts as a message."""
        listener = await self._subscribe(channel)
        self._listening = asyncio.get_running_loop().create_task(self._listen(listener, channel, on_message))

    async def _listen(self, listener: AbstractConnection, channel: str, on_message: Callable[[], None]) -> None:
        while True:
            try:
                with suppress(RedisError, OSError):
                    await _receive(listener, on_message)
            finally:
                await listener.disconnect(nowait=True)
            listener = await self._subscribe_again(channel)
            on_message()

    async def _subscribe_again(self, channel: str) -> AbstractConnection:
        while True:
            await asyncio.sleep(RECONNECT)
            with suppress(KimiError):  # a user or password may be in force again
                return await self._subscribe(channel)

    async def _subscribe(self, channel: str) -> AbstractConnection:
        """On a new connection to where the URL leads now; in a cluster any node passes messages on."""
        listener = self._to({})
        try:
            async with self._translated():
                await listener.connect()  # type: ignore[no-untyped-call]
                await _ask(listener, ("SUBSCRIBE", channel))
        except BaseException:
            await listener.disconnect(nowait=True)
            raise
        self._listener = listener
        return listener


async def _receive(connection: AbstractConnection, on_message: Callable[[], None]) -> None:
    """Until the connection fails."""
    tried = False
    while True:
        message = await connection.read_response(timeout=SILENCE)
        if message is None:
            if tried:
                raise ConnectionError("nothing came")
            await connection.send_command("PING", check_health=False)
        elif message[0] == b"message":
            on_message()
        tried = message is None


async def _ask(connection: AbstractConnection, *commands: Command) -> list[Reply]:
    """Send all, then read all replies, so that an error leaves none for who asks next."""
    packed = connection.pack_commands(commands)  # type: ignore[arg-type]
    await connection.send_packed_command(packed, check_health=False)
    replies: list[Reply] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except ResponseError as exc:
            replies.append(exc)
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise reply
    return replies


def _is_deposed(error: ResponseError) -> bool:
    """Whether another server may be what the URL leads to now. Redis 6 quotes what went wrong within a script."""
    return isinstance(error, ReadOnlyError | MasterDownError | ClusterDownError) or "-READONLY " in str(error)


def without_password(url: str) -> str:
    """What may be shown of a URL; where it is odd, that is little."""
    scheme = url.partition(":")[0]
    with suppress(ValueError):
        parts = urlsplit(url)
        if "@" not in parts.path + parts.query + parts.fragment:
            port = f":{parts.port}" if parts.port else ""
            return f"{scheme}://{parts.hostname or ''}{port}{parts.path}"
    return f"{scheme}://…"
