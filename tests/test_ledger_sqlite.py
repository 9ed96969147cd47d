"""A ledger in a file: what kind of file, what it refuses, and real processes on it, some of them killed."""

import asyncio
import json
import multiprocessing
import os
import signal
import sqlite3
import stat
import threading
import time
from collections import Counter

import pytest

from kimi_async.budgets import GUARD, Charge, Room
from kimi_async.errors import ConfigurationError, LedgerUnavailable
from kimi_async.ledger import file, open_ledger, session, sqlite
from kimi_async.ledger.file import APPLICATION_ID, SCHEMA_VERSION, LedgerFile
from kimi_async.ledger.shared import SharedLedger
from kimi_async.ledger.snapshot import dump
from kimi_async.ledger.sqlite import SQLiteJournal
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits

pytestmark = pytest.mark.real_time

ONE = Cost(10)
WIDE = RateLimits(concurrency=100_000, tpd=10_000_000)


@pytest.fixture
def path(tmp_path):
    """Where a ledger may be."""
    return tmp_path / "ledger.sqlite3"


@pytest.fixture(autouse=True)
def settling(request, monkeypatch):
    """Nobody else knows of these files, but where a test is about that."""
    if "settles" not in request.fixturenames:
        monkeypatch.setattr(file, "SETTLING", 0.0)


@pytest.fixture
def settles():
    """Somebody may know of this file."""


@pytest.fixture
def apart(monkeypatch):
    """Each journal has its own connection, as in a process of its own."""

    def new(path, busy=file.BUSY):
        opened = LedgerFile(path, busy=busy)
        opened.users = 1
        return opened

    monkeypatch.setattr(sqlite, "shared_file", new)


async def ledger_at(path, limits=WIDE, account="default"):
    """One process' end of the ledger there."""
    ledger = await open_ledger(f"sqlite://{path}", account=account, when_away="fail")
    ledger.configure(limits)
    return ledger


async def spend(ledger, tokens, times=1):
    """Requests from their beginning to their end."""
    for _ in range(times):
        charge = await ledger.reserve(Cost(tokens))
        assert isinstance(charge, Charge), charge
        ledger.sent(charge)
        ledger.end(charge, answered=True)


async def test_accounts_of_one_organization_learn_of_each_other(path):
    """However often they say so; the last word counts."""
    journals = [SQLiteJournal(path, account) for account in ("z", "a", "a")]
    assert [await journal.claim("org-1") for journal in journals] == [["z"], ["a", "z"], ["a", "z"]]
    assert await journals[0].claim("org-2") == ["z"]
    assert await journals[1].claim("org-1") == ["a"]
    for journal in journals:
        await journal.aclose()


def rows(path, query):
    """What a query finds in the file."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


# -- the file -------------------------------------------------------------------------------------------------


async def test_a_new_file_is_its_owners_alone(tmp_path):
    """Mode 0600, in directories that are made; it writes ahead, and says what it is."""
    path = tmp_path / "some" / "where" / "ledger.sqlite3"
    ledger = await ledger_at(path)
    await spend(ledger, 10)
    await ledger.refresh()
    for one in path.parent.iterdir():
        assert stat.S_IMODE(one.stat().st_mode) == 0o600
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    assert rows(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert rows(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
    await ledger.aclose()
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def foreign(path):
    """A database of somebody else, with something still in its write-ahead log."""
    theirs = path.with_name("theirs")
    connection = sqlite3.connect(theirs)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    for suffix in ("", "-wal"):  # before its last connection writes the log into it
        path.with_name(path.name + suffix).write_bytes(theirs.with_name(theirs.name + suffix).read_bytes())
    connection.close()
    assert path.with_name(path.name + "-wal").stat().st_size


def corrupt(path):
    """A ledger whose pages are gone."""
    path.write_bytes(b"SQLite format 3\x00" + bytes(range(256)) * 40)


def no_database(path):
    """A text."""
    path.write_text("Dear diary,\n" * 1000)


def of_tomorrow(path):
    """A ledger of a later version."""
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.execute("CREATE TABLE account (x)")
    connection.close()


def of_another_application(path):
    """Empty but for its mark."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA application_id = 7")
    connection.close()


@pytest.mark.parametrize("make", [foreign, corrupt, no_database, of_tomorrow, of_another_application])
async def test_what_is_no_ledger_is_left_as_it_is(path, make):
    """To the byte, and so is its log; the error names the file."""
    make(path)
    files = [one for one in path.parent.glob(f"{path.name}*") if not one.name.endswith("-shm")]
    before = [one.read_bytes() for one in files]
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=path.name):
            await ledger_at(path)
    assert [one.read_bytes() for one in files] == before


async def test_an_empty_file_becomes_a_ledger(path):
    """Such as mktemp makes."""
    path.touch()
    ledger = await ledger_at(path)
    await spend(ledger, 10)
    await ledger.aclose()
    assert rows(path, "SELECT name FROM account") == [("default",)]


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.parent.joinpath("x").touch()])
async def test_what_cannot_be_opened(path, make):
    """A directory, or a file where a directory should be: an error, and no waiting for ever."""
    make(path)
    with pytest.raises(LedgerUnavailable):
        await open_ledger(f"sqlite://{path if path.is_dir() else path.parent / 'x' / 'ledger.sqlite3'}")


async def test_one_file_has_one_connection_however_it_is_spelled(path, monkeypatch):
    """Also when the process has gone to another directory."""
    (path.parent / "x").mkdir()
    monkeypatch.chdir(path.parent)
    spellings = [path, path.relative_to(path.parent), path.parent / "x" / ".." / path.name]
    journals = [SQLiteJournal(spelling, "default") for spelling in reversed(spellings)]
    read = await journals[0].append(0, "a", [("alive", {})])
    monkeypatch.chdir("x")
    for journal in journals:
        assert not (await journal.append(read.entries[-1].id, "a", [])).lost
    assert len({id(journal._file) for journal in journals}) == 1
    assert journals[0]._file.opened == 1
    for journal in journals:
        await journal.aclose()


async def test_what_opening_was_stopped_by_leaves_nothing_open(path, monkeypatch):
    """Be it no error of ours."""
    closed = []

    async def refresh(self):
        closed.append(self._journal)
        raise ZeroDivisionError

    monkeypatch.setattr(SharedLedger, "refresh", refresh)
    with pytest.raises(ZeroDivisionError):
        await ledger_at(path)
    assert closed[0]._closed


async def test_closing_that_is_cancelled_closes_the_file(path):
    """As soon as its thread has the time, which ends then."""
    journal, busy = SQLiteJournal(path, "default"), threading.Event()
    await journal.append(0, "a", [("alive", {})])
    journal._thread.submit(busy.wait)
    closing = asyncio.ensure_future(journal.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    busy.set()
    await asyncio.to_thread(journal._thread.shutdown)
    assert (journal._file.users, journal._file._connection) == (0, None)


async def test_accounts_in_one_file_are_separate(path):
    """Limits, usage, slots."""
    mine = await ledger_at(path, RateLimits(concurrency=1), "mine")
    yours = await ledger_at(path, RateLimits(concurrency=2), "yours")
    held = [await mine.reserve(ONE), await yours.reserve(ONE), await yours.reserve(ONE)]
    assert all(isinstance(charge, Charge) for charge in held)
    await yours.refresh()
    assert (mine.usage().concurrency.used, yours.usage().concurrency.used) == (1, 2)
    await mine.aclose()
    await yours.aclose()


async def test_a_busy_file_is_an_error_within_the_bound(path):
    """Somebody holds the right to write, and does not let go; when he does, all is entered."""
    ledger = SharedLedger(SQLiteJournal(path, "default", busy=0.1), when_away="fail")
    charge = await ledger.reserve(ONE)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    ledger.sent(charge)
    began = time.monotonic()
    with pytest.raises(LedgerUnavailable, match="locked"):
        await ledger.reserve(ONE)
    assert time.monotonic() - began < 1
    writer.execute("ROLLBACK")
    writer.close()
    ledger.end(charge, answered=True)
    async with asyncio.timeout(3):
        while ledger.usage().requests_sent == 0:
            await ledger.refresh()
    await ledger.aclose()


async def test_a_days_tokens_survive_a_restart(path):
    """To the token; whatever was under way counts."""
    limits = RateLimits(tpd=1_000_000, concurrency=5)
    first = await ledger_at(path, limits)
    for tokens in (1, 20, 300, 4000):
        await spend(first, tokens)
    charge = await first.reserve(Cost(50_000))
    first.sent(charge)
    await first.aclose()
    second = await ledger_at(path, limits)
    second.cancel(await second.reserve(Cost(0)))
    await second.refresh()
    usage = second.usage()
    assert (usage.tpd.used, usage.tokens_charged, usage.concurrency.used) == (54_321, 54_321, 0)
    await second.aclose()


async def test_ten_thousand_reservations_leave_a_small_file(path):
    """Journals are pruned; a late-comer has the same books from what is left."""
    ledger = await ledger_at(path, RateLimits(concurrency=100_000, minute=0.5))
    for _ in range(100):
        await asyncio.gather(*(spend(ledger, 10) for _ in range(100)))
    await ledger.refresh()
    assert rows(path, "SELECT count(*) FROM journal")[0][0] < 3 * session.KEPT
    late = await ledger_at(path, RateLimits(concurrency=100_000, minute=0.5))
    await late.refresh()
    await ledger.refresh()
    assert late.usage().requests_sent == 10_000
    assert dump(late._session.replica) == dump(ledger._session.replica)
    await late.aclose()
    await ledger.aclose()
    assert path.stat().st_size < 3_000_000


async def test_who_is_behind_the_snapshot_is_not_let_in_on_what_it_remembers(path):
    """Something tightened after what it knows, and before the snapshot."""
    journal = SQLiteJournal(path, "default")
    read = await journal.append(0, "a", [("reserve", {"tokens": 1})] * 4)
    read = await journal.append(read.entries[-1].id, "a", [("alive", {})] * 6)
    every = [id_ for (id_,) in rows(path, "SELECT id FROM journal ORDER BY id")]
    for kept in (every[2], every[7], every[6]):
        await journal.prune({"last": kept})
    assert [id_ for (id_,) in rows(path, "SELECT id FROM journal ORDER BY id")] == every[2:]
    read = await journal.append(every[0], "b", [("reserve", {"tokens": 1})], room=Room())
    assert (read.appended, read.lost) == (False, False)
    assert (read.snapshot, [entry.id for entry in read.entries]) == ({"last": every[7]}, every[8:])
    read = await journal.append(every[-1], "b", [("reserve", {"tokens": 1})], room=Room())
    assert read.appended
    await journal.aclose()


async def test_no_state_is_kept_of_what_the_journal_does_not_hold(path):
    """A file was replaced while somebody wrote down what the old one held."""
    journal = SQLiteJournal(path, "default")
    read = await journal.append(0, "a", [("alive", {})])
    await journal.prune({"last": read.entries[-1].id + 1})
    assert rows(path, "SELECT kept, snapshot FROM account") == [(0, None)]
    await journal.aclose()


async def test_an_error_in_a_transaction_leaves_none_open(path):
    """The next one works."""
    journal = SQLiteJournal(path, "default")
    with pytest.raises(TypeError):
        await journal.append(0, "a", [("reserve", {"tokens": object()})])
    read = await journal.append(0, "a", [("alive", {})])
    assert [entry.operation for entry in read.entries] == ["alive"]
    await journal.aclose()


async def test_ids_are_stamps_that_rise(path):
    """Microseconds of the clock; several lines of one moment have one each."""
    journal, began = SQLiteJournal(path, "default"), time.time()
    last, ids = 0, []
    for _ in range(50):
        read = await journal.append(last, "a", [("alive", {})] * 4)
        last = read.entries[-1].id
        ids += [entry.id for entry in read.entries]
        assert all(entry.at == entry.id / 1e6 for entry in read.entries)
    assert ids == sorted(set(ids))
    assert began - 0.1 < ids[0] / 1e6 <= ids[-1] / 1e6 < time.time() + 0.1
    await journal.aclose()


class Machine:
    """Its clocks: the one that anybody may set, and the one that counts from its boot."""

    def __init__(self, monkeypatch, boot_id):
        self.wall, self.since_boot, self.boot_id = 1_000_000.0, 100.0, boot_id
        self.boot("first")
        monkeypatch.setattr(sqlite.time, "time", lambda: self.wall)
        monkeypatch.setattr(sqlite.time, "clock_gettime", lambda clock: self.since_boot)
        monkeypatch.setattr(sqlite, "BOOT_ID", boot_id)

    def boot(self, name):
        self.boot_id.write_text(name)

    def passes(self, seconds):
        self.wall += seconds
        self.since_boot += seconds


class Clock:
    """A journal's stamps since the beginning, one after the other."""

    def __init__(self):
        self.last = 0

    async def __call__(self, journal):
        read = await journal.append(self.last, "a", [("alive", {})])
        assert journal.now() == read.entries[-1].at
        self.last = read.entries[-1].id
        return self.last / 1e6 - 1_000_000.0


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """One whose clocks a test may set."""
    return Machine(monkeypatch, tmp_path / "boot_id")


@pytest.fixture
def stamp():
    """What the clock shows for an entry, since the beginning."""
    return Clock()


async def test_the_systems_clock_may_be_set_forward_and_back(path, machine, stamp):
    """No window empties early, nobody is dead before his time, and nobody waits for a time that has gone."""
    one, other = SQLiteJournal(path, "default"), SQLiteJournal(path, "default")
    stamps = []
    for step in (0, 0, -3600, 86_400, 0.5):
        machine.wall += step
        machine.passes(10)
        stamps.append(await stamp(one if len(stamps) % 2 else other))
    assert stamps == [10, 20, 30, 40, 50]
    late = SQLiteJournal(path, "default")
    machine.passes(1)
    assert await stamp(late) == 51
    for journal in (one, other, late):
        await journal.aclose()


@pytest.mark.parametrize(("away", "shows"), [(3600, 3600), (-3600, 0)], ids=["later", "on a clock that was set back"])
async def test_after_a_boot_time_goes_on_from_the_systems_clock(path, machine, stamp, away, shows):
    """It has counted while nothing else could; but time never falls."""
    before = SQLiteJournal(path, "default")
    await stamp(before)
    await before.aclose()
    machine.wall += away
    machine.since_boot = 3.0
    machine.boot("second")
    after = SQLiteJournal(path, "default")
    assert await stamp(after) == pytest.approx(shows, abs=1e-5)
    machine.passes(10)
    assert await stamp(after) == pytest.approx(shows + 10, abs=1e-5)
    await after.aclose()


async def test_where_boots_have_no_name_time_goes_on_as_well(path, machine, stamp):
    """By the system's clock, if it moves forward."""
    machine.boot_id.unlink()
    one, other = SQLiteJournal(path, "default"), SQLiteJournal(path, "default")
    stamps = []
    for step in (0, 0, -3600, 0, 0):
        machine.wall += step
        machine.passes(10)
        stamps.append(await stamp(one if len(stamps) % 2 else other))
    assert stamps == sorted(stamps)
    await one.aclose()
    await other.aclose()


@pytest.mark.usefixtures("apart")
async def test_a_fresh_file_may_be_opened_by_many_at_once(path):
    """Changing its mode waits for those who write, as every transaction does; what a removed one leaves is no harm."""
    for _ in range(20):
        journals = [SQLiteJournal(path, f"account {n}") for n in range(8)]
        await asyncio.gather(*(journal.append(0, "a", [("alive", {})]) for journal in journals))
        assert rows(path, "SELECT count(*) FROM account") == [(8,)]
        path.unlink()
        for journal in journals:
            await journal.aclose()
        for one in path.parent.glob(f"{path.name}*"):
            one.unlink()


async def test_waking_another_process(path):
    """A datagram on loopback; nonsense in its place is no address."""
    one, other = SQLiteJournal(path, "default"), SQLiteJournal(path, "default")
    woken = asyncio.Event()
    address = await one.listen(woken.set)
    await other.listen(lambda: None)
    other.wake("nowhere")
    other.wake(address)
    async with asyncio.timeout(5):
        await woken.wait()
    await one.aclose()
    await other.aclose()


# -- a file that somebody removes or replaces ------------------------------------------------------------------


def remove_all(path, copy):
    """To start afresh."""
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


def remove_the_file(path, copy):
    """And leave its log."""
    path.unlink()


def remove_the_log(path, copy):
    """What only looks like rubbish."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()


def put_back_a_copy(path, copy):
    """An older state, and its log stays where it is."""
    copy.rename(path)


def put_back_a_copy_over_it(path, copy):
    """As one should."""
    remove_all(path, copy)
    copy.rename(path)


WAYS = [remove_all, remove_the_file, remove_the_log, put_back_a_copy, put_back_a_copy_over_it]


def copy_of(path):
    """What the file holds now, in another."""
    copy = path.with_name("backup")
    source, target = sqlite3.connect(path), sqlite3.connect(copy)
    source.backup(target)
    target.execute("PRAGMA journal_mode = DELETE")
    source.close()
    target.close()
    return copy


@pytest.mark.usefixtures("settles")
@pytest.mark.parametrize(
    ("spoil", "connections"),
    [(spoil, "settles") for spoil in WAYS]
    + [(spoil, "apart") for spoil in WAYS if spoil is not remove_the_log],  # whose index SQLite has once a process
)
async def test_nothing_is_lost_with_the_file(path, request, connections, spoil):
    """Neither windows, nor the day, nor who holds a slot; whoever comes right after that keeps to the limits."""
    request.getfixturevalue(connections)
    limits = RateLimits(concurrency=3, rpm=10, tpd=1_000)
    one, other = await ledger_at(path, limits), await ledger_at(path, limits)
    await spend(one, 1)
    await spend(other, 10)
    copy = copy_of(path)
    await spend(one, 100, times=2)
    await spend(other, 200)
    held = await other.reserve(Cost(50))
    other.sent(held)
    await other.refresh()

    spoil(path, copy)
    third = await ledger_at(path, limits)
    for _ in range(4):
        await spend(third, 5)
    denial = await third.reserve(Cost(5))
    assert denial.reason == "rpm"
    other.end(held, answered=True)
    for ledger in (one, other, third, third, other, one):
        await ledger.refresh()
    usages = [ledger.usage() for ledger in (one, other, third)]
    assert [(usage.rpm.used, usage.tpd.used, usage.concurrency.used) for usage in usages] == [(10, 481, 0)] * 3
    states = [dump(ledger._session.replica) for ledger in (one, other, third)]
    assert states == [states[0]] * 3
    for ledger in (one, other, third):
        await ledger.aclose()
    late = await ledger_at(path, limits)
    await late.refresh()
    assert late.usage().tpd.used == 481
    await late.aclose()


@pytest.mark.usefixtures("settles")
@pytest.mark.parametrize("spoil", WAYS)
async def test_an_idle_process_brings_what_it_knows_by_itself(path, monkeypatch, spoil):
    """Though it has nothing to enter; nobody else is there."""
    idle = await ledger_at(path)
    copy = copy_of(path)
    await spend(idle, 10, times=3)
    await idle.refresh()
    opened, found = LedgerFile._open, asyncio.Event()
    loop = asyncio.get_running_loop()

    def opens(self):
        loop.call_soon_threadsafe(found.set)
        return opened(self)

    monkeypatch.setattr(LedgerFile, "_open", opens)
    spoil(path, copy)
    async with asyncio.timeout(5):
        await found.wait()
    await idle.aclose()
    assert ("recall",) in rows(path, "SELECT operation FROM journal")


async def test_the_clock_goes_on_in_another_file(path, machine, stamp):
    """Though the system's was set since the process began: windows hold what they held."""
    journal = SQLiteJournal(path, "default")
    assert await stamp(journal) == 0
    machine.wall += 3600
    machine.passes(10)
    remove_all(path, None)
    read = await journal.append(stamp.last, "a", [("alive", {})])
    assert (read.lost, read.appended, read.entries) == (True, False, [])
    stamp.last = 0
    assert await stamp(journal) == 10
    await journal.aclose()


async def test_a_file_that_cannot_be_looked_at_is_locked_for_nobody(path):
    """Its log stays, and so does all that is in it."""
    place = path.parent / "place"
    aside = path.parent / "aside"
    journal = SQLiteJournal(place / path.name, "default")
    last = (await journal.append(0, "a", [("alive", {})])).entries[-1].id
    place.rename(aside)
    place.touch()
    for _ in range(2):
        with pytest.raises(LedgerUnavailable):
            await journal.append(last, "a", [("wait", {})])
    writer = sqlite3.connect(aside / path.name, timeout=0, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("ROLLBACK")
    writer.close()
    place.unlink()
    aside.rename(place)
    read = await journal.append(last, "a", [("wait", {})])
    assert ([entry.operation for entry in read.entries], read.lost) == (["wait"], False)
    await journal.aclose()


async def test_prunes_and_claims_go_to_the_file_that_is_there(path):
    """As entries do."""
    journal = SQLiteJournal(path, "default")
    read = await journal.append(0, "a", [("alive", {})])
    remove_all(path, None)
    await journal.prune({"last": read.entries[-1].id})
    assert rows(path, "SELECT count(*) FROM account") == [(0,)]
    remove_all(path, None)
    assert await journal.claim("org-1") == ["default"]
    assert rows(path, "SELECT name, organization FROM account") == [("default", "org-1")]
    await journal.aclose()


async def test_a_log_that_was_removed_is_not_written_into_the_file(path):
    """Others may have changed that since: what was in the log is brought by who knows it."""
    journal = SQLiteJournal(path, "default")
    read = await journal.append(0, "a", [("alive", {})])
    remove_the_log(path, None)
    read = await journal.append(read.entries[-1].id, "a", [("alive", {})])
    assert (read.lost, read.entries) == (True, [])
    await journal.aclose()


async def test_a_file_that_is_replaced_all_the_time(path, monkeypatch):
    """An error, not an endless loop."""
    journal = SQLiteJournal(path, "default")
    await journal.append(0, "a", [("alive", {})])
    monkeypatch.setattr(LedgerFile, "is_replaced", lambda self: True)
    with pytest.raises(LedgerUnavailable, match="again and again"):
        await journal.append(0, "a", [("alive", {})])
    monkeypatch.undo()
    await journal.aclose()


async def test_a_file_systems_that_does_not_number_files(path, monkeypatch):
    """Nothing can be told, so nothing is."""
    monkeypatch.setattr(file, "_known", lambda found: None)
    ledger = await ledger_at(path)
    await spend(ledger, 10, times=3)
    await ledger.refresh()
    assert ledger.usage().tpd.used == 30
    assert ledger._session.journal._file.opened == 1
    await ledger.aclose()


# -- what waits for the disk -----------------------------------------------------------------------------------


async def synchronized(journal, monkeypatch, work):
    """The modes that were set for a piece of work."""
    seen = []
    await journal._run(lambda: journal._file._connection.set_trace_callback(seen.append))
    await work
    await journal._run(lambda: journal._file._connection.set_trace_callback(None))
    return [statement.split()[-1] for statement in seen if statement.startswith("PRAGMA synchronous")]


async def test_what_waits_for_the_disk(path, monkeypatch):
    """A goodbye, what somebody recalls, a snapshot, and otherwise one entry in ten seconds."""
    journal = SQLiteJournal(path, "default")
    last = (await journal.append(0, "a", [("alive", {})])).entries[-1].id

    async def modes(work):
        return await synchronized(journal, monkeypatch, work)

    assert await modes(journal.append(last, "a", [("alive", {})])) == []
    assert await modes(journal.append(last, "a", [("part", {})])) == ["FULL"]
    assert await modes(journal.append(last, "a", [("alive", {})])) == ["NORMAL"]
    assert await modes(journal.append(last, "a", [("recall", {})])) == ["FULL"]
    assert await modes(journal.prune({"last": last})) == []
    assert await modes(journal.append(last, "a", [])) == []
    assert await modes(journal.append(last, "a", [("alive", {})])) == ["NORMAL"]
    clock = time.monotonic
    monkeypatch.setattr(file.time, "monotonic", lambda: clock() + file.SYNCED)
    assert await modes(journal.append(last, "a", [])) == []
    assert await modes(journal.append(last, "a", [("alive", {})])) == ["FULL"]
    assert await modes(journal.append(last, "a", [("alive", {})])) == ["NORMAL"]
    await journal.aclose()


# -- real processes -------------------------------------------------------------------------------------------

SHARED = RateLimits(concurrency=20, rpm=200, minute=2.0)


async def _use(limiter, report):
    async with limiter.acquire(ONE) as reservation:
        reservation.sent()
        report(time.time())
        await asyncio.sleep(0.01)


async def _work(path, requests, report):
    ledger = await ledger_at(path, SHARED)
    limiter = RateLimiter(SHARED, ledger=ledger)
    await asyncio.gather(*(_use(limiter, report) for _ in range(requests)))
    await ledger.aclose()


def _process(name, path, requests, reports, start):
    """What each process does: requests as fast as the limits allow, the time of each written as it is sent."""
    start.wait()
    with open(f"{reports}/{name}", "w", buffering=1) as report:  # noqa: PTH123 - line by line, for one may be killed
        asyncio.run(_work(path, requests, lambda at: print(json.dumps(at), file=report)))


def run(path, reports, processes, requests, *, meanwhile=None, late=0):
    """Spawn them; the times of all requests by process.

    ``meanwhile`` is called with the workers half a second after the first has sent something; ``late`` more come then.
    """
    context = multiprocessing.get_context("spawn")
    reports.mkdir()
    start, none = context.Barrier(processes), context.Barrier(1)
    barriers = [start] * processes + [none] * late
    arguments = [(name, path, requests, reports, barrier) for name, barrier in enumerate(barriers)]
    workers = [context.Process(target=_process, args=each) for each in arguments]
    for worker in workers[:processes]:
        worker.start()
    if meanwhile is not None:
        while not (reports / "0").exists() or not (reports / "0").stat().st_size:
            time.sleep(0.01)  # noqa: TID251 - there is no event loop here
        time.sleep(0.5)  # noqa: TID251 - likewise
        meanwhile(workers)
    for worker in workers[processes:]:
        worker.start()
    for worker in workers:
        worker.join(60)
    codes = [worker.exitcode for worker in workers]
    lines = {name: (reports / str(name)).read_text().splitlines() for name in range(processes + late)}
    return codes, {name: [json.loads(line) for line in written] for name, written in lines.items()}


def most_in_a_minute(times):
    """The most that any sliding minute has seen."""
    return max(sum(end - SHARED.minute < at <= end for at in times) for end in times)


def passed_by(path):
    """For each time that a process stood in line until it was let in: how often each other one was meanwhile."""
    waiting, stretches = {}, []
    for process, operation in rows(path, "SELECT process, operation FROM journal ORDER BY id"):
        if operation == "wait":
            waiting.setdefault(process, Counter())
        elif operation in {"pass", "dead"}:  # one who looks no longer, which a machine under load brings about
            waiting.clear()
        elif operation == "reserve":
            if process in waiting:
                stretches.append(waiting.pop(process))
            for others in waiting.values():
                others[process] += 1
    return stretches


def test_four_processes_are_one_account(path, tmp_path):
    """They never exceed what one may, need hardly longer than one would, and take turns."""
    codes, found = run(path, tmp_path / "reports", 4, 150)
    times = sorted(at for sent in found.values() for at in sent)
    assert codes == [0] * 4
    assert len(times) == 600
    assert most_in_a_minute(times) <= SHARED.rpm
    ideal = 2 * SHARED.minute * (1 + GUARD)  # three windows
    assert ideal <= times[-1] - times[0] < ideal * 2.5  # a turn that nobody is told of takes a second
    turns = passed_by(path)
    assert len(turns) > 100
    assert max(max(others.values(), default=0) for others in turns) == 1


def test_one_of_them_is_killed(path, tmp_path):
    """The others end, within the limits; what was sent stays charged."""
    codes, found = run(
        path, tmp_path / "reports", 3, 150, meanwhile=lambda workers: os.kill(workers[0].pid, signal.SIGKILL)
    )
    assert codes == [-signal.SIGKILL, 0, 0]
    times = sorted(at for sent in found.values() for at in sent)
    assert [len(found[name]) for name in (1, 2)] == [150, 150]
    assert most_in_a_minute(times) <= SHARED.rpm


def spent(path):
    """Tokens of the day, as a late-comer finds them."""

    async def find():
        ledger = await ledger_at(path, SHARED)
        usage = ledger.usage()
        await ledger.aclose()
        return usage.tpd.used

    return asyncio.run(find())


@pytest.mark.parametrize("spoil", [remove_all, remove_the_file, remove_the_log])
def test_the_file_is_removed_while_they_run(path, tmp_path, spoil):
    """They meet those who come later in a new one: all is sent, never too much of it, and all of it counts.

    What was entered at that very moment may count twice, once for each of the two that knew of it.
    """
    codes, found = run(path, tmp_path / "reports", 2, 120, meanwhile=lambda workers: spoil(path, None), late=1)
    assert codes == [0] * 3
    times = sorted(at for sent in found.values() for at in sent)
    assert len(times) == 360
    assert most_in_a_minute(times) <= SHARED.rpm
    assert 360 <= spent(path) / ONE.tokens <= 360 + 2
