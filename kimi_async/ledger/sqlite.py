"""A journal in a SQLite file, for the processes of one machine.

One transaction an entry, or a few of them, in a thread of its own.

**The clock.** Unix time may be set forward or back at any moment; windows and leases must not follow. So the journal's
clock is the one that counts seconds since the machine's boot, which is the same for all processes, plus an offset that
is set to show Unix time with the first entry of each boot.

Processes wake each other with datagrams on
loopback, which may be lost: then they look again after a second.
"""

import asyncio
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from kimi_async.budgets import Room
from kimi_async.errors import ConfigurationError, LedgerUnavailable

from .journal import TIGHTENING, Line, Read, tightened
from .replica import Entry
from .snapshot import State

Result = TypeVar("Result")

APPLICATION_ID = 0x4B696D69
"""``Kimi`` in the file's header: what tells our files from others (https://www.sqlite.org/fileformat.html)."""

SCHEMA_VERSION = 1

BUSY = 10.0
"""Seconds that a transaction waits for those of other processes, which take a tenth of a millisecond each."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Where Linux names the machine's boot (random(4))."""

_SCHEMA = """
CREATE TABLE account (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, last INTEGER NOT NULL DEFAULT 0,
                      at REAL NOT NULL DEFAULT 0, boot TEXT, offset REAL NOT NULL DEFAULT 0,
                      tight INTEGER NOT NULL DEFAULT 0, pruned INTEGER NOT NULL DEFAULT 0, snapshot TEXT,
                      organization TEXT);
CREATE TABLE journal (account INTEGER NOT NULL, id INTEGER NOT NULL, at REAL NOT NULL, process TEXT NOT NULL,
                      operation TEXT NOT NULL, detail TEXT NOT NULL, PRIMARY KEY (account, id)) WITHOUT ROWID;
"""


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
        self._busy = busy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kimi_async ledger")
        self._connection: sqlite3.Connection | None = None
        self._number = 0
        self._boot = _boot()
        self._socket: asyncio.DatagramTransport | None = None
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
        if read.entries:
            self._at = max(self._at, read.entries[-1].at)
        if wake is not None and read.appended:
            self.wake(wake)
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
        return str(self._socket.get_extra_info("sockname")[1])

    def wake(self, address: str) -> None:
        """Send a datagram."""
        if self._socket is not None and address.isdecimal():
            self._socket.sendto(b"!", ("127.0.0.1", int(address)))

    async def aclose(self) -> None:
        """Close the file and the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._connection is not None:
            await self._run(self._close)
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

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._recognize()
            connection = sqlite3.connect(self._path, timeout=self._busy, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _recognize(self) -> None:
        """Refuse what is neither a ledger nor empty, on a connection that cannot write, so it is left as it is."""
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=self._busy, isolation_level=None)
        try:
            with _deferred(connection):
                (application,) = connection.execute("PRAGMA application_id").fetchone()
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
        if application != APPLICATION_ID and (application or tables):
            raise ConfigurationError(f"{self._path} is a database of something else; name another file")
        if application == APPLICATION_ID and version != SCHEMA_VERSION:
            raise ConfigurationError(f"{self._path} has version {version}, this package writes {SCHEMA_VERSION}")

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make a ledger of an empty file, and see that the account is in it."""
        self._write_ahead(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        with _immediate(connection):
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            if application != APPLICATION_ID:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("INSERT OR IGNORE INTO account (name) VALUES (?)", (self._account,))
            query = "SELECT number FROM account WHERE name = ?"
            (self._number,) = connection.execute(query, (self._account,)).fetchone()

    def _write_ahead(self, connection: sqlite3.Connection) -> None:
        """Change the file's mode, which does not wait for other connections by itself as transactions do."""
        deadline = time.monotonic() + self._busy
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                with _immediate(connection):
                    pass  # whoever is writing has finished
            else:
                return

    def _append(self, last: int, process: str, lines: list[Line], room: Room | None) -> Read:
        connection = self._open()
        with _immediate(connection) if lines else _deferred(connection):
            query = "SELECT last, at, boot, offset, tight, pruned FROM account WHERE number = ?"
            newest, at, boot, offset, tight, pruned = connection.execute(query, (self._number,)).fetchone()
            self._offset = offset if boot == self._boot else max(at, time.time()) - _since_boot()
            stale = room is not None and tight > last
            snapshot: State | None = self._snapshot(connection) if last < pruned else None
            last = last if snapshot is None else snapshot["last"]
            entries = self._after(connection, last) if newest > last else []
            if not lines or (stale and (snapshot is not None or tightened(entries, room or Room()))):
                return Read(snapshot, entries, appended=False)
            at = max(at, _since_boot() + self._offset)
            own = [Entry(newest + n, at, process, *line) for n, line in enumerate(lines, start=1)]
            connection.executemany(
                "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)",
                [(self._number, entry.id, at, process, entry.operation, json.dumps(entry.detail)) for entry in own],
            )
            tightening = [entry.id for entry in own if entry.operation in TIGHTENING]
            connection.execute(
                "UPDATE account SET last = ?, at = ?, boot = ?, offset = ?, tight = ? WHERE number = ?",
                (own[-1].id, at, self._boot, self._offset, max(tightening, default=tight), self._number),
            )
        return Read(snapshot, entries + own, appended=True)

    def _snapshot(self, connection: sqlite3.Connection) -> State:
        query = "SELECT snapshot FROM account WHERE number = ?"
        state: State = json.loads(connection.execute(query, (self._number,)).fetchone()[0])
        return state

    def _after(self, connection: sqlite3.Connection, last: int) -> list[Entry]:
        query = "SELECT id, at, process, operation, detail FROM journal WHERE account = ? AND id > ? ORDER BY id"
        rows = connection.execute(query, (self._number, last)).fetchall()
        return [Entry(id_, at, process, operation, json.loads(detail)) for id_, at, process, operation, detail in rows]

    def _prune(self, state: State) -> None:
        connection = self._open()
        with _immediate(connection):
            query = "SELECT pruned, snapshot FROM account WHERE number = ?"
            pruned, kept = connection.execute(query, (self._number,)).fetchone()
            before = json.loads(kept)["last"] if kept else pruned
            if state["last"] <= before:
                return
            connection.execute(
                "UPDATE account SET snapshot = ?, pruned = ? WHERE number = ?",
                (json.dumps(state), before, self._number),
            )
            connection.execute("DELETE FROM journal WHERE account = ? AND id <= ?", (self._number, before))

    def _claim(self, organization: str) -> list[str]:
        connection = self._open()
        with _immediate(connection):
            connection.execute("UPDATE account SET organization = ? WHERE number = ?", (organization, self._number))
            query = "SELECT name FROM account WHERE organization = ? ORDER BY name"
            return [name for (name,) in connection.execute(query, (organization,))]

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _since_boot() -> float:
    """Seconds since the machine's boot, its sleep included where the system counts that."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _boot() -> str:
    """A name of this boot of the machine; of this process, where the system gives no other."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return uuid.uuid4().hex


@contextmanager
def _immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that holds the right to write from its beginning."""
    with _transaction(connection, "BEGIN IMMEDIATE"):
        yield


@contextmanager
def _deferred(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that sees one state and stops nobody."""
    with _transaction(connection, "BEGIN"):
        yield


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors have ended it already
            connection.execute("ROLLBACK")
        raise
