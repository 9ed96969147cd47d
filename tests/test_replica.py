"""Any interleaving of processes on one journal, with delays, failures, lost wake-ups, prunings and crashes."""

import asyncio
import random
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kimi_async.budgets import Room
from kimi_async.errors import LedgerUnavailable
from kimi_async.ledger import replica as rules
from kimi_async.ledger import session
from kimi_async.ledger.replica import LEASE, PATIENCE, Entry, Replica
from kimi_async.ledger.shared import SharedLedger
from kimi_async.ledger.snapshot import dump, restore
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits
from kimi_async.refusal import Refusal

from .conftest import run_virtual
from .journaled import FakeJournal, Shelf

LIMITS = RateLimits(concurrency=3, rpm=5, tpm=100, tpd=5000, minute=10.0, day=3600.0)


class Chance:
    """What happens to the calls of a process: dice of its own, from a seed."""

    def __init__(self, seed, *, slow, failing, lossy):
        self.dice = random.Random(seed)
        self.slow, self.failing, self.lossy = slow, failing, lossy

    def fate(self):
        failure = self.dice.choice(["before", "after"]) if self.dice.random() < self.failing else None
        return self.dice.random() * self.slow, self.dice.random() * self.slow, failure

    def wakes(self):
        return None if self.dice.random() < self.lossy else self.dice.random() * 0.05


class Scene:
    """Some processes at work on one account."""

    def __init__(self, seed, processes, *, refusals=False, cancels=False, **chance):
        self.shelf = Shelf()
        self.dice = random.Random(seed)
        self.refusals, self.cancels = refusals, cancels
        self.sends = []
        self.journals, self.ledgers, self.limiters = [], [], []
        for _ in range(processes):
            fortune = Chance(self.dice.random(), **chance)
            self.journals.append(FakeJournal(self.shelf, fate=fortune.fate, wakes=fortune.wakes))
            self.ledgers.append(SharedLedger(self.journals[-1], when_away="fail"))
            self.limiters.append(RateLimiter(LIMITS, ledger=self.ledgers[-1], on_event=lambda event: None))

    async def request(self, limiter, cost):
        """One request, tried until it came through; now and then refused, or given up before it is sent."""
        await asyncio.sleep(self.dice.random() * 5)
        while True:
            try:
                reservation = await limiter.acquire(cost)
            except LedgerUnavailable:
                await asyncio.sleep(0.5)
                continue
            await asyncio.sleep(self.dice.random() * 0.2)
            if self.cancels and self.dice.random() < 0.2:
                reservation.cancel()
                continue
            reservation.sent()
            self.sends.append((asyncio.get_running_loop().time(), cost.tokens))
            await asyncio.sleep(self.dice.random() * 4)
            if self.refusals and self.dice.random() < 0.3:
                reservation.refused(self.refusal())
                continue
            reservation.end(answered=self.dice.random() < 0.8)
            return

    def refusal(self):
        budget = self.dice.choice(["concurrency", "rpm", "tpm", "tpd"])
        current = self.dice.choice([None, 30]) if budget == "tpm" else None
        return Refusal("budget", budget, current=current, retry_after=self.dice.choice([None, 1.0]))

    async def impatient(self, limiter):
        """Somebody who gives up at any moment."""
        await asyncio.sleep(self.dice.random() * 10)
        with suppress(TimeoutError, LedgerUnavailable):
            async with asyncio.timeout(self.dice.random() * 3):
                (await limiter.acquire(Cost(20))).cancel()

    async def play(self, requests, crashes=()):
        """All requests of all processes; those that crash never end."""
        works = [
            [
                asyncio.ensure_future(self.request(limiter, Cost(self.dice.choice([5, 20, 60]))))
                for _ in range(requests)
            ]
            for limiter in self.limiters
        ]
        passing = [asyncio.ensure_future(self.impatient(limiter)) for limiter in self.limiters if self.cancels]
        loop = asyncio.get_running_loop()
        for place, at in enumerate(crashes):
            loop.call_later(at, self.journals[place].crash)
        living = [one for work in works[len(crashes) :] for one in work] + passing[len(crashes) :]
        async with asyncio.timeout(400):  # nobody waits for ever
            await asyncio.gather(*living)
        for one in [*(one for work in works for one in work), *passing]:
            one.cancel()
        for ledger in self.ledgers[len(crashes) :]:
            await self.until_read(ledger)
            await self.until_read(ledger)

    async def until_read(self, ledger):
        """Whatever was told has been entered, and whatever was entered has been read."""
        while True:
            try:
                await ledger.refresh()
            except LedgerUnavailable:
                await asyncio.sleep(1)
            else:
                return

    def agree(self, ledgers):
        """All have the books that the history makes which they have read, and have read nearly all of it."""
        for ledger in ledgers:
            assert ledger._session.replica.last > len(self.shelf.history) - 10
            assert dump(ledger._session.replica) == dump(self.shelf.replay(ledger._session.replica.last))


def stamps(shelf):
    """When requests were booked as sent, and their tokens, as the history tells; slots are checked on the way."""
    replica, found, pending = Replica(), [], {}
    for entry in shelf.history:
        replica.apply(entry)
        charges = {number: one for process in replica.processes.values() for number, one in process.charges.items()}
        assert len(charges) <= LIMITS.concurrency
        now_pending = {number: one.tokens for number, one in charges.items() if one.state == "pending"}
        cancelled = entry.detail["charge"] if entry.operation == "cancel" else None
        found += [(entry.at, tokens) for number, tokens in pending.items() if number not in {*now_pending, cancelled}]
        pending = now_pending
    return found


def most(events, weight):
    """The most that any minute holds, that is one that ends with an event."""
    return max((sum(weight(w) for at, w in events if end - LIMITS.minute < at <= end) for end, _ in events), default=0)


WORLDS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "processes": st.integers(2, 4),
        "slow": st.sampled_from([0.0, 0.002, 0.05, 0.4]),
        "failing": st.sampled_from([0.0, 0.0, 0.05, 0.2]),
        "lossy": st.sampled_from([0.0, 0.5, 1.0]),
        "cancels": st.booleans(),
    }
)


@pytest.fixture(autouse=True)
def _frequent_pruning(monkeypatch):
    monkeypatch.setattr(session, "KEPT", 20)


many = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@given(world=WORLDS, crashes=st.lists(st.floats(0, 30), max_size=1))
@many
def test_no_minute_sees_more_than_the_limits_and_everybody_is_served(world, crashes):
    """By the stamps of the journal, and by the moments at which the requests were really sent; all slots come back."""

    async def main():
        scene = Scene(**world)
        await scene.play(6, crashes)
        scene.agree(scene.ledgers[len(crashes) :])
        sent = stamps(scene.shelf)
        assert most(sent, lambda _: 1) <= LIMITS.rpm
        assert most(sent, lambda tokens: tokens) <= LIMITS.tpm
        assert most(scene.sends, lambda _: 1) <= LIMITS.rpm
        assert most(scene.sends, lambda tokens: tokens) <= LIMITS.tpm
        await asyncio.sleep(LEASE + 1)
        survivor = scene.ledgers[-1]
        await scene.until_read(survivor)
        with suppress(LedgerUnavailable):
            survivor._journal.fate = lambda: (0.0, 0.0, None)
            for _ in range(2):
                async with scene.limiters[-1].acquire(Cost(1)) as reservation:
                    reservation.cancel()
                await asyncio.sleep(PATIENCE + 0.1)  # for those who might live
            await survivor.refresh()
        assert survivor.usage().concurrency.used == 0
        assert list(survivor._session.replica.line) == []

    run_virtual(main())


@given(world=WORLDS, crashes=st.lists(st.floats(0, 30), max_size=1))
@many
def test_books_agree_whatever_refusals_teach(world, crashes):
    """Pauses, probes, foreign usage, widened guards: every replica draws the same lessons at the same entries."""

    async def main():
        scene = Scene(**world, refusals=True)
        await scene.play(4, crashes)
        scene.agree(scene.ledgers[len(crashes) :])

    run_virtual(main())


@given(world=WORLDS, cut=st.floats(0, 1), looks=st.lists(st.floats(0, 20), max_size=3))
@many
def test_a_written_replica_goes_on_as_the_first_one(world, cut, looks):
    """And so does one that is asked in between, at whatever time: questions change nothing."""

    async def main():
        scene = Scene(**world, refusals=True)
        await scene.play(4)
        history = scene.shelf.history
        replica, asked = Replica(), Replica()
        middle = int(cut * len(history))
        for entry in history[:middle]:
            replica.apply(entry)
        written = restore(dump(replica))
        assert dump(written) == dump(replica)
        for entry in history:
            asked.apply(entry)
            for ahead in looks:
                asked.verdict(entry.at + ahead, entry.process, Cost(50))
        for entry in history[middle:]:
            lesson = replica.apply(entry)
            assert written.apply(entry) == lesson
            assert dump(written) == dump(replica)
        assert dump(asked) == dump(replica)

    run_virtual(main())


# -- rows of entries ------------------------------------------------------------------------------------------


def told(*rows):
    """A replica after rows of (time, process, operation, detail)."""
    replica = Replica()
    for number, (at, process, operation, detail) in enumerate(rows, start=1):
        replica.apply(Entry(number, at, process, operation, detail))
    return replica


A_AND_B = [(0.0, "a", "join", {"address": "1"}), (0.0, "b", "join", {"address": "2"})]


def test_a_sign_of_life_that_came_first_saves_a_process():
    """It was found dead by somebody who had not read it."""
    rows = [*A_AND_B, (15.0, "b", "alive", {})]
    alive = told(*rows, (31.0, "a", "alive", {}), (31.0, "b", "dead", {"process": "a"}))
    assert list(alive.processes) == ["a", "b"]
    dead = told(*rows, (31.0, "b", "dead", {"process": "a"}))
    assert list(dead.processes) == ["b"]


def test_silence_proves_nothing_where_all_were_silent():
    """The journal may have been away: whoever lives has a few seconds to say so."""
    rows = [*A_AND_B, (100.0, "b", "alive", {})]
    assert list(told(*A_AND_B).departed(100.0)) == []
    assert list(told(*rows).departed(100.0 + PATIENCE)) == []
    assert list(told(*rows).departed(100.1 + PATIENCE)) == [("dead", "a")]
    assert list(told(*rows, (102.0, "a", "alive", {})).departed(100.1 + PATIENCE)) == []


def test_a_sign_of_life_that_came_first_saves_a_place_in_line():
    """Likewise."""
    line = [*A_AND_B, (0.0, "a", "wait", {}), (0.0, "b", "wait", {})]
    assert told(*line, (3.5, "a", "alive", {}), (3.5, "b", "pass", {"process": "a"})).first() == "a"
    assert told(*line, (3.5, "b", "pass", {"process": "a"})).first() == "b"


def test_what_was_pending_when_its_process_died_counts_as_sent():
    """From its death on; the slot is free, and what was sent stays charged."""
    replica = told(
        (0.0, "a", "limits", {"concurrency": 2}),
        *A_AND_B,
        (0.0, "a", "reserve", {"tokens": 10}),
        (0.0, "a", "reserve", {"tokens": 20}),
        (1.0, "a", "sent", {"charge": 4}),
        (20.0, "b", "alive", {}),
        (40.0, "b", "dead", {"process": "a"}),
    )
    usage = replica.books_at(40.0).usage(40.0)
    assert (usage.concurrency.used, usage.rpm.used, usage.tpm.used) == (0, 2, 30)
    assert replica.books_at(62.0).usage(62.0).tpm.used == 20


def test_the_second_of_two_entries_for_one_thing_does_nothing():
    """A process enters again what it does not know to be entered."""
    once = [*A_AND_B, (0.0, "a", "reserve", {"tokens": 10}), (1.0, "a", "sent", {"charge": 3})]
    twice = told(*once, (2.0, "a", "sent", {"charge": 3}), *[(3.0, "a", "end", {"charge": 3, "answered": True})] * 2)
    usage = twice.books_at(3.0).usage(3.0)
    assert (usage.concurrency.used, usage.rpm.used, usage.tpm.used, usage.requests_sent) == (0, 1, 10, 1)


def test_questions_about_later_times_leave_the_books_as_they_are():
    """Somebody looks a moment too early: the entry that he has not read yet falls before what he has seen."""
    rows = [*A_AND_B, (0.0, "a", "reserve", {"tokens": 10}), (1.0, "a", "sent", {"charge": 3})]
    replica = told(*rows)
    assert isinstance(replica.verdict(200.0, "b", Cost(1)), Room)
    assert dump(replica) == dump(told(*rows))


def test_nobody_is_let_in_out_of_turn():
    """The first in line may, whoever else has to wait."""
    replica = told(*A_AND_B, (0.0, "a", "wait", {}), (0.0, "b", "wait", {}))
    assert isinstance(replica.verdict(0.0, "a", Cost(1)), Room)
    assert replica.verdict(0.0, "b", Cost(1)) == ("turn", rules.TURN)
