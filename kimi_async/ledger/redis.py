"""A journal in Valkey or Redis, for the processes of many machines.

One script enters lines and reads what others entered, in one step and by the server's clock. Processes wake each other
by messages, which may be lost: then they look again after a second.

**A server that forgets.** Without persistence a restart loses the journal, with some kinds of it the last second, and
so does a replica that takes over. Every entry's id is a stamp that no other ever had, so a process that asks for what
came after an entry learns whether the server still holds it, and enters what it knows. All processes listen, notice
that they were cut off, and look; until they had the time, nobody reserves at a server that has just begun.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - its own name
    MovedError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)

from kimi_async.budgets import Room
from kimi_async.errors import ConfigurationError, LedgerUnavailable

from .journal import TIGHTENING, Line, Read
from .replica import Entry
from .snapshot import State

ANSWER = 5.0
"""Seconds that the server may take to answer, or to let us connect."""

SETTLING = 2.0
"""Seconds after a server's start in which nobody reserves: those who know more than it does come first."""

RECONNECT = 0.25
"""Seconds between two tries to listen again; several fit into ``SETTLING``."""

SILENCE = 10.0
"""Seconds without a message after which the connection that listens is tried."""

DRIFT = 1e-3
"""Two clocks' rates differ by less; NTP alone turns one by up to 5e-4 (RFC 5905)."""


class _Script:
    def __init__(self, name: str) -> None:
        self.text = resources.files(__package__).joinpath(name).read_bytes()
        self.digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


_APPEND = _Script("append.lua")
_PRUNE = _Script("prune.lua")


class RedisJournal:
    """The journal of one account on a server.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as redis-py reads it.
        account: its name there.

    Raises:
        ConfigurationError: no such URL.
    """

    def __init__(self, url: str, account: str) -> None:
        self._place = without_password(url)
        self._account = account
        # What is in braces decides where a cluster keeps a key.
        self._tag = f"{{kimi_async:{account}}}"
        try:
            self._connections = ConnectionPool.from_url(
                url, protocol=2, socket_timeout=None, socket_connect_timeout=ANSWER, retry=Retry(NoBackoff(), 0)
            )
        except ValueError:
            raise ConfigurationError(f"{self._place}: no URL of a server; a password's /?#@:% are escaped") from None
        settings = self._connections.connection_kwargs
        self._home: dict[str, Any] = {name: value for name, value in settings.items() if name in {"host", "port"}}
        self._connection: AbstractConnection | None = None
        self._one_at_a_time = asyncio.Lock()
        self._run: bytes | None = None
        self._settled = 0.0
        self._clock, self._received = 0.0, 0.0
        self._reserved = -1, 0, 0
        self._listening: asyncio.Task[None] | None = None
        self._waking: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<RedisJournal {self._place}, account {self._account!r}>"

    def now(self) -> float:
        """The server's clock when it last answered, and what has passed since the answer came."""
        return self._clock + (time.monotonic() - self._received) * (1 - DRIFT) if self._received else 0.0

    async def append(self, last: int, process: str, lines: list[Line], room: Room | None = None) -> Read:
        """Enter lines, all or none, and read what others entered since."""
        if room is not None and not await self._has_settled():
            read = await self._append(last, process, [])
            if not (read.lost or read.entries):
                await asyncio.sleep(max(self._settled - time.monotonic(), 0.0))
            return read
        was_open = self._is_open()
        try:
            return await self._append(last, process, lines, room)
        except LedgerUnavailable as exc:
            if not was_open or not isinstance(exc.__cause__, ConnectionError):
                raise
        return await self._append_again(last, process, lines, room)

    async def prune(self, state: State) -> None:
        """Keep the state, and forget entries before the state that was kept before."""
        await self._translated(self._read_and_run(0, _PRUNE, state["last"], json.dumps(state)))

    async def claim(self, organization: str) -> list[str]:
        """Keep that the account is this organization's; all accounts of the server that are.

        Accounts may live on several nodes of a cluster, so the key that they have in common has a connection of its
        own.
        """
        names = await self._translated(self._claim(f"kimi_async:organization:{organization}", {}))
        return sorted(name.decode() for name in names)

    async def listen(self, on_wake: Callable[[], None]) -> str:
        """Subscribe to a channel of our own; being cut off from it is a wake-up too."""
        connection = self._connections.make_connection()  # type: ignore[no-untyped-call]
        address = hashlib.sha1(repr((id(self), time.time_ns())).encode(), usedforsecurity=False).hexdigest()
        try:
            await self._translated(self._subscribe(connection, address))
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._listening = asyncio.get_running_loop().create_task(self._listen(connection, address, on_wake))
        return address

    def wake(self, address: str) -> None:
        """Send a message to its channel."""
        task = asyncio.get_running_loop().create_task(self._wake(address))
        self._waking.add(task)
        task.add_done_callback(self._waking.discard)

    async def aclose(self) -> None:
        """Close both connections."""
        if self._waking:
            await asyncio.wait(self._waking)
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        await self._disconnect()

    # -- entering -----------------------------------------------------------------------------------------------

    async def _append(self, last: int, process: str, lines: list[Line], room: Room | None = None) -> Read:
        written = [json.dumps([process, *line], separators=(",", ":")) for line in lines]
        unread, reply = await self._translated(
            self._read_and_run(last, _APPEND, last, *_taken(lines), *self._allowed(last, room), *written)
        )
        numbers, anew = reply
        clock, first, before, reserved, tokens, lost = map(int, numbers.split())
        self._clock, self._received = clock / 1e6, time.monotonic()
        snapshot, found = (None, await self._up_to(before, last, unread)) if anew is None else anew
        own = [_entry(first + n, process, *line) for n, line in enumerate(lines)] if first else []
        entries = [_entry(_number(id_), *json.loads(fields[1])) for id_, fields in found] + own
        self._reserved = own[-1].id if own else before, reserved, tokens
        state = None if snapshot is None else json.loads(snapshot)
        return Read(state, entries, appended=bool(own), lost=bool(lost))

    def _allowed(self, last: int, room: Room | None) -> tuple[int, int]:
        """What may have been reserved in all; nothing if we do not know how much it was when we read last."""
        if room is None:
            return -1, -1
        at, reserved, tokens = self._reserved
        return (reserved + room.requests, tokens + room.tokens) if at == last else (0, 0)

    async def _up_to(self, before: int, last: int, unread: list[Any]) -> list[Any]:
        """What was read before the script ran may lack what others entered in between."""
        seen: bytes = unread[-1][0] if unread else f"{last}-0".encode()
        if _number(seen) >= before:
            return unread
        more: list[Any] = await self._translated(self._call(*self._range(seen, f"{before}-0")))
        if not more or more[0][0] != seen:
            raise LedgerUnavailable(f"{self._place} has pruned what was to be read; try again")
        return unread + more[1:]

    def _range(self, first: str | bytes, last: str) -> tuple[str | bytes, ...]:
        return "XRANGE", f"{self._tag}:journal", first, last

    async def _append_again(self, last: int, process: str, lines: list[Line], room: Room | None) -> Read:
        """After a connection broke: nobody knows whether the lines are in the journal, so see."""
        read = await self._append(last, process, [])
        own = [place for place, entry in enumerate(read.entries, start=1) if entry.process == process]
        entered = [(entry.operation, entry.detail) for entry in read.entries if entry.process == process]
        if lines and entered[-len(lines) :] == lines:
            return read._replace(entries=read.entries[: own[-1]], appended=True)
        return await self._append(last, process, lines, room)

    async def _read_and_run(self, last: int, script: _Script, *arguments: object) -> tuple[list[Any], Any]:
        """The entries after one, and what a script returns that runs right after they were read."""
        keys = (2, f"{self._tag}:journal", f"{self._tag}:account")
        first = [self._range(f"({last}-0", "+")] if last else []
        try:
            replies = await self._call_all(*first, ("EVALSHA", script.digest, *keys, *arguments))
        except NoScriptError:
            replies = await self._call_all(*first, ("EVAL", script.text, *keys, *arguments))
        return replies[0] if first else [], replies[-1]

    async def _translated(self, work: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(ANSWER):
                return await work
        except (AuthenticationError, NoPermissionError) as exc:
            raise ConfigurationError(f"{self._place}: {exc}; check the URL's user and password") from exc
        except BusyLoadingError as exc:
            self._settled = time.monotonic() + SETTLING
            raise LedgerUnavailable(f"{self._place} is reading its data; try again") from exc
        except TimeoutError as exc:
            raise LedgerUnavailable(f"{self._place} does not answer within {ANSWER:g} s") from exc
        except (RedisError, OSError) as exc:
            raise LedgerUnavailable(f"{self._place}: {exc}") from exc

    # -- connections --------------------------------------------------------------------------------------------

    def _is_open(self) -> bool:
        return self._connection is not None and self._connection.is_connected

    async def _call(self, *command: object) -> Any:
        return (await self._call_all(command))[0]

    async def _call_all(self, *commands: tuple[object, ...]) -> list[Any]:
        async with self._one_at_a_time:
            try:
                return await _ask_all(await self._connected(), *commands)
            except MovedError as moved:
                await self._follow(moved)
                return await _ask_all(await self._connected(), *commands)

    async def _claim(self, key: str, place: dict[str, Any]) -> list[bytes]:
        connection = self._connections.connection_class(**self._connections.connection_kwargs | place)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await _ask(connection, "SADD", key, self._account)
            names: list[bytes] = await _ask(connection, "SMEMBERS", key)
        except MovedError as moved:
            there = _place_of(moved)
        else:
            return names
        finally:
            await connection.disconnect(nowait=True)
        return await self._claim(key, there)

    async def _follow(self, moved: MovedError) -> None:
        """Turn to the node of a cluster that has the account's keys."""
        self._connections.connection_kwargs.update(_place_of(moved))
        await self._disconnect()
        self._run = None

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.disconnect()
            self._connection = None

    async def _connected(self) -> AbstractConnection:
        if self._connection is None:
            self._connection = self._connections.make_connection()  # type: ignore[no-untyped-call]
        if not self._connection.is_connected:
            try:
                await self._connection.connect()
            except ConnectionError:
                self._connection = None
                self._connections.connection_kwargs.update(self._home)  # where one knows who has the keys now
                raise
            await self._greet(self._connection)
        return self._connection

    async def _greet(self, connection: AbstractConnection) -> None:
        """Learn whether this is the server that we knew, and how long it has been up."""
        try:
            text: bytes = await _ask(connection, "INFO", "server")
        except ResponseError:  # we may not ask, so entries' ids alone tell what was lost
            return
        about = dict(line.partition(b":")[::2] for line in text.splitlines())
        young = SETTLING - int(about.get(b"uptime_in_seconds", SETTLING))
        run = about.get(b"run_id", b"")
        if self._run not in {None, run}:
            young = SETTLING
        self._run = run
        self._settled = max(self._settled, time.monotonic() + young)

    async def _has_settled(self) -> bool:
        if not self._is_open():
            async with self._one_at_a_time:
                await self._translated(self._connected())
        return time.monotonic() >= self._settled

    # -- messages -----------------------------------------------------------------------------------------------

    def _channel(self, address: str) -> str:
        return f"{self._tag}:wake:{address}"

    async def _wake(self, address: str) -> None:
        with suppress(LedgerUnavailable):
            await self._translated(self._call("PUBLISH", self._channel(address), "!"))

    async def _subscribe(self, connection: AbstractConnection, address: str) -> None:
        await connection.connect()  # type: ignore[no-untyped-call]
        await _ask(connection, "SUBSCRIBE", self._channel(address))

    async def _listen(self, connection: AbstractConnection, address: str, on_wake: Callable[[], None]) -> None:
        try:
            while True:
                with suppress(RedisError, OSError):
                    await self._receive(connection, on_wake)
                await self._listen_again(connection, address)
                on_wake()
        finally:
            await connection.disconnect(nowait=True)

    async def _listen_again(self, connection: AbstractConnection, address: str) -> None:
        while True:
            await connection.disconnect(nowait=True)
            await asyncio.sleep(RECONNECT)
            with suppress(LedgerUnavailable):
                await self._translated(self._subscribe(connection, address))
                return

    async def _receive(self, connection: AbstractConnection, on_wake: Callable[[], None]) -> None:
        """Until the connection fails."""
        tried = False
        while True:
            message = await connection.read_response(timeout=SILENCE)
            if message is None:
                if tried:
                    raise ConnectionError("nothing came")
                await connection.send_command("PING", check_health=False)
            elif message[0] == b"message":
                on_wake()
            tried = message is None


async def _ask(connection: AbstractConnection, *command: object) -> Any:
    return (await _ask_all(connection, command))[0]


def _place_of(moved: MovedError) -> dict[str, Any]:
    return {"host": moved.host, "port": moved.port} if moved.host else {"port": moved.port}


async def _ask_all(connection: AbstractConnection, *commands: tuple[object, ...]) -> list[Any]:
    """Send all, then read all replies, so that an error leaves none for who asks next."""
    packed = connection.pack_commands(commands)  # type: ignore[arg-type]
    await connection.send_packed_command(packed, check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except ResponseError as exc:
            replies.append(exc)
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise reply
    return replies


def _taken(lines: list[Line]) -> tuple[int, int, int]:
    """For the script: how far lines may leave less room, reservations aside; requests and tokens that they reserve."""
    tightening = [n for n, (what, _) in enumerate(lines, start=1) if what in TIGHTENING and what != "reserve"]
    reserved = [int(str(detail.get("tokens", 0))) for what, detail in lines if what == "reserve"]
    return max(tightening, default=0), len(reserved), sum(reserved)


def _number(id_: bytes) -> int:
    return int(id_.partition(b"-")[0])


def _entry(number: int, process: str, operation: Any, detail: dict[str, object]) -> Entry:
    return Entry(number, number / 1e6, process, operation, detail)


def without_password(url: str) -> str:
    """What may be shown of a URL; where it is odd, that is little."""
    scheme = url.partition(":")[0]
    with suppress(ValueError):
        parts = urlsplit(url)
        if "@" not in parts.path + parts.query + parts.fragment:
            port = f":{parts.port}" if parts.port else ""
            return f"{scheme}://{parts.hostname or ''}{port}{parts.path}"
    return f"{scheme}://…"
