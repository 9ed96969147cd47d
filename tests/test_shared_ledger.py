"""A ledger that processes share, on virtual time: turns, deaths, failures, endings; the journal is one in memory."""

import asyncio
import gc
import random
from collections import Counter
from itertools import pairwise

import pytest

from kimi_async.budgets import GUARD, Charge, Denial
from kimi_async.errors import ConfigurationError, LedgerUnavailable, RequestTooLarge
from kimi_async.events import SameOrganization
from kimi_async.ledger import session
from kimi_async.ledger.replica import LEASE, PATIENCE, TURN, Entry
from kimi_async.ledger.shared import RETRY, SharedLedger
from kimi_async.ledger.snapshot import dump
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits
from kimi_async.refusal import Refusal

from .conftest import VirtualTimeLoop
from .journaled import FakeJournal, Shelf

ONE = Cost(10)
SLOT = RateLimits(concurrency=1)


class Fate:
    """A fate that a test may change at any time."""

    def __init__(self, *, before=0.001, after=0.001):
        self.before, self.after = before, after
        self.failures = []

    def __call__(self):
        return self.before, self.after, self.failures.pop(0) if self.failures else None


def process(shelf, limits=SLOT, *, wakes=lambda: 0.001, subscribed=False):
    """One more process: its ledger."""
    ledger = SharedLedger(FakeJournal(shelf, fate=Fate(), wakes=wakes), when_away="fail")
    ledger.configure(limits)
    if subscribed:
        ledger.subscribe(lambda *, slot_only: None)
    return ledger


def limiter_of(ledger):
    """A limiter over it."""
    return RateLimiter(ledger._configured, ledger=ledger, on_event=lambda event: None)


def now():
    """The loop's time, from zero."""
    return asyncio.get_running_loop().time() - 1000.0


def slots(ledger):
    """Slots in use, as far as it knows."""
    return ledger.usage().concurrency.used


@pytest.fixture
def shelf():
    """An account's journal."""
    return Shelf()


# -- giving up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [step / 2000 for step in range(16)])
async def test_who_gives_up_at_any_moment_gives_everything_back(shelf, after):
    """The journal takes a millisecond either way: to join, to read, to reserve."""
    ledger = process(shelf)
    task = asyncio.ensure_future(ledger.reserve(ONE))
    await asyncio.sleep(after)
    task.cancel()
    (verdict,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(verdict, Charge):
        ledger.cancel(verdict)
    await ledger.refresh()  # which may come before the answer that is not wanted any more
    await ledger.refresh()
    assert slots(ledger) == 0
    assert ledger._numbers == {}


@pytest.mark.parametrize("after", [step / 2000 for step in range(24)])
async def test_who_gives_up_at_any_moment_leaves_the_line(shelf, after):
    """Or it would stand there for ever, before all others."""
    one, other = process(shelf), process(shelf)
    held = await one.reserve(ONE)
    with pytest.raises((TimeoutError, Exception)):
        async with asyncio.timeout(after):
            await limiter_of(other).acquire(ONE)
    one.end(held, answered=True)
    await asyncio.sleep(0.1)
    assert list(shelf.replay(None).line) == []
    appends = other._journal.appends
    await asyncio.sleep(100)
    assert other._journal.appends == appends


async def test_an_error_that_came_as_its_owner_was_cancelled_is_nobodys(shelf):
    """In the same turn of the loop: a task that was cancelled is."""
    ledger = process(shelf)
    go_away = ledger._go_away

    def go_away_and_cancel(exc):
        go_away(exc)
        task.cancel()

    ledger._go_away = go_away_and_cancel
    ledger._journal.fate.failures = ["before"]
    task = asyncio.ensure_future(ledger.reserve(ONE))
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_charge_that_came_as_its_owner_was_cancelled_is_given_back(shelf):
    """In the same turn of the loop."""
    ledger = process(shelf)
    admit = ledger._admit

    def admit_and_cancel(asked, entry):
        admit(asked, entry)
        task.cancel()

    ledger._admit = admit_and_cancel
    task = asyncio.ensure_future(ledger.reserve(ONE))
    with pytest.raises(asyncio.CancelledError):
        await task
    await ledger.refresh()
    assert slots(ledger) == 0


# -- turns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lost", [False, True])
async def test_heads_take_turns(shelf, seed, lost):
    """Three processes with eight waiting requests each: while all wait, nobody is more than one ahead."""
    dice = random.Random(seed)
    limits = RateLimits(rpm=1, minute=2.0)
    ledgers = [process(shelf, limits, wakes=lambda: None if lost else dice.random() / 100) for _ in range(3)]
    limiters = [limiter_of(ledger) for ledger in ledgers]

    async def use(limiter):
        async with limiter.acquire(ONE) as reservation:
            reservation.sent()

    await asyncio.gather(*(use(limiter) for limiter in limiters for _ in range(8)))
    waiting, count = set(), Counter()
    for entry in shelf.history:
        if entry.operation == "wait":
            waiting.add(entry.process)
        elif entry.operation == "reserve" and len(waiting) == 3 and max(count.values(), default=0) < 7:
            count[entry.process] += 1
            assert max(count.values()) - min(count[name] for name in waiting) <= 1
    assert now() < 24 * (2.0 * (1 + GUARD) + (TURN if lost else 0.05)) + 2


async def test_a_wake_up_is_enough(shelf):
    """The head of the other process is let in when the slot came back, not a second after, and one message says so."""
    messages = []
    one, other = process(shelf, wakes=lambda: messages.append("!") or 0.001), process(shelf)
    held = await one.reserve(ONE)
    waiting = asyncio.ensure_future(limiter_of(other).acquire(ONE).__aenter__())
    await asyncio.sleep(2.5)
    messages.clear()
    one.end(held, answered=True)
    began = now()
    (await waiting).cancel()
    assert now() - began < 0.02
    assert len(messages) == 1


async def test_who_comes_next_unexpectedly_is_woken_as_well(shelf):
    """He joined the line by an entry that whoever gave the slot back had not read."""
    one, other = process(shelf), process(shelf)
    held = await one.reserve(ONE)
    waiting = asyncio.ensure_future(limiter_of(other).acquire(ONE).__aenter__())
    await asyncio.sleep(0.01)
    assert one._session.replica.first() is None
    one.end(held, answered=True)
    began = now()
    (await waiting).cancel()
    assert now() - began < 0.02


async def test_a_lost_wake_up_costs_a_turn(shelf):
    """It looks again by itself."""
    one, other = process(shelf, wakes=lambda: None), process(shelf)
    held = await one.reserve(ONE)
    waiting = asyncio.ensure_future(limiter_of(other).acquire(ONE).__aenter__())
    await asyncio.sleep(2.5)
    one.end(held, answered=True)
    began = now()
    (await waiting).cancel()
    assert now() - began < TURN + 0.02


async def test_a_place_in_line_that_was_said_to_have_failed_is_looked_after(shelf):
    """The head that takes it over asks each turn: it does not wait for ever when nobody wakes it."""
    one, other = process(shelf, wakes=lambda: None), process(shelf)
    held = await one.reserve(ONE)
    other._journal.fate.failures = [None, None, "after"]  # of what joins, and stands in line
    limiter = limiter_of(other)
    with pytest.raises(LedgerUnavailable):
        await limiter.acquire(ONE)
    assert shelf.operations()[-1] == "wait"
    other._wake_up()  # so it reads that, and by then the next one waits
    waiting = asyncio.ensure_future(limiter.acquire(ONE).__aenter__())
    await asyncio.sleep(2.5)
    one.end(held, answered=True)
    began = now()
    (await waiting).cancel()
    assert now() - began < TURN + 0.02


async def test_such_a_place_of_a_process_that_holds_something_is_looked_after_as_often(shelf):
    """Its signs of life alone are too rare for its head."""
    limits = RateLimits(concurrency=2)
    one, other = process(shelf, limits, wakes=lambda: None), process(shelf, limits)
    held = await one.reserve(ONE)
    limiter = limiter_of(other)
    await limiter.acquire(ONE)
    other._journal.fate.failures = ["after"]  # of what stands in line
    with pytest.raises(LedgerUnavailable):
        await limiter.acquire(ONE)
    assert shelf.operations()[-1] == "wait"
    other._wake_up()
    waiting = asyncio.ensure_future(limiter.acquire(ONE).__aenter__())
    await asyncio.sleep(0.5)
    one.end(held, answered=True)
    began = now()
    async with asyncio.timeout(9):
        (await waiting).cancel()
    assert now() - began < TURN + 0.02


async def test_a_wake_up_that_comes_while_its_forerunner_is_answered_counts(shelf):
    """What it is about was entered after the journal had been read."""
    one, other = process(shelf), process(shelf)
    one.cancel(await one.reserve(ONE))
    await one.refresh()
    one._journal.fate.after = 0.5
    one._wake_up()
    await asyncio.sleep(0.1)
    await other.reserve(ONE)
    one._wake_up()
    one._wake_up()
    await asyncio.sleep(1.5)
    assert slots(one) == 1


async def test_a_look_that_failed_is_tried_again(shelf):
    """An idle process is to enter what the journal has lost, though nobody wakes it twice; it asks once a second."""
    one, other = process(shelf), process(shelf)
    one.cancel(await one.reserve(ONE))
    await other.reserve(ONE)
    failures = one._journal.fate.failures = ["before"] * 100
    for _ in range(100):
        one._wake_up()
        await asyncio.sleep(0.1)
    assert 85 <= len(failures) <= 92
    failures.clear()
    await asyncio.sleep(RETRY + 0.1)
    assert slots(one) == 1
    appends = one._journal.appends
    await asyncio.sleep(100)
    assert one._journal.appends == appends


async def test_who_is_next_after_a_loss_is_woken(shelf):
    """By the lines that are entered anew after what the journal had lost."""
    one, other = process(shelf), process(shelf)
    held = await one.reserve(ONE)
    waiting = asyncio.ensure_future(limiter_of(other).acquire(ONE).__aenter__())
    await asyncio.sleep(0.5)
    await one.refresh()
    append, losses = one._journal.append, [True]

    async def lose_once(last, name, lines, room=None, *, wake=None):
        if losses and losses.pop():
            return (await append(0, name, []))._replace(lost=True)
        return await append(last, name, lines, room, wake=wake)

    one._journal.append = lose_once
    one.end(held, answered=True)
    began = now()
    (await waiting).cancel()
    assert shelf.operations().count("recall") == 1
    assert now() - began < 0.03


async def test_waiting_costs_a_look_a_turn_and_idling_nothing(shelf):
    """Nobody polls faster."""
    one, other = process(shelf), process(shelf)
    held = await one.reserve(ONE)
    waiting = asyncio.ensure_future(limiter_of(other).acquire(ONE).__aenter__())
    await asyncio.sleep(0.5)
    before = one._journal.appends, other._journal.appends
    await asyncio.sleep(100)
    assert one._journal.appends - before[0] <= 100 / (LEASE / 3) + 1
    assert 90 <= other._journal.appends - before[1] <= 101
    one.end(held, answered=True)
    (await waiting).cancel()
    await asyncio.sleep(1)
    before = len(shelf.history)
    await asyncio.sleep(1000)
    assert len(shelf.history) == before


async def test_a_probe_that_takes_long_to_answer_lets_the_others_follow(shelf):
    """Its process says when it was sent; from then on the clock decides."""
    ledger = process(shelf, RateLimits(concurrency=9))
    limiter = limiter_of(ledger)
    refused = await limiter.acquire(ONE)
    refused.sent()
    refused.refused(Refusal("budget", "rpm", retry_after=5.0))
    probe = await limiter.acquire(ONE)
    waiting = asyncio.ensure_future(limiter.acquire(ONE).__aenter__())
    await asyncio.sleep(3.0)
    probe.sent()
    began = now()
    await waiting
    assert now() - began < 0.02 * 60 + TURN + 0.1


async def test_a_refused_request_does_not_leave_again_before_what_its_refusal_closes(shelf):
    """It asks for room in the same breath."""
    limiter = limiter_of(process(shelf, RateLimits(concurrency=9, tpm=1000)))
    refused = await limiter.acquire(ONE)
    refused.sent()
    began = now()
    refused.refused(Refusal("budget", "tpm", retry_after=5.0))
    await limiter.acquire(ONE, place=refused.place)
    assert now() - began == pytest.approx(5.0, abs=0.1)
    assert limiter.usage().guard == pytest.approx(2 * GUARD * 60)


@pytest.mark.parametrize(("seconds", "used"), [(0, 61), (1, 61), (2, 61), (5, 1), (100, 0)])
async def test_a_refusal_that_is_entered_late_says_nothing_of_others(shelf, seconds, used):
    """What they had spent has left the window since, or will; and nothing is closed for it."""
    lessons = []
    ledger = SharedLedger(FakeJournal(shelf, fate=(fate := Fate())), on_event=lambda event: None)
    ledger.configure(RateLimits(rpm=60))
    charge = await ledger.reserve(ONE)
    ledger.sent(charge)
    await ledger.refresh()
    fate.failures = ["before"] * seconds
    refusal = Refusal("budget", "rpm", limit=60, current=61, retry_after=5.0)
    ledger.refuse(charge, refusal, lessons.append, pause=True)
    await asyncio.sleep(seconds + 1)
    await ledger.refresh()
    assert ledger.usage().rpm.used == used
    assert [(lesson.explained, lesson.pause) for lesson in lessons] == [(True, 0.0)]


async def test_a_day_that_was_closed_while_the_ledger_was_away_is_closed_no_longer_than_the_gateway_said(shelf):
    """Half an hour was left, and the ledger is back after 20 minutes of it, or after an hour."""
    for seconds, left in ((1200, 600), (3600, None)):
        ledger = SharedLedger(FakeJournal(Shelf(), fate=(fate := Fate())), on_event=lambda event: None)
        ledger.configure(RateLimits(tpd=1000))
        charge = await ledger.reserve(ONE)
        fate.failures = ["before"] * seconds
        ledger.refuse(charge, Refusal("budget", "tpd", retry_after=1800.0), lambda lesson: None, pause=True)
        await asyncio.sleep(seconds + 60)
        await ledger.refresh()
        verdict = await ledger.reserve(ONE)
        assert isinstance(verdict, Charge) if left is None else verdict.wait == pytest.approx(left - 60, abs=60)


async def test_forecasts_before_the_first_reservation_know_the_window(shelf):
    """Of a minute that is not 60 s."""
    limiter = limiter_of(process(shelf, RateLimits(rpm=1, minute=6.0)))

    async def use():
        async with limiter.acquire(ONE, max_wait=10.0):
            pass

    await asyncio.gather(use(), use())


async def test_forecasts_go_by_the_limits_that_this_process_brings(shelf):
    """Others may have left lower ones behind, under which nothing of ours would ever fit."""
    before = process(shelf, RateLimits(tpm=100))
    before.cancel(await before.reserve(ONE))
    await before.aclose()
    ledger = process(shelf, RateLimits(tpm=2000))
    await ledger.refresh()
    assert await limiter_of(ledger).wait_time(Cost(1500)) == 0.0
    assert ledger.time_to_send(1, 2000) == 0.0


# -- one organization -----------------------------------------------------------------------------------------


def named(account, shelf, events):
    """A limiter of an account that has a name."""
    ledger = SharedLedger(FakeJournal(shelf, fate=Fate()), on_event=events.append)
    ledger._journal.account = account
    return RateLimiter(SLOT, ledger=ledger, on_event=lambda event: None)


async def refused(limiter, organization="org-1"):
    """A request that was refused."""
    async with limiter.acquire(ONE) as reservation:
        reservation.sent()
        reservation.refused(Refusal("budget", "concurrency", organization=organization))
    await limiter.ledger.refresh()


async def test_accounts_that_are_one_organization_are_told_so_once():
    """By the first refusal that shows it, to whoever got that."""
    shelves, events = (Shelf(), Shelf()), []
    shelves[1].organizations = shelves[0].organizations
    one, other, third = named("a", shelves[0], events), named("b", shelves[1], events), named("b", shelves[1], [])
    await refused(one)
    assert events == []
    await refused(other)
    await refused(other)
    assert events == [SameOrganization("org-1", ("a", "b"))]
    await third.ledger.refresh()
    assert third.ledger.view().organization == "org-1"
    assert await third.ledger.namesakes() == ("a", "b")


async def test_a_refusal_that_names_nobody_is_nobodys():
    """Some texts have no account in them."""
    shelf, events = Shelf(), []
    await refused(one := named("a", shelf, events), None)
    assert (await one.ledger.namesakes(), shelf.organizations, events) == ((), {}, [])


async def test_other_processes_keep_the_pace_of_a_limit_that_one_has_learned(shelf):
    """They have not seen the refusal, but the limit in the books."""
    limits = RateLimits(rpm=600)
    one, other = limiter_of(process(shelf, limits)), limiter_of(process(shelf, limits))
    async with one.acquire(ONE) as reservation:
        reservation.sent()
        reservation.refused(Refusal("budget", "rpm", limit=60))
    async with other.acquire(ONE) as reservation:
        reservation.sent()
    assert (one._pace.rpm, other._pace.rpm) == (60, 60)


# -- deaths ---------------------------------------------------------------------------------------------------


async def test_the_slot_of_the_dead_comes_back_after_its_lease(shelf):
    """The only one who could give it back is dead, and the head waits for nothing that a clock brings."""
    one, other = process(shelf), process(shelf)
    charge = await one.reserve(ONE)
    one.sent(charge)
    await one.refresh()
    one._journal.crash()
    began = now()
    await limiter_of(other).acquire(ONE)
    assert LEASE - LEASE / 3 <= now() - began <= LEASE + 2 * TURN
    assert other.usage().tokens_charged == 10


async def test_who_comes_after_the_lease_gets_the_slot_at_once(shelf):
    """Without a second's wait in line, where others lived meanwhile."""
    limits = RateLimits(concurrency=2)
    one, other, third = (process(shelf, limits) for _ in range(3))
    await one.reserve(ONE)
    await third.reserve(ONE)
    one._journal.crash()
    await asyncio.sleep(LEASE + 1)
    assert isinstance(await other.reserve(ONE), Charge)


async def test_who_comes_after_a_long_silence_waits_for_those_who_may_live(shelf):
    """Was the journal away? Whoever lives says so as soon as it is back."""
    one, other = process(shelf), process(shelf)
    await one.reserve(ONE)
    one._journal.crash()
    await asyncio.sleep(LEASE + 1)
    began = now()
    await limiter_of(other).acquire(ONE)
    assert PATIENCE < now() - began <= PATIENCE + 2 * TURN


async def test_nobody_who_lives_is_buried_after_an_outage(shelf):
    """The first one back has seen no sign of life from the others, nor could it."""
    limits = RateLimits(concurrency=3)
    ledgers = [process(shelf, limits) for _ in range(3)]
    held = [await ledger.reserve(ONE) for ledger in ledgers]
    for ledger in ledgers:
        ledger._journal.fate.failures = ["before"] * 1000
    await asyncio.sleep(2 * LEASE)
    waiting = asyncio.ensure_future(limiter_of(ledgers[0]).acquire(ONE).__aenter__())
    for seconds, ledger in enumerate(ledgers):
        ledger._journal.fate.failures = []
        await asyncio.sleep(seconds)
    await asyncio.sleep(5)
    assert "dead" not in shelf.operations()
    assert slots(ledgers[0]) == 3
    assert not waiting.done()
    ledgers[2].end(held[2], answered=True)
    await waiting


async def test_the_pending_reservation_of_the_dead_counts_as_sent(shelf):
    """The cautious ending."""
    limits = RateLimits(concurrency=1, tpm=100)
    one, other = process(shelf, limits), process(shelf, limits)
    await one.reserve(Cost(60))
    one._journal.crash()
    await limiter_of(other).acquire(ONE)
    usage = other.usage()
    assert (usage.tpm.used, usage.requests_sent) == (70, 1)


async def test_the_dead_are_passed_over_in_line(shelf):
    """After three seconds without a look."""
    one, other, third = (process(shelf) for _ in range(3))
    held = await one.reserve(ONE)
    first = asyncio.ensure_future(limiter_of(other).acquire(ONE).__aenter__())
    await asyncio.sleep(0.1)
    second = asyncio.ensure_future(limiter_of(third).acquire(ONE).__aenter__())
    await asyncio.sleep(5)
    other._journal.crash()
    one.end(held, answered=True)
    began = now()
    await second
    assert now() - began <= PATIENCE + 2 * TURN
    first.cancel()


async def test_back_from_the_dead(shelf):
    """It joins anew; what it knows of its old reservations is ignored; what it reserves now counts."""
    limits = RateLimits(concurrency=2, tpm=1000)
    one, other = process(shelf, limits), process(shelf, limits)
    pending, sent = await one.reserve(Cost(100)), await one.reserve(Cost(10))
    one.sent(sent)
    await one.refresh()
    one._journal.crash()
    await limiter_of(other).acquire(Cost(1))
    one._journal.running.set()
    await asyncio.sleep(61)
    one.sent(pending)
    one.end(pending, answered=True)
    one.end(sent, answered=True)
    again = await one.reserve(Cost(7))
    await other.refresh()
    usage = other.usage()
    assert (usage.concurrency.used, usage.requests_sent) == (2, 2)
    one.end(again, answered=True)
    await one.refresh()
    await other.refresh()
    assert (slots(one), slots(other)) == (1, 1)
    assert one._numbers == {}


async def test_an_idle_process_that_was_taken_for_dead_reserves_what_counts(shelf):
    """It held nothing, so it gave no sign of life; nothing tells it that it was found dead, but what it reserves."""
    limits = RateLimits(concurrency=2)
    one, other = process(shelf, limits), process(shelf, limits)
    held = await other.reserve(ONE)
    one.cancel(await one.reserve(ONE))
    await asyncio.sleep(LEASE - 5)
    await one.refresh()
    await asyncio.sleep(LEASE / 2 + 1)
    assert shelf.operations()[-1] == "dead"
    charge = await one.reserve(ONE)
    assert isinstance(charge, Charge)
    await other.refresh()
    assert slots(other) == 2
    one.end(charge, answered=True)
    other.end(held, answered=True)


# -- failures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["before", "after"])
@pytest.mark.parametrize("call", range(4))
async def test_a_reservation_that_failed_is_no_reservation(shelf, failure, call):
    """Whether it was entered or not: the slot is free as soon as the journal answers again."""
    one, other = process(shelf), process(shelf)
    one._journal.fate.failures = [None] * call + [failure]
    try:
        charge = await one.reserve(ONE)
    except LedgerUnavailable:
        assert call < 3
    else:
        one.cancel(charge)
    await asyncio.sleep(RETRY + 0.1)
    await one.refresh()  # finds what was entered,
    await one.refresh()  # and has given it back
    assert slots(one) == 0
    assert isinstance(await other.reserve(ONE), Charge)


@pytest.mark.parametrize("failure", ["before", "after"])
async def test_what_has_happened_is_entered_once_the_journal_answers(shelf, failure):
    """In order, and with effect once, however often it is entered."""
    limits = RateLimits(concurrency=5, tpm=1000)
    one, other = process(shelf, limits), process(shelf, limits)
    charge = await one.reserve(Cost(100))
    one._journal.fate.failures = [failure] * 5
    one.sent(charge)
    await asyncio.sleep(2)
    one.end(charge, answered=True)
    await asyncio.sleep(6 * (RETRY + 0.1))
    other.cancel(await other.reserve(ONE))
    await other.refresh()
    usage = other.usage()
    assert (usage.concurrency.used, usage.tpm.used, usage.requests_sent) == (0, 100, 1)
    assert one._numbers == {}


async def test_an_error_reaches_whoever_asks(shelf):
    """And nobody waits for an answer that never comes, whatever the error is."""
    ledger = process(shelf)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)

    def broken():
        raise ZeroDivisionError

    ledger._journal.fate, fate = broken, ledger._journal.fate
    for ask in (lambda: ledger.reserve(ONE), ledger.refresh):
        with pytest.raises(LedgerUnavailable, match="ZeroDivisionError"):
            await ask()
    ledger._journal.fate = fate
    assert isinstance(await ledger.reserve(ONE), Charge)
    gc.collect()


async def test_a_hook_that_fails_stops_nothing(shelf):
    """What others do with a lesson is theirs."""
    ledger, errors = process(shelf), []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))

    def hook(lesson):
        raise ZeroDivisionError

    ledger.refuse(await ledger.reserve(ONE), Refusal("overloaded"), hook, pause=False)
    charge = await ledger.reserve(ONE)
    ledger.end(charge, answered=True)
    await ledger.refresh()
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert (slots(ledger), shelf.operations().count("refuse")) == (0, 1)


async def test_a_hook_for_events_that_fails_stops_nothing(shelf):
    """Whoever waits for the journal is let in when it is back."""
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))

    def hook(event):
        raise ZeroDivisionError

    ledger = SharedLedger(FakeJournal(shelf, fate=Fate()), on_event=hook)
    ledger._journal.fate.failures = ["before"] * 2
    async with asyncio.timeout(3 * RETRY):
        charge = await ledger.reserve(ONE)
    ledger.end(charge, answered=True)
    await ledger.refresh()
    assert [type(error) for error in errors] == [ZeroDivisionError] * 2


async def test_who_waits_is_served_after_an_error_of_ours(shelf):
    """Whatever has happened is entered once that is over."""
    ledger = process(shelf)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    charge = await ledger.reserve(ONE)
    fate = ledger._journal.fate
    ledger._journal.fate = lambda: 1 // 0
    ledger.end(charge, answered=True)
    await asyncio.sleep(0.1)
    ledger._journal.fate = fate
    await asyncio.sleep(RETRY)
    assert shelf.operations()[-1] == "end"
    gc.collect()


@pytest.mark.parametrize("error", [LedgerUnavailable, ConfigurationError])
async def test_pruning_that_fails_harms_nobody(shelf, monkeypatch, error):
    """What was entered stays entered."""
    monkeypatch.setattr(session, "KEPT", 5)
    ledger = process(shelf)

    async def prune(state):
        raise error("full")

    ledger._journal.prune = prune
    for _ in range(20):
        ledger.end(await ledger.reserve(ONE), answered=True)
    await ledger.refresh()
    assert Counter(shelf.operations()) == {"join": 1, "limits": 1, "reserve": 20, "end": 20}


async def test_reading_while_entering_reads_nothing_twice(shelf):
    """Both are in one queue."""
    one, other = process(shelf, RateLimits()), process(shelf, RateLimits())

    async def work(ledger):
        for _ in range(20):
            ledger.end(await ledger.reserve(ONE), answered=True)
            await asyncio.gather(ledger.refresh(), ledger.refresh())

    await asyncio.gather(work(one), work(other))
    assert slots(one) == 0
    assert dump(one._session.replica) == dump(shelf.replay(one._session.replica.last))


# -- limits ---------------------------------------------------------------------------------------------------


async def test_two_that_start_at_once_with_different_limits(shelf):
    """One of them sets the account's, the other is told."""
    ledgers = [process(shelf, RateLimits(rpm=rpm)) for rpm in (1, 2, 3)]
    verdicts = await asyncio.gather(*(ledger.reserve(ONE) for ledger in ledgers), return_exceptions=True)
    assert sorted(type(verdict).__name__ for verdict in verdicts) == [
        "Charge",
        "ConfigurationError",
        "ConfigurationError",
    ]


async def test_limits_do_not_change_under_one_who_has_just_come(shelf):
    """It joined, with the limits that it found, while another was about to set others."""
    small = RateLimits(tpm=5)
    one, slow, quick = process(shelf, small), process(shelf, RateLimits(rpm=7)), process(shelf, small)
    assert isinstance(await one.reserve(ONE), Denial)
    await one.aclose()
    slow._journal.fate.after = 0.02
    verdicts = await asyncio.gather(slow.reserve(ONE), quick.reserve(ONE), return_exceptions=True)
    assert [type(verdict) for verdict in verdicts] == [ConfigurationError, Denial]
    assert quick.limits == small


async def test_limits_change_when_nobody_is_there(shelf):
    """Not while one runs that means others; the usage stays."""
    one, other = process(shelf, RateLimits(tpd=1000)), process(shelf, RateLimits(tpd=500))
    one.end(await one.reserve(Cost(400)), answered=True)
    with pytest.raises(ConfigurationError, match="processes that run now share this account"):
        await other.reserve(ONE)
    await one.aclose()
    assert (await other.reserve(Cost(200))).reason == "tpd"
    assert isinstance(await other.reserve(Cost(100)), Charge)


async def test_limits_change_when_all_who_meant_others_are_dead(shelf):
    """A crash must not keep the owner from setting other limits."""
    one, other = process(shelf, RateLimits(rpm=5)), process(shelf, RateLimits(rpm=6))
    await one.reserve(ONE)
    one._journal.crash()
    await asyncio.sleep(LEASE - 1)
    with pytest.raises(ConfigurationError):
        await other.reserve(ONE)
    await asyncio.sleep(2)
    assert isinstance(await other.reserve(ONE), Charge)
    assert other.limits.rpm == 6


async def test_a_minute_of_another_length_is_another_account(shelf):
    """What was booked by one cannot be read by the other."""
    one, other = process(shelf, RateLimits(rpm=5)), process(shelf, RateLimits(rpm=5, minute=6.0))
    one.cancel(await one.reserve(ONE))
    await one.aclose()
    with pytest.raises(ConfigurationError):
        await other.reserve(ONE)


# -- growth ---------------------------------------------------------------------------------------------------


async def test_the_journal_and_the_books_stay_small(shelf, monkeypatch):
    """Two processes, thousands of reservations; a third that comes later reads little."""
    monkeypatch.setattr(session, "KEPT", 100)
    limits = RateLimits(rpm=50, minute=1.0, day=100.0)
    ledgers = [process(shelf, limits) for _ in range(2)]

    async def work(ledger):
        limiter = limiter_of(ledger)
        for _ in range(500):
            async with limiter.acquire(ONE) as reservation:
                reservation.sent()

    await asyncio.gather(*map(work, ledgers))
    assert len(shelf.history) > 3000
    assert len(shelf.entries) < 500
    books = ledgers[0]._session.replica.books
    assert len(books.minute._entries) <= 55
    late = process(shelf, limits)
    await late.refresh()
    assert late.usage().requests_sent == 1000
    assert dump(late._session.replica) == dump(shelf.replay(late._session.replica.last))


async def test_who_is_far_behind_decides_nothing_on_what_it_has_not_read(shelf, monkeypatch):
    """What it missed is in a snapshot: the room that it remembers was taken before that was written."""
    monkeypatch.setattr(session, "KEPT", 10)
    limits = RateLimits(concurrency=3)
    late, one = process(shelf, limits), process(shelf, limits)
    late.cancel(await late.reserve(ONE))
    held = [await one.reserve(ONE) for _ in range(2)]
    for _ in range(30):
        one.refuse(await one.reserve(ONE), Refusal("overloaded"), lambda lesson: None, pause=False)
        await one.refresh()
    held.append(await one.reserve(ONE))
    shelf.history.append(Entry(len(shelf.history) + 1, shelf.at, "x", "alive", {}))
    shelf.entries = [entry for entry in shelf.entries if entry.id > shelf.pruned]
    assert shelf.pruned > late._session.replica.last
    verdict = await late.reserve(ONE)
    assert isinstance(verdict, Denial), held


async def test_the_past_of_a_pause_is_forgotten_by_all(shelf):
    """A probe that has passed by the clock opens the budget for the next two at once, not for another probe."""
    one, other = process(shelf, RateLimits(concurrency=9)), process(shelf, RateLimits(concurrency=9))
    one.refuse(await one.reserve(ONE), Refusal("budget", "tpm", retry_after=1.0), lambda lesson: None, pause=True)
    await one.refresh()
    await asyncio.sleep(1.5)
    probe = await one.reserve(ONE)
    one.sent(probe)
    await asyncio.sleep(2)
    assert isinstance(await other.reserve(ONE), Charge)
    assert isinstance(await one.reserve(ONE), Charge)


# -- endings --------------------------------------------------------------------------------------------------


async def test_closing_enters_what_is_left_and_says_goodbye(shelf):
    """Slots come back at once, not after the lease."""
    one, other = process(shelf, RateLimits(concurrency=3)), process(shelf, RateLimits(concurrency=3))
    charges = [await one.reserve(ONE) for _ in range(3)]
    one.sent(charges[0])
    one.end(charges[0], answered=True)
    one.cancel(charges[1])
    await one.aclose()
    other.cancel(await other.reserve(ONE))
    await other.refresh()
    usage = other.usage()
    assert (usage.concurrency.used, usage.tpm.used) == (0, 20)
    assert shelf.operations().count("part") == 1


async def test_a_closed_ledger_enters_nothing(shelf):
    """Endings of what was under way are known already; nobody is let in."""
    ledger = process(shelf, subscribed=True)
    charge = await ledger.reserve(ONE)
    await ledger.aclose()
    history = len(shelf.history)
    ledger.sent(charge)
    ledger.end(charge, answered=True)
    for ask in (lambda: ledger.reserve(ONE), ledger.refresh):
        with pytest.raises(LedgerUnavailable, match="closed"):
            await ask()
    await asyncio.sleep(100)
    assert len(shelf.history) == history


@pytest.mark.parametrize("after", [0.0, 0.0005, 0.0015, 0.0025, 0.0035, 0.0045])
async def test_closing_while_somebody_asks(shelf, after):
    """It may come in or not; in the end nobody holds anything, and the process is gone."""
    ledger = process(shelf)
    asking = asyncio.ensure_future(ledger.reserve(ONE))
    await asyncio.sleep(after)
    await ledger.aclose()
    await asyncio.gather(asking, return_exceptions=True)
    books = shelf.replay(None)
    assert books.processes == {}
    assert books.books.usage(shelf.now()).concurrency.used == 0


async def test_closing_without_a_journal(shelf):
    """It takes one try, and nothing is left running."""
    ledger = process(shelf)
    charge = await ledger.reserve(ONE)
    ledger._journal.fate.failures = ["before"] * 100
    ledger.end(charge, answered=True)
    await ledger.aclose()
    assert ledger._journal.closed
    await asyncio.sleep(100)


@pytest.mark.parametrize("failures", [0, 1])
async def test_closing_turns_away_who_waits_for_room(shelf, failures):
    """No clock would ever wake it, nor would another process; whether the goodbye is heard or not."""
    one, other = process(shelf), process(shelf)
    await one.reserve(ONE)
    waiting = asyncio.ensure_future(limiter_of(other).acquire(ONE).__aenter__())
    await asyncio.sleep(0.5)
    other._journal.fate.failures = ["before"] * failures
    await other.aclose()
    with pytest.raises(LedgerUnavailable, match="closed"):
        async with asyncio.timeout(1):
            await waiting


@pytest.mark.parametrize("when_away", ["wait", "share"])
async def test_closing_turns_away_who_waits_for_the_journal(shelf, when_away):
    """Neither does it stand there for ever, nor is it let in by a share that nobody will enter."""
    ledger = SharedLedger(FakeJournal(shelf, fate=Fate()), when_away=when_away)
    ledger.configure(RateLimits(rpm=5))
    ledger.cancel(await ledger.reserve(ONE))
    await asyncio.sleep(LEASE)
    ledger._journal.fate.failures = ["before"] * 10_000
    waiting = asyncio.ensure_future(limiter_of(ledger).acquire(ONE).__aenter__())
    await asyncio.sleep(50)
    assert not waiting.done()
    await ledger.aclose()
    with pytest.raises(LedgerUnavailable, match="closed"):
        async with asyncio.timeout(1):
            await waiting
    await asyncio.sleep(100)
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.reserve(ONE)


@pytest.mark.parametrize("error", [ConfigurationError, ZeroDivisionError])
async def test_closing_lets_go_of_the_journal_whatever_happens(shelf, error):
    """An error of ours is told, one of the journal is not; nothing runs on in either case."""
    ledger = process(shelf)
    await ledger.reserve(ONE)

    async def append(*_, **__):
        raise error

    ledger._journal.append = append
    (outcome,) = await asyncio.gather(ledger.aclose(), return_exceptions=True)
    assert type(outcome) is (type(None) if error is ConfigurationError else error)
    assert ledger._journal.closed
    assert ledger._renewal.cancelled()


async def test_closing_that_is_cancelled_lets_go_of_the_journal(shelf):
    """Which hangs, with something still to be entered."""
    ledger = process(shelf)
    charge = await ledger.reserve(ONE)
    ledger._journal.crash()
    ledger.end(charge, answered=True)
    await asyncio.sleep(1)
    entering = ledger._entering
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await ledger.aclose()
    assert ledger._journal.closed
    assert ledger._renewal.cancelled()
    await asyncio.wait([entering], timeout=1)
    assert entering.cancelled()


async def test_a_ledger_is_of_no_use_after_a_fork(shelf, monkeypatch):
    """Two processes of one name would take each other's entries for their own."""
    ledger = process(shelf)
    await ledger.refresh()
    monkeypatch.setattr(session.os, "getpid", lambda: 0)
    with pytest.raises(LedgerUnavailable, match="before a fork"):
        await ledger.reserve(ONE)


def test_an_ending_after_the_loop_is_entered_by_the_next_one(shelf):
    """Or never, and the lease ends."""
    loop = VirtualTimeLoop()
    ledger = process(shelf)
    charge = loop.run_until_complete(ledger.reserve(ONE))
    ledger.end(charge, answered=True)
    assert slots_after(loop, ledger) == 0
    loop.run_until_complete(ledger.aclose())
    loop.close()


def slots_after(loop, ledger):
    """Slots in use after a refresh."""

    async def read():
        await ledger.refresh()
        return slots(ledger)

    return loop.run_until_complete(read())


async def test_the_clock_is_the_journals(shelf):
    """Entries' times never fall, and windows slide by them."""
    ledger = process(shelf, RateLimits(rpm=1))
    ledger.end(await ledger.reserve(ONE), answered=True)
    await ledger.refresh()
    shelf.ahead += 40
    denial = await ledger.reserve(ONE)
    assert denial.wait == pytest.approx(60 * (1 + GUARD) - 40, abs=0.1)
    assert all(one.at <= next_.at for one, next_ in pairwise(shelf.history))


async def test_a_patient_ledger_lets_nobody_in_unseen_and_waits_for_its_journal():
    """The default: who wants in stands there until the journal can be reached again."""
    fate = Fate()
    ledger = SharedLedger(FakeJournal(Shelf(), fate=fate))
    ledger.configure(SLOT)
    fate.failures = ["before"] * 3
    charge = await ledger.reserve(ONE)
    assert now() == pytest.approx(3 * RETRY, abs=0.1)
    ledger.cancel(charge)
    await ledger.aclose()


async def test_a_limiter_that_was_closed_stands_in_nobodys_way():
    """Its process leaves the account's line with its last waiter."""
    shelf = Shelf()
    first, second = process(shelf), process(shelf)
    closing, other = limiter_of(first), limiter_of(second)
    held = await closing.acquire(ONE)
    waiting = [asyncio.ensure_future(closing.acquire(ONE)._limiter.admit_in_turn(ONE, None, None)) for _ in range(2)]
    await asyncio.sleep(0.5)
    closing.close()
    await asyncio.gather(*waiting, return_exceptions=True)
    held.end()
    async with asyncio.timeout(5):
        await other.acquire(ONE)


async def test_the_limits_are_ours_from_the_beginning():
    """Also where another process, which has gone, had others: what cannot fit is told by ours."""
    shelf = Shelf()
    first = process(shelf, RateLimits(tpd=1_000_000))
    first.cancel(await first.reserve(ONE))
    await first.aclose()
    second = process(shelf, RateLimits(tpd=5))
    await second.refresh()
    assert second.limits == RateLimits(tpd=5)
    with pytest.raises(RequestTooLarge):
        await limiter_of(second).acquire(ONE)
    await second.aclose()
