"""A journal in a SQLite file, for the processes of one machine.

One transaction an entry, or a few of them, in a thread of its own.

**The clock.** Unix time may be set forward or back at any moment; windows and leases must not follow. So the journal's
clock is the one that counts seconds since the machine's boot, which is the same for all processes, plus an offset that
is set to show Unix time with the first entry of each boot.

**A file that forgets.** Somebody may remove it or put back an older copy (`kimi_async.ledger.file`). Every entry's id
is a stamp, microseconds of the journal's clock, that no other ever had; so a process that asks for what came after an
entry learns whether the file holds it, and enters what it knows. It looks every tenth of a second whether it must. In
a file that is new, or in another place than before, nobody reserves for half a second, so that it comes in time.

Processes wake each other with datagrams on loopback, which may be lost: then they look again after a second.
"""

import asyncio
import json
import math
import sqlite3
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from kimi_async.budgets import Room
from kimi_async.errors import ConfigurationError, LedgerUnavailable

from .file import BUSY, WATCH, shared_file
from .journal import TIGHTENING, Line, Read, tightened
from .replica import Entry, Operation
from .snapshot import State

Result = TypeVar("Result")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Where Linux names the machine's boot (random(4))."""

LASTING: frozenset[Operation] = frozenset({"part", "recall"})
"""Operations that nobody may be there to repeat, so they survive a power cut."""


class _Account(NamedTuple):
    """What the file knows about an account.

    Attributes:
        number: by which the journal knows it; 0 if the file does not.
        last: its last entry.
        boot: of the machine, when that was entered.
        offset: from that boot's clock to the journal's.
        tight: the last entry that may leave less room.
        kept: the last one that the snapshot knows.
        pruned: entries before this one are gone.
    """

    number: int = 0
    last: int = 0
    boot: str | None = None
    offset: float = 0.0
    tight: int = 0
    kept: int = 0
    pruned: int = 0


class SQLiteJournal:
    """The journal of one account in a file.

    Args:
        path: created if need be, for its owner alone.
        account: its name in the file.
        busy: seconds that a transaction waits for those of other processes.

    Raises:
        ConfigurationError: the file is no ledger, or one of another version.
        LedgerUnavailable: it cannot be opened.
    """

    def __init__(self, path: Path, account: str, *, busy: float = BUSY) -> None:
        self._path = path
        self._account = account
        self._file = shared_file(path, busy)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kimi_async ledger")
        self._opened = 0
        self._boot = _boot()
        self._socket: asyncio.DatagramTransport | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._closed = False
        self._at = 0.0
        self._offset = time.time() - _since_boot()

    def __repr__(self) -> str:
        return f"<SQLiteJournal {self._path}, account {self._account!r}>"

    def now(self) -> float:
        """Unix time, or what it was before somebody set it; never behind an entry that was read."""
        return max(self._at, _since_boot() + self._offset)

    async def append(
        self, last: int, process: str, lines: list[Line], room: Room | None = None, *, wake: str | None = None
    ) -> Read:
        """Enter lines, all or none, and read what others entered since."""
        read = await self._run(lambda: self._append(last, process, lines, room))
        if wake is not None and read.appended:
            self.wake(wake)
        if read.lost:
            self._at = 0.0
        if read.entries:
            self._at = max(self._at, read.entries[-1].at)
        elif room is not None and not (read.lost or read.snapshot):
            await asyncio.sleep(self._file.settling())
        return read

    async def prune(self, state: State) -> None:
        """Keep the state, and forget entries before the state that was kept before."""
        await self._run(lambda: self._prune(state))

    async def claim(self, organization: str) -> list[str]:
        """Keep that the account is this organization's; all accounts of the file that are."""
        return await self._run(lambda: self._claim(organization))

    async def listen(self, on_wake: Callable[[], None]) -> str:
        """Receive datagrams on a free port of loopback."""

        class Receiver(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: object) -> None:
                on_wake()

        loop = asyncio.get_running_loop()
        try:
            self._socket, _ = await loop.create_datagram_endpoint(Receiver, local_addr=("127.0.0.1", 0))
        except OSError as exc:
            raise LedgerUnavailable(f"no port of loopback to be woken on: {exc}") from exc
        self._watch(on_wake)
        return str(self._socket.get_extra_info("sockname")[1])

    def wake(self, address: str) -> None:
        """Send a datagram."""
        if self._socket is not None and address.isdecimal():
            self._socket.sendto(b"!", ("127.0.0.1", int(address)))

    def _watch(self, on_wake: Callable[[], None]) -> None:
        """What a process knows it is to enter soon, even if it has no other reason to look."""
        with suppress(OSError):  # which the next entry meets as well
            if self._file.opened != self._opened or self._file.is_replaced():
                on_wake()
        self._watching = asyncio.get_running_loop().call_later(WATCH, self._watch, on_wake)

    async def aclose(self) -> None:
        """Close the file and the socket."""
        if self._closed:
            return
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        if self._socket is not None:
            self._socket.close()
        try:
            await asyncio.shield(self._run(self._file.release))
        finally:
            self._thread.shutdown(wait=False)

    # -- in the thread ----------------------------------------------------------------------------------------

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._translated, work)

    def _translated(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except (OSError, sqlite3.OperationalError) as exc:
            raise LedgerUnavailable(f"{self._path}: {exc}") from exc
        except (sqlite3.DatabaseError, ValueError) as exc:  # or a line of it is no JSON
            raise ConfigurationError(f"{self._path} is no ledger of kimi_async: {exc}; name another file") from exc

    def _append(self, last: int, process: str, lines: list[Line], room: Room | None) -> Read:
        lasts = any(operation in LASTING for operation, _ in lines)
        with self._file.transaction(writes=bool(lines), lasts=lasts) as connection:
            account = self._about(connection)
            elsewhere, self._opened = self._opened != self._file.opened, self._file.opened
            lost = (last >= account.pruned or elsewhere) and not self._holds(connection, account, last)
            anew = lost or last < account.pruned or last == 0
            snapshot = self._snapshot(connection, account) if anew and account.kept else None
            after = account.kept if anew else last
            entries = self._after(connection, account, after) if account.last > after else []
            stale = room is not None and account.tight > last and (snapshot is not None or tightened(entries, room))
            if not lines or lost or stale or (room is not None and self._file.settling()):
                return Read(snapshot, entries, appended=False, lost=lost)
            own = self._enter(connection, account, process, lines)
        return Read(snapshot, entries + own, appended=True)

    def _about(self, connection: sqlite3.Connection) -> _Account:
        """What is known of the account, nothing if it has no entry; and with it the clock."""
        query = "SELECT number, last, boot, offset, tight, kept, pruned FROM account WHERE name = ?"
        row = connection.execute(query, (self._account,)).fetchone()
        account = _Account(*(row or ()))
        same = account.boot == self._boot
        self._offset = account.offset if same else max(account.last / 1e6 - _since_boot(), self._offset)
        return account

    def _holds(self, connection: sqlite3.Connection, account: _Account, last: int) -> bool:
        if last in {0, account.last}:
            return True
        query = "SELECT 1 FROM journal WHERE account = ? AND id = ?"
        return connection.execute(query, (account.number, last)).fetchone() is not None

    def _snapshot(self, connection: sqlite3.Connection, account: _Account) -> State:
        query = "SELECT snapshot FROM account WHERE number = ?"
        state: State = json.loads(connection.execute(query, (account.number,)).fetchone()[0])
        return state

    def _after(self, connection: sqlite3.Connection, account: _Account, last: int) -> list[Entry]:
        query = "SELECT id, process, operation, detail FROM journal WHERE account = ? AND id > ? ORDER BY id"
        rows = connection.execute(query, (account.number, last)).fetchall()
        return [
            Entry(id_, id_ / 1e6, process, operation, json.loads(detail)) for id_, process, operation, detail in rows
        ]

    def _enter(
        self, connection: sqlite3.Connection, account: _Account, process: str, lines: list[Line]
    ) -> list[Entry]:
        number = account.number or self._begin_account(connection)
        first = max(account.last + 1, math.ceil((_since_boot() + self._offset) * 1e6))
        own = [Entry(id_, id_ / 1e6, process, *line) for id_, line in enumerate(lines, start=first)]
        connection.executemany(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?)",
            [(number, entry.id, process, entry.operation, json.dumps(entry.detail)) for entry in own],
        )
        tightening = [entry.id for entry in own if entry.operation in TIGHTENING]
        connection.execute(
            "UPDATE account SET last = ?, boot = ?, offset = ?, tight = ? WHERE number = ?",
            (own[-1].id, self._boot, self._offset, max(tightening, default=account.tight), number),
        )
        return own

    def _begin_account(self, connection: sqlite3.Connection) -> int:
        connection.execute("INSERT OR IGNORE INTO account (name) VALUES (?)", (self._account,))
        query = "SELECT number FROM account WHERE name = ?"
        number: int = connection.execute(query, (self._account,)).fetchone()[0]
        return number

    def _prune(self, state: State) -> None:
        written = json.dumps(state)
        with self._file.transaction(writes=True, lasts=True) as connection:
            account = self._about(connection)
            if state["last"] <= account.kept or not self._holds(connection, account, state["last"]):
                return  # somebody kept a later one, or the state is that of a journal which the file has lost
            connection.execute(
                "UPDATE account SET kept = ?, snapshot = ?, pruned = ? WHERE number = ?",
                (state["last"], written, account.kept, account.number),
            )
            connection.execute("DELETE FROM journal WHERE account = ? AND id < ?", (account.number, account.kept))

    def _claim(self, organization: str) -> list[str]:
        with self._file.transaction(writes=True) as connection:
            number = self._begin_account(connection)
            connection.execute("UPDATE account SET organization = ? WHERE number = ?", (organization, number))
            query = "SELECT name FROM account WHERE organization = ? ORDER BY name"
            return [name for (name,) in connection.execute(query, (organization,))]


def _since_boot() -> float:
    """Seconds since the machine's boot, its sleep included where the system counts that."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _boot() -> str:
    """A name of this boot of the machine; of this process, where the system gives no other."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return uuid.uuid4().hex
