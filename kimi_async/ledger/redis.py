"""A journal in Valkey or Redis, for the processes of many machines.

One script enters lines and reads what others entered, in one step and by the server's clock. Processes wake each other
by messages, which may be lost: then they look again after a second.

**A server that forgets.** Without persistence a restart loses the journal, with some kinds of it the last second, and
so does a replica that takes over. Every entry's id is a stamp that no other ever had, so a process that asks for what
came after an entry learns whether the server still holds it, and enters what it knows. All processes listen, notice
that they were cut off, and look; until they had the time, nobody reserves at a server that has just begun.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.exceptions import ConnectionError  # noqa: A004 - its own name

from kimi_async.budgets import Room
from kimi_async.errors import KimiError, LedgerUnavailable

from .journal import TIGHTENING, Line, Read
from .replica import Entry
from .server import Command, Script, Server
from .snapshot import State

DRIFT = 1e-3
"""Two clocks' rates differ by less; NTP alone turns one by up to 5e-4 (RFC 5905)."""

_APPEND = Script("append.lua")
_PRUNE = Script("prune.lua")


class RedisJournal:
    """The journal of one account on a server.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as redis-py reads it.
        account: its name there.

    Raises:
        ConfigurationError: no such URL.
    """

    def __init__(self, url: str, account: str) -> None:
        self._server = Server(url)
        self._account = account
        # What is in braces decides where a cluster keeps a key.
        self._tag = f"{{kimi_async:{account}}}"
        self._keys = f"{self._tag}:journal", f"{self._tag}:account"
        self._clock, self._received = 0.0, 0.0
        self._reserved = -1, 0, 0
        self._waking: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<RedisJournal {self._server.place}, account {self._account!r}>"

    def now(self) -> float:
        """The server's clock when it last answered, and what has passed since the answer came."""
        return self._clock + (time.monotonic() - self._received) * (1 - DRIFT) if self._received else 0.0

    async def append(
        self, last: int, process: str, lines: list[Line], room: Room | None = None, *, wake: str | None = None
    ) -> Read:
        """Enter lines, all or none, and read what others entered since."""
        if room is not None and not await self._server.has_settled():
            read = await self._append(last, process, [])
            if not (read.lost or read.entries):
                await self._server.settle()
            return read
        was_connected = self._server.is_connected
        try:
            return await self._append(last, process, lines, room, wake)
        except LedgerUnavailable as exc:
            if not was_connected or not isinstance(exc.__cause__, ConnectionError):
                raise
        return await self._append_again(last, process, lines, room, wake)

    async def prune(self, state: State) -> None:
        """Keep the state, and forget entries before the state that was kept before."""
        await self._server.run(_PRUNE, self._keys, state["last"], json.dumps(state))

    async def claim(self, organization: str) -> list[str]:
        """Keep that the account is this organization's; all accounts of the server that are."""
        return await self._server.add(f"kimi_async:organization:{organization}", self._account)

    async def listen(self, on_wake: Callable[[], None]) -> str:
        """Subscribe to a channel of our own; being cut off from it is a wake-up too."""
        address = uuid.uuid4().hex
        await self._server.listen(self._channel(address), on_wake)
        return address

    def wake(self, address: str) -> None:
        """Send a message to its channel."""
        task = asyncio.get_running_loop().create_task(self._wake(address))
        self._waking.add(task)
        task.add_done_callback(self._waking.discard)

    async def aclose(self) -> None:
        """Close both connections."""
        try:
            if self._waking:
                await asyncio.wait(self._waking)
        finally:
            await self._server.aclose()

    async def _append(
        self, last: int, process: str, lines: list[Line], room: Room | None = None, wake: str | None = None
    ) -> Read:
        written = [json.dumps([process, *line], separators=(",", ":")) for line in lines]
        unread, ((clock, first, before, reserved, tokens, lost), anew) = await self._server.run(
            _APPEND,
            self._keys,
            *(last, *_taken(lines), *self._allowed(last, room), *written),
            before=self._range(f"({last}", "+") if last else None,
            after=self._message(wake) if wake else None,
            settled=room is not None,
        )
        self._clock, self._received = clock / 1e6, time.monotonic()
        snapshot, found = (None, await self._up_to(before, last, unread or [])) if anew is None else anew
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
        seen = _number(unread[-1][0]) if unread else last
        if seen >= before:
            return unread
        (more,) = await self._server.call(self._range(seen, before))
        if not more or _number(more[0][0]) != seen:
            raise LedgerUnavailable(f"{self._server.place} has pruned what was to be read; try again")
        return unread + list(more[1:])

    def _range(self, first: str | int, last: str | int) -> Command:
        return "XRANGE", self._keys[0], first, last

    async def _append_again(
        self, last: int, process: str, lines: list[Line], room: Room | None, wake: str | None
    ) -> Read:
        """After a connection broke: nobody knows whether the lines are in the journal, or what it knows, so see."""
        read = await self._append(last, process, [])
        own = [place for place, entry in enumerate(read.entries, start=1) if entry.process == process]
        entered = [(entry.operation, entry.detail) for entry in read.entries if entry.process == process]
        if lines and entered[-len(lines) :] == lines:
            return read._replace(entries=read.entries[: own[-1]], appended=True)
        if room is not None and not await self._server.has_settled():
            return read
        return await self._append(last, process, lines, room, wake)

    def _channel(self, address: str) -> str:
        return f"{self._tag}:wake:{address}"

    def _message(self, address: str) -> Command:
        return "PUBLISH", self._channel(address), "!"

    async def _wake(self, address: str) -> None:
        with suppress(KimiError):
            await self._server.call(self._message(address))


def _taken(lines: list[Line]) -> tuple[int, int, int]:
    """For the script: how far lines may leave less room, reservations aside; requests and tokens that they reserve."""
    tightening = [n for n, (what, _) in enumerate(lines, start=1) if what in TIGHTENING and what != "reserve"]
    reserved = [int(str(detail.get("tokens", 0))) for what, detail in lines if what == "reserve"]
    return max(tightening, default=0), len(reserved), sum(reserved)


def _number(id_: bytes) -> int:
    return int(id_.partition(b"-")[0])


def _entry(number: int, process: str, operation: Any, detail: dict[str, object]) -> Entry:
    return Entry(number, number / 1e6, process, operation, detail)
