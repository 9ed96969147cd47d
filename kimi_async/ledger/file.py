"""A SQLite file that processes share: made, recognized, and opened anew where somebody has removed or replaced it.

**Removed.** A file that was removed, or replaced by a backup, lives on for those who have it open; so does its log
(``-wal``) and the index to that (``-shm``). They would go on in books that nobody else sees. So every transaction
compares what is at the path with what was opened, and begins in what is there now. While processes find out and enter
what they know, nobody reserves: for ``SETTLING`` seconds after a file was made or came to another place.

What living processes know of their accounts survives that, and nothing else. A file that is overwritten in its place
is no ledger afterwards, and a copy beside another file's log is read together with that
(https://www.sqlite.org/howtocorrupt.html): remove all three, then move a backup to the path.

**A process has one connection to a file.** SQLite keeps the index once a process, so a removed one is let go of only
when all connections are closed (https://www.sqlite.org/src/file/src/os_unix.c, unixShmNode).

**Power cuts.** What was committed survives the death of every process. A power cut, or a crash of the system, takes
the last commits, those since the log was last synchronized with the disk, which commits need not wait for
(``synchronous = NORMAL`` with a log, https://www.sqlite.org/pragma.html#pragma_synchronous). Commits that are to last
do wait (``FULL``), and so does a process' first one ``SYNCED`` seconds or more after the last of it that did; with a
commit lasts all that came before it, whoever's it was. So no more is lost than the entries of ``SYNCED`` seconds, as
far as the disk has written what it says.
"""

import os
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

from kimi_async.errors import ConfigurationError

APPLICATION_ID = 0x4B696D69
"""``Kimi`` in the file's header: what tells our files from others (https://www.sqlite.org/fileformat.html)."""

SCHEMA_VERSION = 2

BUSY = 10.0
"""Seconds that a transaction waits for those of other processes, which take a tenth of a millisecond each."""

WATCH = 0.1
"""Seconds between two looks, of a process with nothing to enter, whether the file is still there."""

SETTLING = 0.5
"""Seconds after a file was made or replaced in which nobody reserves: those who know more than it does come first."""

SYNCED = 10.0
"""Seconds of which a power cut may take the entries."""

_TRIES = 10

_SCHEMA = """
CREATE TABLE file (inode TEXT NOT NULL, since REAL NOT NULL);
INSERT INTO file VALUES ('', 0);
CREATE TABLE account (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, last INTEGER NOT NULL DEFAULT 0,
                      boot TEXT, offset REAL NOT NULL DEFAULT 0, tight INTEGER NOT NULL DEFAULT 0,
                      kept INTEGER NOT NULL DEFAULT 0, snapshot TEXT, pruned INTEGER NOT NULL DEFAULT 0,
                      organization TEXT);
CREATE TABLE journal (account INTEGER NOT NULL, id INTEGER NOT NULL, process TEXT NOT NULL, operation TEXT NOT NULL,
                      detail TEXT NOT NULL, PRIMARY KEY (account, id)) WITHOUT ROWID;
"""

_Place = tuple[int, int] | None

_HIDDEN = 0, 0
"""The place of what cannot be looked at, which may be there still."""


class LedgerFile:
    """One process' connection to the file; any of its threads may use it, one at a time.

    Args:
        path: created if need be, for its owner alone.
        busy: seconds that a transaction waits for those of other processes.

    Attributes:
        users: how many have still to release it.
        opened: how often it was; whoever finds that this has changed may find another file.
    """

    def __init__(self, path: Path, *, busy: float = BUSY) -> None:
        self.path = path
        self.users = 0
        self.opened = 0
        self._busy = busy
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._names: tuple[str, ...] = ()
        self._places: tuple[_Place, ...] = ()
        self._was_replaced = False
        self._settled = 0.0
        self._synced = time.monotonic()
        self._synchronous = ""

    def release(self) -> None:
        """Close the connection, if nobody else uses it."""
        with self._lock:
            with _COUNTING:
                self.users -= 1
            if not self.users:
                self._close()

    def settling(self) -> float:
        """Seconds for which nobody may reserve; of a file that was not opened yet, 0."""
        return max(self._settled - time.monotonic(), 0.0)

    def is_replaced(self) -> bool:
        """Whether something else, or nothing, is at the path by now."""
        return self._connection is not None and self._places != self._look()

    def _look(self) -> tuple[_Place, ...]:
        return tuple([_place(name) for name in self._names])

    @contextmanager
    def transaction(self, *, writes: bool, lasts: bool = False) -> Iterator[sqlite3.Connection]:
        """One that holds the right to write from its beginning; or that sees one state, and stops nobody.

        Args:
            writes: which of the two.
            lasts: it is to survive a power cut as soon as it has ended.
        """
        with self._lock:
            synchronous = "FULL" if lasts or time.monotonic() - self._synced >= SYNCED else "NORMAL"
            connection = self._begin("BEGIN IMMEDIATE", synchronous) if writes else self._begin("BEGIN")
            with _ending(connection):
                yield connection
            if writes and synchronous == "FULL":
                self._synced = time.monotonic()

    def _begin(self, begin: str, synchronous: str = "") -> sqlite3.Connection:
        """In the file that is at the path after it has begun."""
        for _ in range(_TRIES):
            connection = self._connection or self._open()
            try:
                if synchronous not in {"", self._synchronous}:
                    connection.execute(f"PRAGMA synchronous = {synchronous}")  # has no effect within a transaction
                    self._synchronous = synchronous
                connection.execute(begin)
                replaced = self.is_replaced()
            except sqlite3.DatabaseError:
                if not (replaced := self.is_replaced()):
                    raise
            if not replaced:
                return connection
            self._close()
        raise sqlite3.OperationalError("it is being replaced again and again")

    # -- opening ------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        self._recognize()
        place = os.stat(self.path)  # noqa: PTH116 - see _place
        connection = sqlite3.connect(self.path, timeout=self._busy, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection, place)
            real = os.path.realpath(self.path)  # SQLite names them by it
            self._names = str(self.path), f"{real}-wal", f"{real}-shm"
            self._places = _known(place), *self._look()[1:]
        except BaseException:
            connection.close()
            raise
        self._connection, self._was_replaced = connection, False
        self.opened += 1
        self._synchronous = "NORMAL"
        return connection

    def _recognize(self) -> None:
        """Refuse what is neither a ledger nor empty, on a connection that cannot write, so it is left as it is."""
        if not self.path.stat().st_size:
            return
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=self._busy, isolation_level=None)
        try:
            connection.execute("BEGIN")
            with _ending(connection):
                (application,) = connection.execute("PRAGMA application_id").fetchone()
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
        if application != APPLICATION_ID and (application or tables):
            raise ConfigurationError(f"{self.path} is a database of something else; name another file")
        if application == APPLICATION_ID and version != SCHEMA_VERSION:
            raise ConfigurationError(
                f"{self.path} is of another version of this package ({version}, this one writes {SCHEMA_VERSION}): "
                "name another file, or remove it when no process uses it; what it knows of the day is lost then"
            )

    def _prepare(self, connection: sqlite3.Connection, place: os.stat_result) -> None:
        """Make a ledger of an empty file, and see how long it has been here."""
        self._write_ahead(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        with _ending(connection):
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            if application != APPLICATION_ID:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            inode, since = connection.execute("SELECT inode, since FROM file").fetchone()
            if self._was_replaced or inode != str(place.st_ino):
                since = time.time()
                connection.execute("UPDATE file SET inode = ?, since = ?", (str(place.st_ino), since))
        here = time.time() - since
        self._settled = time.monotonic() + (SETTLING - here if 0 <= here < SETTLING else 0.0)

    def _write_ahead(self, connection: sqlite3.Connection) -> None:
        """Change the file's mode, which does not wait for other connections by itself as transactions do."""
        deadline = time.monotonic() + self._busy
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")  # whoever is writing has finished
            else:
                return

    # -- closing ------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        places = self._look()
        if places == self._places:
            connection.close()
            return
        self._was_replaced = True
        if places[0] in {self._places[0], _HIDDEN}:
            _close_without_checkpoint(connection, self.path)
        else:
            connection.close()  # which sees that
            self._remove_log(places)

    def _remove_log(self, places: tuple[_Place, ...]) -> None:
        """Or whoever opens what has replaced the file would take the old one's log for its own."""
        for name, place, before in zip(self._names[1:], places[1:], self._places[1:], strict=True):
            if place is not None and place == before:
                with suppress(OSError):
                    os.unlink(name)  # noqa: PTH108 - see _place


_FILES: WeakValueDictionary[tuple[int, str], LedgerFile] = WeakValueDictionary()
_COUNTING = threading.Lock()


def shared_file(path: Path, busy: float = BUSY) -> LedgerFile:
    """The one of this process at a path, however that is spelled; whoever asked for it releases it.

    A fork may not use its parent's: open a ledger after a fork.
    """
    key = os.getpid(), os.path.realpath(path)
    with _COUNTING:
        file = _FILES.get(key)
        if file is None or not file.users:
            file = _FILES[key] = LedgerFile(path.absolute(), busy=busy)
        file.users += 1
    return file


@contextmanager
def _ending(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit the transaction that has begun, or roll it back."""
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors have ended it already
            connection.execute("ROLLBACK")
        raise


def _place(name: str) -> _Place:
    """Where a file's content is; None if there is none, or the file system does not number files."""
    try:
        return _known(os.stat(name))  # noqa: PTH116 - a third faster than Path.stat, and three a transaction
    except FileNotFoundError:
        return None
    except OSError:  # which whoever opens it will meet
        return _HIDDEN


def _known(found: os.stat_result) -> _Place:
    return (found.st_dev, found.st_ino) if found.st_ino else None


def _close_without_checkpoint(connection: sqlite3.Connection, path: Path) -> None:
    """Keep a connection whose log was removed from writing that into the file, which others may have changed since."""
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)  # by position only
    guard = _lock_like_another_process(path) if sys.platform == "linux" else None
    connection.close()
    if guard is not None:
        os.close(guard)


def _lock_like_another_process(path: Path) -> int | None:
    """A lock with which SQLite takes the file for open elsewhere: then it leaves it as it is.

    Sources: https://www.sqlite.org/src/file/src/os_unix.c, SHARED_FIRST; fcntl_locking(2), open file description
    locks.
    """
    import fcntl  # noqa: PLC0415 - not everywhere

    try:
        guard = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    with suppress(OSError):  # closed in any case, but after the connection, whose locks go with it
        fcntl.fcntl(guard, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 0x40000002, 510, 0))
    return guard
