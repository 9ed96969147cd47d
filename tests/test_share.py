"""An account whose ledger is away: what each of its processes lets in by itself."""

import asyncio
from contextlib import suppress
from itertools import pairwise

import pytest

from kimi_async.budgets import Charge, Denial
from kimi_async.errors import LedgerUnavailable, LimiterClosed, RequestTooLarge
from kimi_async.events import LedgerAway, LedgerBack
from kimi_async.ledger.replica import LEASE, OUTAGE, Entry, Replica
from kimi_async.ledger.share import Share
from kimi_async.ledger.shared import RETRY, SharedLedger
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits
from kimi_async.refusal import Refusal

from .journaled import FakeJournal, Shelf

LIMITS = RateLimits(concurrency=20, rpm=10, tpm=1000, tpd=5000)
MINUTE = 60.3
"""With its guard."""


@pytest.fixture
def shelf():
    """An account's journal."""
    return Shelf()


class Process:
    """A process that shares its account in that way, with all that it was told and all that it sent."""

    def __init__(self, shelf, limits=LIMITS, *, when_away="share"):
        self.events = []
        self.sent = []
        self.failure = None
        self.journal = FakeJournal(shelf, fate=lambda: (0.001, 0.001, self.failure))
        self.ledger = SharedLedger(self.journal, when_away=when_away, on_event=self.events.append)
        self.limiter = RateLimiter(limits, ledger=self.ledger, on_event=self.events.append)

    async def request(self, cost, seconds=0.1):
        async with self.limiter.acquire(cost) as reservation:
            reservation.sent()
            self.sent.append((asyncio.get_running_loop().time(), cost.tokens))
            await asyncio.sleep(seconds)


async def settled(shelf, number, limits=LIMITS):
    """Processes that all know of each other."""
    processes = [Process(shelf, limits) for _ in range(number)]
    for one in processes:
        await one.request(Cost(1))
    await asyncio.sleep(LEASE)
    return processes


def most(sends, amount, span=60.0):
    """The most that any sliding minute has seen."""
    return max(sum(amount(tokens) for at, tokens in sends if end - span < at <= end) for end, _ in sends)


def account(*rows, limits=LIMITS):
    """A replica after rows of (time, process, operation, detail)."""
    replica = Replica()
    fields = {"concurrency": limits.concurrency, "rpm": limits.rpm, "tpm": limits.tpm, "tpd": limits.tpd}
    first = (0.0, "a", "join", {"address": "1"}), (0.0, "a", "limits", fields), (0.0, "b", "join", {"address": "2"})
    for number, row in enumerate((*first, *rows), start=1):
        replica.apply(Entry(number, row[0], *row[1:]))
    return replica


def opened(replica, now, process="a"):
    """The share of a process."""
    share = Share()
    share.open(replica, process, now)
    return share


ALIVE = [(at, name, "alive", {}) for at in (15.0, 30.0) for name in "ab"]


# -- the share itself, row by row -----------------------------------------------------------------------------


def test_a_share_that_is_not_open_decides_nothing():
    """And knows nothing of what happens to reservations."""
    share, charge = Share(), Charge(10, 0)
    assert share.reserve(0.0, Cost(1)) is None
    assert not share.sent(0.0, charge)
    assert not share.cancel(charge)
    assert not share.end(0.0, charge, answered=True)
    assert share.refuse(0.0, charge, Refusal("budget", "rpm"), pause=True) is None


def test_half_of_each_limit_after_a_minute():
    """For two processes; until then, what was sent before may still be in the window."""
    share = opened(account(*ALIVE), 31.0)
    assert share.reserve(31.0, Cost(10)) == Denial("ledger", pytest.approx(MINUTE))
    assert share.reserve(31.0 + MINUTE - 0.001, Cost(10)).reason == "ledger"
    now = 31.0 + MINUTE
    assert [type(share.reserve(now, Cost(100))) for _ in range(6)] == [Charge] * 5 + [Denial]
    assert share.reserve(now, Cost(1)).reason == "rpm"
    assert opened(account(*ALIVE), 31.0).reserve(now, Cost(501)).reason == "tpm"


def test_half_of_what_was_left_of_the_day():
    """Which is the only budget that what was sent before does not leave by then."""
    rows = (0.0, "b", "reserve", {"tokens": 4801}), (0.0, "b", "sent", {"charge": 4})
    share = opened(account(*rows, *ALIVE), 31.0)
    assert share.reserve(31.0 + MINUTE, Cost(100)).reason == "tpd"
    assert isinstance(share.reserve(31.0 + MINUTE, Cost(99)), Charge)


@pytest.mark.parametrize(
    ("rows", "now", "may"),
    [
        (ALIVE, 30.0 + OUTAGE, True),
        (ALIVE, 30.1 + OUTAGE, False),
        ([], OUTAGE, False),
        ([(15.0, "a", "alive", {})], OUTAGE + 0.1, True),
        ([*ALIVE, (31.0, "b", "dead", {"process": "a"})], 31.0, True),
        ([*ALIVE, (31.0, "a", "part", {})], 31.0, False),
    ],
    ids=["lately seen", "long ago", "just joined", "joined long ago", "found dead in error", "gone"],
)
def test_who_is_not_sure_that_all_know_of_each_other_waits(rows, now, may):
    """It may be one of more than it knows."""
    share = opened(account(*rows), now)
    assert isinstance(share.reserve(now + 10 * MINUTE, Cost(1)), Charge) is may


@pytest.mark.parametrize(
    ("limits", "rows"),
    [
        (RateLimits(concurrency=1), []),
        (RateLimits(rpm=10, tpd=100), [(1.0, "a", "reserve", {"tokens": 99}), (1.0, "a", "sent", {"charge": 4})]),
        (
            RateLimits(rpm=10, tpd=100),
            [
                (1.0, "a", "reserve", {"tokens": 9}),
                (1.0, "a", "refuse", {"charge": 4, "kind": "budget", "budget": "tpd", "retry_after": 9000.0}),
            ],
        ),
    ],
    ids=["one slot for two", "one token for two", "a day that is over"],
)
def test_where_there_is_nothing_to_share_all_wait(limits, rows):
    """For the ledger."""
    share = opened(account(*rows, *ALIVE, limits=limits), 31.0)
    assert share.reserve(1000.0, Cost(1)) == Denial("ledger", float("inf"))


def test_requests_from_before_hold_their_slots():
    """They are this process' own, so they are in its share."""
    share = opened(account(*ALIVE, limits=RateLimits(concurrency=4)), 31.0)
    before = [Charge(1, 0), Charge(1, 0)]
    for charge in before:
        share.adopt(31.0, charge)
    assert share.reserve(100.0, Cost(1)).reason == "concurrency"
    assert share.cancel(before[0])
    assert isinstance(share.reserve(100.0, Cost(1)), Charge)
    assert share.end(100.0, before[1], answered=True)
    assert isinstance(share.reserve(100.0, Cost(1)), Charge)


def test_a_refusal_teaches_the_share():
    """The limit of the account is at least as low as what it says, and one that nothing explains closes a budget."""
    share = opened(account(*ALIVE), 31.0)
    charges = [share.reserve(100.0, Cost(10)) for _ in range(2)]
    for charge in charges:
        assert share.sent(100.0, charge)
    refusal = Refusal("budget", "tpm", retry_after=5.0)
    assert share.refuse(100.0, charges[0], refusal, pause=True).pause == 5.0
    assert share.refuse(100.0, charges[1], Refusal("budget", "rpm", limit=3), pause=False).adopted == 3
    assert share.reserve(100.0, Cost(10)) == Denial("tpm", 5.0)


# -- processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_together_they_stay_within_the_limits_and_use_most_of_them(shelf, number):
    """Through an outage of five minutes, in which all always want more; and after it."""
    processes = await settled(shelf, number)
    tasks = [asyncio.ensure_future(one.request(Cost(20), 2.0)) for one in processes for _ in range(60)]
    await asyncio.sleep(20)
    for one in processes:
        one.failure = "before"
    away = asyncio.get_running_loop().time()
    await asyncio.sleep(5 * 60)
    back = asyncio.get_running_loop().time()
    for one in processes:
        one.failure = None
    await asyncio.gather(*tasks)
    sends = sorted(send for one in processes for send in one.sent)
    assert most(sends, lambda _: 1) <= LIMITS.rpm
    assert most(sends, lambda tokens: tokens) <= LIMITS.tpm
    meanwhile = [at for at, _ in sends if away + 1 < at < back]
    assert len(meanwhile) >= 3 * number * (LIMITS.rpm // number)
    assert meanwhile[0] >= away + MINUTE
    for one in processes:
        away_, back_ = (event for event in one.events if isinstance(event, LedgerAway | LedgerBack))
        assert away_.then == "share"
        assert back_.admitted == len([at for at, _ in one.sent if away + 1 < at < back])
        assert back_.seconds == pytest.approx(5 * 60, abs=LEASE / 3 + 2 * RETRY)


async def test_what_was_sent_meanwhile_is_entered_when_the_ledger_is_back(shelf):
    """To the token, for the day remembers it; and the slots are free."""
    one, other = await settled(shelf, 2)
    one.failure = other.failure = "before"
    await asyncio.gather(one.request(Cost(30)), one.request(Cost(4)), other.request(Cost(500)))
    one.failure = other.failure = None
    await asyncio.sleep(2 * RETRY)
    for ledger in (one.ledger, other.ledger):
        await ledger.refresh()
        usage = ledger.usage()
        assert (usage.concurrency.used, usage.requests_sent, usage.tpd.used) == (0, 5, 536)
    await one.ledger.aclose()


async def test_what_happens_while_it_is_entered_is_entered_too(shelf):
    """The share goes on until the ledger knows it all."""
    (one,) = await settled(shelf, 1, RateLimits(concurrency=20))
    one.failure = "before"
    await one.request(Cost(1))
    one.failure = None
    for _ in range(1500):
        await one.request(Cost(1), 0.001)
    await one.ledger.refresh()
    usage = one.ledger.usage()
    assert (usage.concurrency.used, usage.requests_sent, usage.tokens_charged) == (0, 1502, 1502)
    assert one.ledger._numbers == {}


async def test_a_probe_of_the_share_that_takes_long_to_answer_lets_the_others_follow(shelf):
    """Whoever waits behind it is told when it was sent; from then on the clock decides."""
    (one,) = await settled(shelf, 1, RateLimits(concurrency=20))
    one.failure = "before"
    await one.request(Cost(1))
    refused = await one.limiter.acquire(Cost(1))
    refused.refused(Refusal("budget", "concurrency", retry_after=5.0))
    probe = await one.limiter.acquire(Cost(1))
    waiting = asyncio.ensure_future(one.request(Cost(1)))
    await asyncio.sleep(3.0)
    probe.sent()
    async with asyncio.timeout(0.02 * MINUTE + 0.2):
        await waiting
    one.failure = None
    probe.end()
    await one.ledger.aclose()


async def test_what_the_share_has_learned_is_known_when_the_ledger_is_back(shelf):
    """If that is soon: another client's usage does not go because the share does."""
    (one,) = await settled(shelf, 1, RateLimits(concurrency=20, tpm=1000))
    reservation = await one.limiter.acquire(Cost(10))
    reservation.sent()
    await one.ledger.refresh()
    one.failure = "before"
    with suppress(LedgerUnavailable):
        await one.ledger.refresh()
    reservation.refused(Refusal("budget", "tpm", limit=1000, current=1005))
    one.failure = None
    await asyncio.sleep(RETRY + 0.1)
    await one.ledger.refresh()
    assert one.ledger.usage().tpm.used == 995
    await one.ledger.aclose()


async def test_closing_enters_what_the_share_let_in(shelf):
    """The moment that the ledger is back."""
    one, other = await settled(shelf, 2)
    one.failure = "before"
    await one.request(Cost(30))
    one.failure = None
    await one.ledger.aclose()
    await other.ledger.refresh()
    assert other.ledger.usage().tpd.used == 32


async def test_an_idle_process_shows_life_or_the_others_would_take_its_share(shelf):
    """It may want its share at any time."""
    processes = await settled(shelf, 2)
    await asyncio.sleep(100 * LEASE)
    assert all(len(one.ledger.view().participants) == 2 for one in processes)
    assert "dead" not in shelf.operations()
    assert max(later.at - earlier.at for earlier, later in pairwise(shelf.history)) <= LEASE / 3 + 1


async def test_the_share_refuses_what_can_never_fit(shelf):
    """By the account's limits; what only the share is too small for waits for the ledger."""
    one, other = await settled(shelf, 2)
    one.failure = other.failure = "before"
    with pytest.raises(RequestTooLarge):
        await one.request(Cost(1001))
    waiting = asyncio.ensure_future(one.request(Cost(600)))
    await asyncio.sleep(300)
    assert not waiting.done()
    assert one.limiter.usage().waiting == 1
    one.failure = other.failure = None
    await waiting


async def test_a_refusal_meanwhile_is_learned_by_all_in_the_end(shelf):
    """By the one that was refused at once."""
    one, other = await settled(shelf, 2)
    one.failure = other.failure = "before"
    async with one.limiter.acquire(Cost(10)) as reservation:
        reservation.sent()
        reservation.refused(Refusal("budget", "rpm", limit=4))
    assert any(getattr(event, "limit", None) == 4 for event in one.events)
    one.failure = other.failure = None
    await asyncio.sleep(2 * RETRY)
    await other.ledger.refresh()
    assert other.limiter.limits.rpm == 4


# -- the other two ways ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("when_away", ["wait", "fail"])
async def test_nobody_is_let_in_where_that_is_not_wished(shelf, when_away):
    """It is told once that the ledger went, and once that it is back."""
    one = Process(shelf, when_away=when_away)
    await one.request(Cost(1))
    await asyncio.sleep(LEASE)
    one.failure = "before"
    tasks = [asyncio.ensure_future(one.request(Cost(1))) for _ in range(3)]
    await asyncio.sleep(200)
    assert len(one.sent) == 1
    assert [type(event) for event in one.events] == [LedgerAway]
    one.failure = None
    results = await asyncio.gather(*tasks, return_exceptions=True)
    expected = type(None) if when_away == "wait" else LedgerUnavailable
    assert [type(result) for result in results] == [expected] * 3
    await one.request(Cost(1))
    assert [type(event) for event in one.events] == [LedgerAway, LedgerBack]
    assert one.events[1].admitted == 0


@pytest.mark.parametrize("when_away", ["wait", "share"])
async def test_closing_the_limiter_turns_away_who_waits_for_a_ledger_that_is_away(shelf, when_away):
    """Ctrl-C works at all times."""
    one = Process(shelf, when_away=when_away)
    await one.request(Cost(1))
    await asyncio.sleep(LEASE)
    one.failure = "before"
    tasks = [asyncio.ensure_future(one.request(Cost(1))) for _ in range(3)]
    await asyncio.sleep(5)
    one.limiter.close()
    async with asyncio.timeout(0.1):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [LimiterClosed] * 3
    one.failure = None
    await one.ledger.refresh()
    assert one.ledger.usage().concurrency.used == 0
    assert one.ledger._numbers == {}


async def test_a_look_that_fails_is_no_news(shelf):
    """Nobody waits for it but who looks, and he gets the error."""
    one = Process(shelf)
    one.failure = "before"
    with pytest.raises(LedgerUnavailable):
        await one.ledger.refresh()
    assert one.events == []
