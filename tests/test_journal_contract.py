"""What a shared ledger needs of every journal: a decision that others' reservations have made wrong is not entered."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_async.budgets import UNBOUNDED, Budgets, Charge, Room
from kimi_async.ledger import file, sqlite
from kimi_async.ledger.redis import RedisJournal
from kimi_async.ledger.sqlite import SQLiteJournal
from kimi_async.limits import Cost, RateLimits

from .journaled import FakeJournal, Shelf
from .valkey import new_valkey, valkey  # noqa: F401 - fixtures

pytestmark = pytest.mark.real_time

ACCOUNTS = map("room {}".format, itertools.count())


def own_file(path, busy):
    """A connection that no other journal has, though it is in the same process."""
    opened = file.LedgerFile(path, busy=busy)
    opened.users = 1
    return opened


@pytest.fixture(params=["fake", "sqlite", "valkey"])
async def journals(request, tmp_path, monkeypatch):
    """Makes journals of one account, each as another process would."""
    monkeypatch.setattr(file, "SETTLING", 0.0)
    monkeypatch.setattr(sqlite, "shared_file", own_file)
    made, shelf, account = [], Shelf(), next(ACCOUNTS)
    url = request.getfixturevalue("valkey").url if request.param == "valkey" else None

    def make():
        kinds = {
            "fake": lambda: FakeJournal(shelf),
            "sqlite": lambda: SQLiteJournal(tmp_path / "ledger.sqlite3", account),
            "valkey": lambda: RedisJournal(url, account),
        }
        made.append(kinds[request.param]())
        return made[-1]

    yield make
    for journal in made:
        await journal.aclose()


def reserve(tokens):
    """A line."""
    return "reserve", {"tokens": tokens}


class Reader:
    """A process, which knows what it has read."""

    def __init__(self, journal, name):
        self.journal, self.name, self.last, self.read = journal, name, 0, []

    async def append(self, *lines, room=None, wake=None):
        read = await self.journal.append(self.last, self.name, list(lines), room, wake=wake)
        self.read += read.entries
        self.last = self.read[-1].id if self.read else 0
        return read.appended


@pytest.mark.parametrize(
    ("others", "room", "entered"),
    [
        ([], Room(), True),
        ([reserve(5)], Room(), False),
        ([reserve(5)], Room(1, 5), True),
        ([reserve(5)], Room(1, 4), False),
        ([reserve(5)], Room(0, 5), False),
        ([reserve(5), reserve(5)], Room(2, 10), True),
        ([reserve(5), reserve(5)], Room(1, 10), False),
        ([reserve(5), reserve(6)], Room(2, 10), False),
        ([("end", {"charge": 1}), ("wait", {})], Room(), True),
        ([("limits", {"rpm": 1})], Room(UNBOUNDED, UNBOUNDED), False),
        ([("refuse", {"charge": 1, "budget": "rpm"})], Room(9, 9), False),
        ([reserve(5), ("join", {"address": ""})], Room(9, 9), False),
        ([reserve(UNBOUNDED // 2)], Room(1, UNBOUNDED), True),
    ],
)
async def test_a_decision_holds_beside_what_it_left_room_for(journals, others, room, entered):
    """(what another entered since, the room that the decision left, whether it is entered)."""
    one, other = Reader(journals(), "one"), Reader(journals(), "other")
    await other.append(reserve(1_000), ("alive", {}))
    await one.append()
    if others:
        await other.append(*others)
    assert await one.append(reserve(7), room=room) is entered
    await other.append()
    assert one.read == other.read
    assert [(entry.operation, entry.detail) for entry in one.read[2:]] == [*others, *[reserve(7)] * entered]


async def test_the_room_is_that_of_the_last_look(journals):
    """What was read before it is in the decision."""
    one, other = Reader(journals(), "one"), Reader(journals(), "other")
    for _ in range(3):
        await other.append(reserve(5))
        assert not await one.append(reserve(7), room=Room(0, 100))
        assert await one.append(reserve(7), room=Room())
        await other.append()


async def test_many_who_decide_at_once_never_take_more_than_there_is(journals):
    """Each leaves room for 9 of 20 others; ten get in, and ten know better then."""
    readers = [Reader(journals(), str(n)) for n in range(20)]
    await readers[0].append(("alive", {}))
    await asyncio.gather(*(reader.append() for reader in readers[1:]))
    entered = await asyncio.gather(*(reader.append(reserve(3), room=Room(9, 100)) for reader in readers))
    assert sum(entered) == 10
    await asyncio.gather(*(reader.append() for reader in readers))
    assert all(reader.read == readers[0].read for reader in readers)


async def test_all_read_all_in_one_order_however_they_interleave(journals):
    """What somebody enters while another reads is missing nowhere."""
    readers = [Reader(journals(), str(n)) for n in range(6)]

    async def write(reader):
        for number in range(40):
            await reader.append(reserve(number), room=Room(UNBOUNDED, UNBOUNDED))
            await reader.append(("sent", {"charge": number}))

    for reader in readers:
        await reader.append()
    await asyncio.gather(*map(write, readers))
    await asyncio.gather(*(reader.append() for reader in readers))
    assert len(readers[0].read) == 6 * 80
    assert all(reader.read == readers[0].read for reader in readers)


@given(
    limits=st.builds(
        RateLimits,
        concurrency=st.none() | st.integers(1, 6),
        rpm=st.none() | st.integers(1, 6),
        tpm=st.none() | st.integers(10, 60),
        tpd=st.none() | st.integers(10, 60),
    ),
    before=st.lists(st.integers(0, 20), max_size=4),
    ours=st.integers(0, 20),
    others=st.lists(st.integers(0, 20), max_size=6),
)
def test_whoever_fits_into_the_room_takes_nothing_from_us(limits, before, ours, others):
    """And if the last of them fits no more, that was the last room: the rule of admission says so as well."""
    books = Budgets(limits)
    for tokens in before:
        books.reserve(0.0, Cost(tokens))
    if books.denial(0.0, Cost(ours)) is not None:
        return
    room = books.room_beside(ours)
    for number, tokens in enumerate(others):
        if number + 1 > room.requests or sum(others[: number + 1]) > room.tokens:
            break
        books.take(tokens)
    else:
        number, tokens = len(others), None
    assert isinstance(books.reserve(0.0, Cost(ours)), Charge)
    if others and tokens is not None:
        assert not isinstance(books.reserve(0.0, Cost(tokens)), Charge)


async def test_whoever_lines_are_news_to_is_woken_when_they_can_be_read(journals):
    """Another is not."""
    one, two, three = journals(), journals(), journals()
    woken, spared = asyncio.Event(), asyncio.Event()
    address = await two.listen(woken.set)
    await three.listen(spared.set)
    reader, writer = Reader(two, "b"), Reader(one, "a")
    await one.listen(lambda: None)
    await writer.append(reserve(5), wake=address)
    async with asyncio.timeout(2):
        await woken.wait()
    await reader.append()
    assert [entry.operation for entry in reader.read] == ["reserve"]
    assert not spared.is_set()
