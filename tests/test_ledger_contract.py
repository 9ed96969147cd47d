"""What every ledger promises, wherever its books are: one suite over all of them."""

import asyncio
import math
import uuid

import pytest

from kimi_async.budgets import GUARD, Charge, Denial
from kimi_async.errors import ConfigurationError
from kimi_async.ledger import open_ledger
from kimi_async.ledger.memory import MemoryLedger
from kimi_async.ledger.shared import SharedLedger
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits
from kimi_async.refusal import Refusal

from .journaled import FakeJournal, Shelf
from .valkey import valkey  # noqa: F401 - a fixture

MINUTE = 0.4
FOUR = RateLimits(concurrency=3, rpm=5, tpm=1000, tpd=2000, minute=MINUTE, day=40.0)


class Account:
    """One account's books, and ways to them."""

    def __init__(self, connect):
        self.connect = connect
        self.ledgers = []

    async def open(self, limits=FOUR):
        """The end of one more process; with books in memory there is only one."""
        ledger = await self.connect()
        if ledger not in self.ledgers:
            self.ledgers.append(ledger)
        ledger.configure(limits)
        return ledger

    async def settle(self):
        """All have entered what they know, and read what the others know."""
        for ledger in [*self.ledgers, *self.ledgers]:
            if isinstance(ledger, SharedLedger):
                await ledger.refresh()
        await asyncio.sleep(0)


async def closing(account):
    """The account, and in the end its ledgers closed."""
    yield account
    for ledger in account.ledgers:
        await ledger.aclose()


def used(ledger):
    """How much of each budget is taken."""
    usage = ledger.usage()
    return usage.concurrency.used, usage.rpm.used, usage.tpm.used, usage.tpd.used


async def send(ledger, tokens=10):
    """Reserve what fits, and send."""
    charge = await ledger.reserve(Cost(tokens))
    assert isinstance(charge, Charge), charge
    ledger.sent(charge)
    return charge


def forget(lesson):
    """Nobody asked for it."""


async def refuse(account, ledger, *, pause=False, **fields):
    """Send, and be refused; the lesson."""
    lessons = []
    ledger.refuse(await send(ledger), Refusal("budget", **fields), lessons.append, pause=pause)
    await account.settle()
    return lessons[0]


class Contract:
    """Subclasses say whose: their fixture ``account`` is an `Account`."""

    @pytest.mark.parametrize(
        ("limits", "cost", "reason"),
        [
            ({"concurrency": 1}, 1, "concurrency"),
            ({"rpm": 1}, 1, "rpm"),
            ({"tpm": 100}, 51, "tpm"),
            ({"tpd": 100}, 51, "tpd"),
        ],
    )
    async def test_each_budget_binds_across_processes(self, account, limits, cost, reason):
        """What one took, the other does not get; what still fits, it gets."""
        one, other = [await account.open(RateLimits(**limits, minute=MINUTE)) for _ in range(2)]
        await send(one, 50)
        denial = await other.reserve(Cost(cost))
        assert isinstance(denial, Denial)
        assert denial.reason == reason
        if reason in {"tpm", "tpd"}:
            assert isinstance(await other.reserve(Cost(50)), Charge)

    async def test_all_four_or_none(self, account):
        """A cost that fits three of four budgets takes nothing of the three."""
        ledger = await account.open()
        before = used(ledger)
        for tokens in (1500, 2500):
            assert isinstance(await ledger.reserve(Cost(tokens)), Denial)
        await account.settle()
        assert used(ledger) == before == (0, 0, 0, 0)

    async def test_many_at_once_get_what_there_is(self, account):
        """Two processes ask ten times each, all at the same time: three slots are three."""
        one, other = await account.open(), await account.open()
        verdicts = await asyncio.gather(*(ledger.reserve(Cost(10)) for ledger in (one, other) for _ in range(10)))
        assert sum(isinstance(verdict, Charge) for verdict in verdicts) == FOUR.concurrency
        await account.settle()
        assert used(one) == used(other) == (3, 3, 30, 30)

    async def test_a_life_pending_sent_ended(self, account):
        """Every step is seen by the other process."""
        one, other = await account.open(), await account.open()
        charge = await one.reserve(Cost(100))
        await other.reserve(Cost(1))
        await account.settle()
        assert charge.state == "pending"
        assert used(other) == used(one) == (2, 2, 101, 101)
        one.sent(charge)
        await account.settle()
        assert charge.state == "sent"
        assert (used(other), other.usage().requests_sent) == ((2, 2, 101, 101), 1)
        one.end(charge, answered=True)
        await account.settle()
        assert charge.state == "ended"
        assert used(other) == used(one) == (1, 2, 101, 101)
        assert other.usage().tokens_charged == one.usage().tokens_charged == 100

    async def test_cancelling_leaves_no_trace(self, account):
        """In either process."""
        one, other = await account.open(), await account.open()
        one.cancel(await one.reserve(Cost(100)))
        other.cancel(await other.reserve(Cost(100)))
        await account.settle()
        assert used(one) == used(other) == (0, 0, 0, 0)

    async def test_an_ending_without_having_been_sent_is_charged(self, account):
        """Nobody knows that it was not."""
        ledger = await account.open()
        ledger.end(await ledger.reserve(Cost(100)), answered=False)
        await account.settle()
        assert used(ledger) == (0, 1, 100, 100)

    @pytest.mark.parametrize("first", ["end", "cancel", "refuse"])
    @pytest.mark.parametrize("second", ["end", "cancel", "refuse", "sent"])
    async def test_exactly_one_ending(self, account, first, second):
        """A second one is a programmer's error, and changes nothing."""
        ledger = await account.open()
        charge = await ledger.reserve(Cost(10))
        act = {
            "end": lambda: ledger.end(charge, answered=True),
            "cancel": lambda: ledger.cancel(charge),
            "refuse": lambda: ledger.refuse(charge, Refusal("overloaded"), forget, pause=True),
            "sent": lambda: ledger.sent(charge),
        }
        act[first]()
        await account.settle()
        before = used(ledger)
        with pytest.raises(RuntimeError):
            act[second]()
        await account.settle()
        assert used(ledger) == before

    async def test_a_sent_request_cannot_be_cancelled_nor_sent_again(self, account):
        """It is charged."""
        ledger = await account.open()
        charge = await send(ledger)
        for act in (ledger.cancel, ledger.sent):
            with pytest.raises(RuntimeError):
                act(charge)
        ledger.end(charge, answered=True)

    async def test_the_minute_slides_by_the_ledgers_clock(self, account):
        """A denial's wait is a duration; after it the request fits, and before it does not."""
        one, other = await account.open(), await account.open()
        for _ in range(5):
            one.end(await send(one), answered=True)
        await account.settle()
        denial = await other.reserve(Cost(10))
        assert denial.reason == "rpm"
        assert denial.wait == pytest.approx(MINUTE * (1 + GUARD), abs=0.1)
        await asyncio.sleep(denial.wait + 0.001)
        assert isinstance(await other.reserve(Cost(10)), Charge)

    async def test_the_day_outlives_the_minute(self, account):
        """After a minute the day still knows the tokens."""
        one, other = await account.open(), await account.open()
        for _ in range(2):
            one.end(await send(one, 1000), answered=True)
            await account.settle()
            await asyncio.sleep(MINUTE * 1.1)
        denial = await other.reserve(Cost(1))
        assert denial.reason == "tpd"
        assert 35 < denial.wait <= 40 * (1 + GUARD)
        await account.settle()
        assert used(other) == (0, 0, 0, 2000)

    async def test_usage_is_the_accounts(self, account):
        """The guard and the peak too."""
        one, other = await account.open(), await account.open()
        for ledger in (one, other):
            await send(ledger, 100)
        await account.settle()
        usage = other.usage()
        assert usage == one.usage()
        assert usage.guard == pytest.approx(GUARD * MINUTE)
        assert (usage.peak_slots, usage.requests_sent, usage.tokens_charged) == (2, 2, 200)
        assert (usage.tpm.limit, usage.tpd.limit) == (1000, 2000)

    # -- what refusals teach --------------------------------------------------------------------------------------

    async def test_a_lower_limit_is_adopted_by_all(self, account):
        """The owner's limits stay the configured ones: he may say them again."""
        one, other = await account.open(), await account.open()
        lesson = await refuse(account, one, budget="tpm", limit=300, current=310)
        assert (lesson.adopted, lesson.foreign) == (300, 300)
        one.cancel(await one.reserve(Cost(0)))
        other.cancel(await other.reserve(Cost(0)))
        assert one.limits.tpm == other.limits.tpm == 300
        other.configure(FOUR)
        third = await account.open()
        assert isinstance(await third.reserve(Cost(400)), Denial)
        await account.settle()
        assert third.limits.tpm == 300

    async def test_foreign_usage_is_booked_for_all(self, account):
        """The gateway counts 950 tokens: 940 are somebody else's."""
        one, other = await account.open(), await account.open()
        lesson = await refuse(account, one, budget="tpm", limit=1000, current=950)
        assert (lesson.explained, lesson.foreign) == (True, 940)
        denial = await other.reserve(Cost(100))
        assert denial.reason == "tpm"
        assert isinstance(await other.reserve(Cost(60)), Charge)

    async def test_a_pause_holds_for_all_and_ends_with_a_probe(self, account):
        """One goes first; the other follows when it was not refused."""
        one, other = await account.open(), await account.open()
        lesson = await refuse(account, one, pause=True, budget="rpm", retry_after=0.1)
        assert (lesson.explained, lesson.echo, lesson.pause) == (False, False, pytest.approx(0.1))
        denial = await other.reserve(Cost(10))
        assert (denial.reason, denial.wait) == ("rpm", pytest.approx(0.1, abs=0.05))
        await asyncio.sleep(denial.wait + 0.001)
        probe = await other.reserve(Cost(10))
        assert await one.reserve(Cost(10)) == Denial("probe", math.inf)
        other.sent(probe)
        other.end(probe, answered=True)
        await account.settle()
        assert isinstance(await one.reserve(Cost(10)), Charge)

    async def test_a_refused_request_leaves_the_tokens_and_stays_a_request(self, account):
        """Kimi counts attempts."""
        one, other = await account.open(), await account.open()
        lesson = await refuse(account, one, budget="concurrency")
        assert lesson == lesson.__class__(explained=False)
        await other.reserve(Cost(0))
        await account.settle()
        assert used(other) == (1, 2, 0, 0)

    async def test_an_echo_says_nothing_new(self, account):
        """Two were under way; the second refusal is of the same moment, though another process sent it: one pause."""
        one, other = await account.open(), await account.open()
        lessons = []
        charges = [(ledger, await send(ledger)) for ledger in (one, other)]
        for ledger, charge in charges:
            ledger.refuse(charge, Refusal("budget", "rpm", retry_after=0.1), lessons.append, pause=True)
            await account.settle()
        assert [lesson.echo for lesson in lessons] == [False, True]
        assert [lesson.pause for lesson in lessons] == pytest.approx([0.1, 0.0])

    async def test_what_the_books_explain_closes_nothing(self, account):
        """They tell how long to wait."""
        one = await account.open()
        lesson = await refuse(account, one, pause=True, budget="tpm", limit=1000, current=950)
        assert (lesson.explained, lesson.pause) == (True, 0.0)

    # -- limits, forecasts, notifications -------------------------------------------------------------------------

    async def test_a_ledger_has_one_account(self, account):
        """The same limits may be said again, other ones may not."""
        ledger = await account.open()
        ledger.configure(FOUR)
        with pytest.raises(ConfigurationError, match="cannot also have"):
            ledger.configure(RateLimits(rpm=1))

    async def test_the_forecast_is_what_happens(self, account):
        """Seven requests of five a minute."""
        ledger = await account.open()
        for _ in range(4):
            ledger.end(await send(ledger), answered=True)
        await account.settle()
        waits = ledger.forecast([Cost(10)])
        assert waits(Cost(10)) == ("rpm", pytest.approx(MINUTE * (1 + GUARD), abs=0.1))
        assert ledger.time_to_send(1, 10) == 0.0
        assert ledger.time_to_send(2, 20) == pytest.approx(MINUTE * (1 + GUARD), abs=0.1)
        await account.settle()
        assert used(ledger)[1] == 4

    async def test_whoever_waits_hears_of_room(self, account):
        """Three slots are taken by one process; the other's head is woken when one comes back."""
        one, other = await account.open(), await account.open()
        held = [await send(one) for _ in range(3)]
        limiter = RateLimiter(FOUR, ledger=other, pace="smooth")
        waiting = asyncio.ensure_future(limiter.acquire(Cost(10)).__aenter__())
        await asyncio.sleep(0.05)
        await account.settle()
        assert not waiting.done()
        one.end(held[0], answered=True)
        async with asyncio.timeout(0.5):  # sooner than by looking once a second
            reservation = await waiting
        reservation.cancel()

    async def test_who_gives_up_is_called_no_longer(self, account):
        """Unsubscribed is unsubscribed."""
        ledger, calls = await account.open(), []

        def on_room(*, slot_only):
            calls.append(slot_only)

        ledger.subscribe(on_room)
        ledger.end(await send(ledger), answered=True)
        await account.settle()
        assert calls
        ledger.unsubscribe(on_room)
        calls.clear()
        ledger.end(await send(ledger), answered=True)
        await account.settle()
        assert not calls

    async def test_a_reserve_that_is_cancelled_in_flight_gives_everything_back(self, account):
        """At whatever await."""
        one, other = await account.open(), await account.open()
        for turns in range(12):
            task = asyncio.ensure_future(one.reserve(Cost(10)))
            for _ in range(turns):
                await asyncio.sleep(0.0002 * turns)
            task.cancel()
            (verdict,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(verdict, Charge):
                one.cancel(verdict)
        other.cancel(await other.reserve(Cost(10)))
        await account.settle()
        assert used(one) == used(other) == (0, 0, 0, 0)

    async def test_closing_twice_is_closing_once(self, account):
        """The books stay."""
        one, other = await account.open(), await account.open()
        if one is other:
            return
        await send(one, 100)
        await one.aclose()
        await one.aclose()
        other.cancel(await other.reserve(Cost(0)))
        await other.refresh()
        assert used(other) == (0, 1, 100, 100)


class TestOnVirtualTime(Contract):
    """The books of one process, and those of several over a journal in memory."""

    @pytest.fixture(params=["memory", "journal"])
    async def account(self, request):
        """An account that nobody has used."""
        shelf, memory = Shelf(), MemoryLedger()

        async def connect():
            return memory if request.param == "memory" else SharedLedger(FakeJournal(shelf))

        async for account in closing(Account(connect)):
            yield account


@pytest.mark.real_time
class TestOnRealTime(Contract):
    """A file, and a server."""

    @pytest.fixture(params=["sqlite", "valkey"])
    async def account(self, request, tmp_path):
        """An account that nobody has used."""
        name = uuid.uuid4().hex
        if request.param == "valkey":
            url = request.getfixturevalue("valkey").url
        else:
            url = f"sqlite://{tmp_path / 'ledger.sqlite3'}"

        async for account in closing(Account(lambda: open_ledger(url, account=name))):
            yield account
