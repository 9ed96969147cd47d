"""A ledger in a file: what kind of file, what it refuses, and real processes on it, some of them killed."""

import asyncio
import json
import multiprocessing
import os
import signal
import sqlite3
import stat
import time
from collections import Counter

import pytest

from kimi_async.budgets import GUARD, Charge, Room
from kimi_async.errors import ConfigurationError, LedgerUnavailable
from kimi_async.ledger import open_ledger, session, sqlite
from kimi_async.ledger.shared import SharedLedger
from kimi_async.ledger.snapshot import dump
from kimi_async.ledger.sqlite import APPLICATION_ID, SCHEMA_VERSION, SQLiteJournal
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits

pytestmark = pytest.mark.real_time

ONE = Cost(10)
WIDE = RateLimits(concurrency=100_000, tpd=10_000_000)


@pytest.fixture
def path(tmp_path):
    """Where a ledger may be."""
    return tmp_path / "ledger.sqlite3"


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
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    assert rows(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert rows(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
    await ledger.aclose()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def foreign(path):
    """A database of somebody else, with something still in its write-ahead log."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()


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
    """To the byte; the error names the file."""
    make(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=path.name):
            await ledger_at(path)
    assert path.read_bytes() == before


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
    for number in range(1, 5):
        await journal.append(number - 1, "a", [("reserve", {"tokens": 1})], room=Room())
    await journal.append(4, "a", [("alive", {})] * 6)
    await journal.prune({"last": 3})
    await journal.prune({"last": 8})
    read = await journal.append(1, "b", [("reserve", {"tokens": 1})], room=Room())
    assert (read.appended, read.snapshot, [entry.id for entry in read.entries]) == (False, {"last": 8}, [9, 10])
    read = await journal.append(10, "b", [("reserve", {"tokens": 1})], room=Room())
    assert read.appended
    await journal.aclose()


async def test_an_error_in_a_transaction_leaves_none_open(path):
    """The next one works."""
    journal = SQLiteJournal(path, "default")
    with pytest.raises(TypeError):
        await journal.append(0, "a", [("reserve", {"tokens": object()})])
    read = await journal.append(0, "a", [("alive", {})])
    assert [entry.id for entry in read.entries] == [1]
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


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """One whose clocks a test may set."""
    return Machine(monkeypatch, tmp_path / "boot_id")


async def stamp(journal, last):
    """What the clock shows for an entry, since the beginning."""
    read = await journal.append(last, "a", [("alive", {})])
    assert journal.now() == read.entries[-1].at
    return read.entries[-1].at - 1_000_000.0


async def test_the_systems_clock_may_be_set_forward_and_back(path, machine):
    """No window empties early, nobody is dead before his time, and nobody waits for a time that has gone."""
    one, other = SQLiteJournal(path, "default"), SQLiteJournal(path, "default")
    stamps = []
    for step in (0, 0, -3600, 86_400, 0.5):
        machine.wall += step
        machine.passes(10)
        stamps.append(await stamp(one if len(stamps) % 2 else other, len(stamps)))
    assert stamps == [10, 20, 30, 40, 50]
    late = SQLiteJournal(path, "default")
    machine.passes(1)
    assert await stamp(late, 5) == 51
    for journal in (one, other, late):
        await journal.aclose()


@pytest.mark.parametrize(("away", "shows"), [(3600, 3600), (-3600, 0)], ids=["later", "on a clock that was set back"])
async def test_after_a_boot_time_goes_on_from_the_systems_clock(path, machine, away, shows):
    """It has counted while nothing else could; but time never falls."""
    before = SQLiteJournal(path, "default")
    await stamp(before, 0)
    await before.aclose()
    machine.wall += away
    machine.since_boot = 3.0
    machine.boot("second")
    after = SQLiteJournal(path, "default")
    assert await stamp(after, 1) == shows
    machine.passes(10)
    assert await stamp(after, 2) == shows + 10
    await after.aclose()


async def test_where_boots_have_no_name_time_goes_on_as_well(path, machine):
    """By the system's clock, if it moves forward."""
    machine.boot_id.unlink()
    one, other = SQLiteJournal(path, "default"), SQLiteJournal(path, "default")
    stamps = []
    for step in (0, 0, -3600, 0, 0):
        machine.wall += step
        machine.passes(10)
        stamps.append(await stamp(one if len(stamps) % 2 else other, len(stamps)))
    assert stamps == sorted(stamps)
    await one.aclose()
    await other.aclose()


async def test_a_fresh_file_may_be_opened_by_many_at_once(path):
    """Changing its mode waits for those who write, as every transaction does."""
    for _ in range(20):
        journals = [SQLiteJournal(path, f"account {n}") for n in range(8)]
        await asyncio.gather(*(journal.append(0, "a", [("alive", {})]) for journal in journals))
        for journal in journals:
            await journal.aclose()
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()


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
    with open(f"{reports}/{name}", "w", buffering=1) as file:  # noqa: PTH123 - line by line, for one may be killed
        asyncio.run(_work(path, requests, lambda at: print(json.dumps(at), file=file)))


def run(path, reports, processes, requests, *, kill=None):
    """Spawn them; the times of all requests by process. ``kill`` ends the first one after so many seconds."""
    context = multiprocessing.get_context("spawn")
    reports.mkdir()
    start = context.Barrier(processes)
    arguments = [(name, path, requests, reports, start) for name in range(processes)]
    workers = [context.Process(target=_process, args=each) for each in arguments]
    for worker in workers:
        worker.start()
    if kill is not None:
        while not (reports / "0").exists() or not (reports / "0").stat().st_size:
            time.sleep(0.01)  # noqa: TID251 - there is no event loop here
        time.sleep(kill)  # noqa: TID251 - likewise
        os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers:
        worker.join(60)
    codes = [worker.exitcode for worker in workers]
    lines = {name: (reports / str(name)).read_text().splitlines() for name in range(processes)}
    return codes, {name: [json.loads(line) for line in written] for name, written in lines.items()}


def most_in_a_minute(times):
    """The most that any sliding minute has seen."""
    return max(sum(end - SHARED.minute < at <= end for at in times) for end in times)


def test_four_processes_are_one_account(path, tmp_path):
    """They never exceed what one may, need hardly longer than one would, and get a fair share each."""
    codes, found = run(path, tmp_path / "reports", 4, 150)
    times = sorted(at for sent in found.values() for at in sent)
    assert codes == [0] * 4
    assert len(times) == 600
    assert most_in_a_minute(times) <= SHARED.rpm
    ideal = 2 * SHARED.minute * (1 + GUARD)  # three windows
    assert ideal <= times[-1] - times[0] < ideal * 1.5
    second = times[200:400]  # all of them wait all the time
    shares = Counter(name for name, sent in found.items() for at in sent if second[0] <= at <= second[-1])
    assert min(shares[name] for name in found) > 50 / 2


def test_one_of_them_is_killed(path, tmp_path):
    """The others end, within the limits; what was sent stays charged."""
    codes, found = run(path, tmp_path / "reports", 3, 150, kill=0.7)
    assert codes == [-signal.SIGKILL, 0, 0]
    times = sorted(at for sent in found.values() for at in sent)
    assert [len(found[name]) for name in (1, 2)] == [150, 150]
    assert most_in_a_minute(times) <= SHARED.rpm
