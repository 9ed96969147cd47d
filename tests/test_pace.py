"""The pace on virtual time: the trial of the first burst, what slows it, and gateways that refuse bursts."""

import asyncio
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scenarios.makespan import BOUNDS, JITTERS, POLICIES, Case
from benchmarks.schedule import ideal, makespan
from kimi_async.errors import WaitTooLong
from kimi_async.events import ForeignUsage, Refused
from kimi_async.ledger.memory import MemoryLedger
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits
from kimi_async.mock.account import Account
from kimi_async.pace import LONGEST, LOOKS, SMOOTH, STEP, TRIAL, Pace, Trial
from kimi_async.refusal import Refusal

from .conftest import run_virtual

ONE = Cost(1)
HOLD = LOOKS * STEP * 60
REFUSED = Refusal("budget", "rpm", limit=60, retry_after=1.0)


def request(state="sent", *, answered=False):
    """One that has left."""
    return SimpleNamespace(state=state, answered=answered)


def answer(one):
    """It has ended well."""
    one.state, one.answered = "ended", True


def burst(trial, count, *, at=0.0, **options):
    """So many requests leave in one instant."""
    requests = [request(**options) for _ in range(count)]
    for one in requests:
        trial.leave(at, one)
    return requests


def clock():
    """The loop's time, from zero."""
    return asyncio.get_running_loop().time() - 1000.0


async def use(limiter, log, *, seconds=0.0, write=0.0, **options):
    """Acquire, send after a while, and hold the slot for another."""
    async with limiter.acquire(ONE, **options) as reservation:
        log.append(clock())
        await asyncio.sleep(write)
        reservation.sent()
        await asyncio.sleep(seconds)


async def departures(limiter, count, **options):
    """When so many requests that come at once leave, in seconds."""
    log = []
    await asyncio.gather(*(use(limiter, log, **options) for _ in range(count)))
    return log


# -- the trial ------------------------------------------------------------------------------------------------


def test_four_of_the_first_burst_go_and_the_others_hold():
    """For three looks that find all of them written."""
    trial = Trial(60, 60.0)
    burst(trial, TRIAL - 1)
    assert not trial.holds(0.0)
    burst(trial, 1)
    for _ in range(LOOKS):
        assert trial.holds(0.1)
        trial.look()
    assert not trial.holds(0.1)


def test_the_last_answer_is_the_news_and_not_the_first():
    """A gateway that refuses bursts lets the first request in."""
    trial = Trial(60, 60.0)
    requests = burst(trial, TRIAL)
    for one in requests:
        assert trial.holds(0.1)
        answer(one)
    assert not trial.holds(0.1)


def test_a_request_that_was_never_answered_is_no_news():
    """Cancelled, broken off or refused: nobody knows, or nobody should follow."""
    trial = Trial(60, 60.0)
    *others, last = burst(trial, TRIAL)
    for one in others:
        answer(one)
    last.state = "ended"
    for _ in range(2 * LOOKS):
        trial.look()
    assert [trial.holds(now) for now in (1.79, LONGEST * 60)] == [True, False]


def test_a_look_counts_only_if_all_of_them_were_written():
    """Before that, nobody can have been refused."""
    trial = Trial(60, 60.0)
    *_, last = [*burst(trial, TRIAL - 1), *burst(trial, 1, state="pending")]
    for _ in range(2 * LOOKS):
        trial.look()
    last.state = "sent"
    for _ in range(LOOKS):
        assert trial.holds(0.5)
        trial.look()
    assert not trial.holds(0.5)


def test_no_connection_is_waited_for_longer_than_a_while():
    """1.8 s."""
    trial = Trial(60, 60.0)
    burst(trial, TRIAL, state="pending")
    assert [trial.holds(now) for now in (1.79, LONGEST * 60)] == [True, False]


def test_requests_at_an_even_pace_are_no_burst():
    """However many; a burst that follows is the first one."""
    trial = Trial(60, 60.0)
    for second in range(100):
        burst(trial, 1, at=float(second))
        assert not trial.holds(float(second))
    burst(trial, TRIAL, at=200.0)
    assert trial.holds(200.0)


def test_only_the_first_burst_is_tried():
    """What is known is known."""
    trial = Trial(60, 60.0)
    burst(trial, TRIAL, answered=True)
    burst(trial, TRIAL, at=300.0)
    assert not trial.holds(300.0)


@pytest.mark.parametrize(("rate", "passed"), [(0.0, True), (0.5, True), (1.0, False)])
def test_a_burst_has_passed_when_a_third_of_rpm_went_ahead_of_the_even_pace(rate, passed):
    """And nobody was refused for a while: at once, or at twice the even pace, but never at that pace itself."""
    trial = Trial(60, 60.0)
    for number in range(60):
        burst(trial, 1, at=number * rate)
    assert trial.passed(59 * rate + HOLD + 0.01) is passed


@pytest.mark.parametrize("rpm", [1, 2])
def test_one_request_is_no_burst(rpm):
    """However large a part of RPM it is."""
    trial = Trial(rpm, 60.0)
    burst(trial, 1, answered=True)
    assert not trial.passed(30.0)
    burst(trial, 2, at=60.0, answered=True)
    assert trial.passed(60.0)


def test_a_burst_has_not_passed_while_it_may_still_be_refused():
    """Twenty have left, and the last of them was written before the next one left."""
    trial = Trial(60, 60.0)
    *_, last = burst(trial, 20, state="pending")
    burst(trial, 1, at=10.0)
    assert not trial.passed(20.0)
    last.state = "sent"
    assert not trial.passed(20.0)
    burst(trial, 1, at=20.0)
    assert [trial.passed(now) for now in (19.9 + HOLD, 20 + HOLD)] == [False, True]


def test_a_burst_has_passed_when_the_last_of_it_is_answered():
    """No refusal can come any more."""
    trial = Trial(60, 60.0)
    *_, last = burst(trial, 20)
    assert not trial.passed(0.1)
    answer(last)
    assert trial.passed(0.1)


def test_a_burst_of_which_the_last_was_never_written_proves_nothing():
    """The network was away; whoever comes after it is the last of another one."""
    trial = Trial(60, 60.0)
    for one in burst(trial, 30, state="pending"):
        one.state = "ended"
    assert not trial.passed(1.0)
    last, _ = burst(trial, 2, at=2.0)
    assert [trial.passed(now) for now in (1.9 + HOLD, 2.0 + HOLD)] == [False, True]
    answer(last)
    assert trial.passed(2.0)


# -- the pace -------------------------------------------------------------------------------------------------


async def test_the_fifth_request_waits_for_news_of_four():
    """Once, 0.45 s; what leaves afterwards leaves as ever."""
    limiter = RateLimiter(RateLimits(rpm=6000))
    log = await departures(limiter, 100, seconds=5)
    assert log[TRIAL - 1] < 0.02
    assert log[TRIAL] == pytest.approx(HOLD, abs=0.02)
    assert log[-1] == pytest.approx(HOLD + SMOOTH * 60 * 96 / 6000, abs=0.02)


async def test_time_to_connect_is_no_silence():
    """Written after 0.5 s, and so nobody is refused before."""
    log = await departures(RateLimiter(RateLimits(rpm=6000)), 5, seconds=5, write=0.5)
    assert log[TRIAL] == pytest.approx(0.5 + HOLD, abs=STEP * 60 + 0.02)


async def test_good_news_ends_the_hold_early():
    """Four that were answered after 0.1 s."""
    log = await departures(RateLimiter(RateLimits(rpm=6000)), 5, seconds=0.1)
    assert log[TRIAL] == pytest.approx(0.11, abs=0.02)


async def test_four_that_were_answered_before_anybody_waited_are_news_as_well():
    """One after the other, as a program asks that has one question at a time."""
    limiter, log = RateLimiter(RateLimits(rpm=6000)), []
    for _ in range(6):
        await use(limiter, log, seconds=0.02)
    assert log[-1] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("options", "last"), [({"rpm": 3}, 2 * SMOOTH * 20), ({"rpm": 4}, 3 * SMOOTH * 15), ({"tpm": 100}, 0.0)]
)
async def test_a_limit_of_few_requests_or_none_needs_no_trial(options, last):
    """A minute's requests leave as if there were none."""
    count = options.get("rpm", 50)
    log = await departures(RateLimiter(RateLimits(**options)), count, seconds=5)
    assert log[-1] == pytest.approx(last, abs=1e-3)


@pytest.mark.parametrize(("rpm", "expected"), [(600, [number * 0.1 for number in range(8)]), (60_000, [0.0] * 8)])
async def test_an_even_pace_needs_no_trial(rpm, expected):
    """It makes no bursts but groups of 10 ms."""
    log = await departures(RateLimiter(RateLimits(rpm=rpm), pace="even"), 8, seconds=5)
    assert log == pytest.approx(expected, abs=1e-3)


async def test_while_it_holds_nobody_is_let_in_now():
    """try_acquire says None until there was news, and takes nothing."""
    limiter = RateLimiter(RateLimits(rpm=6000))
    reservations = [limiter.try_acquire(ONE) for _ in range(TRIAL)]
    for reservation in reservations:
        reservation.sent()
    assert limiter.try_acquire(ONE) is None
    assert limiter.usage().rpm.used == TRIAL
    for reservation in reservations:
        reservation.end()
    assert limiter.try_acquire(ONE) is not None


async def two_that_wait(gap):
    """A pace, the requests of its first burst, and two more that wait for news of these."""
    pace = Pace(RateLimits(rpm=6000))
    first = [request() for _ in range(TRIAL)]
    for one in first:
        await pace.wait(one)
    begin, left = clock(), []

    async def wait():
        await pace.wait(request())
        left.append(clock() - begin)

    tasks = [asyncio.create_task(wait())]
    await asyncio.sleep(gap)
    tasks.append(asyncio.create_task(wait()))
    await asyncio.sleep(0.01)
    return pace, first, tasks, left


@pytest.mark.parametrize("gap", [0.0, 0.05])
async def test_two_that_wait_for_news_look_no_more_often_than_one(gap):
    """As when a refused request goes back to its place before the one that was the head."""
    _, _, tasks, left = await two_that_wait(gap)
    await asyncio.gather(*tasks)
    assert left == pytest.approx([HOLD, HOLD + gap], abs=0.06)
    assert min(left) >= HOLD - 1e-6


@pytest.mark.parametrize("gone", [None, 0, 1])
async def test_good_news_reaches_all_who_wait(gone):
    """Whoever of them has come first, or gone."""
    pace, first, tasks, left = await two_that_wait(0.05)
    if gone is not None:
        tasks.pop(gone).cancel()
        await asyncio.sleep(0)
    for one in first:
        answer(one)
    pace.look()
    await asyncio.gather(*tasks)
    assert left == pytest.approx([0.06] * len(tasks), abs=0.02)


async def test_a_lower_limit_that_another_has_learned_paces_even_without_a_line():
    """Two limiters of one account; one hears of it, and the other's next request goes by it."""
    ledger = MemoryLedger()
    one, other = (RateLimiter(RateLimits(rpm=6000), ledger=ledger, on_event=lambda event: None) for _ in range(2))
    reservation = await one.acquire(ONE)
    reservation.sent()
    reservation.refused(REFUSED)
    await asyncio.sleep(61)
    assert other.try_acquire(ONE) is not None
    assert other._pace.rpm == 60


async def test_a_wait_for_news_counts_as_a_wait():
    """It ends at its deadline, and gives back what it had."""
    limiter = RateLimiter(RateLimits(rpm=6000))
    await asyncio.gather(*(limiter.acquire(ONE) for _ in range(TRIAL)))
    with pytest.raises(WaitTooLong, match=r"still in line for pace after 0\.2 s"):
        await limiter.acquire(ONE, max_wait=0.2)
    assert (clock(), limiter.usage().rpm.used) == (pytest.approx(0.2, abs=1e-3), TRIAL)
    await limiter.acquire(ONE, max_wait=2.0)


@pytest.mark.parametrize("rpm", [60, 6000])
async def test_a_refusal_ends_the_hold_and_slows_the_pace(rpm):
    """Whoever waited leaves an even interval after it, and the next one another."""
    limiter, log = RateLimiter(RateLimits(rpm=rpm)), []
    reservations = await asyncio.gather(*(limiter.acquire(ONE) for _ in range(TRIAL)))
    waiting = [asyncio.create_task(use(limiter, log)) for _ in range(2)]
    for reservation in reservations:
        reservation.sent()
    await asyncio.sleep(0.1)
    begin = clock()
    reservations[1].refused(Refusal("budget", "rpm", retry_after=1.0))
    await asyncio.gather(*waiting)
    assert [at - begin for at in log] == pytest.approx([60 / rpm, 120 / rpm], abs=1e-3)


@pytest.mark.parametrize(("gap", "paused"), [(0.0, True), (1.0, False), (2.5, True)])
async def test_one_that_left_behind_nobody_was_not_refused_for_its_pace(gap, paused):
    """The first of all, or two even intervals after another; that budget is closed for a while instead."""
    events = []
    limiter = RateLimiter(RateLimits(rpm=60), on_event=events.append)
    if gap:
        await use(limiter, [])
        await asyncio.sleep(gap)
    reservation = await limiter.acquire(ONE)
    reservation.sent()
    reservation.refused(REFUSED)
    assert [event.pause > 0 for event in events] == [paused]
    assert limiter._pace.interval == pytest.approx(SMOOTH if paused else 1.0)


async def test_a_slow_pace_relaxes_after_quiet_minutes_but_once():
    """It may have been others who used the account; refused again, it stays as slow as it is then."""
    pace = Pace(RateLimits(rpm=60))
    intervals = []
    for seconds in (0, 0, 59, 2, 60, 60, 0, 60, 60):
        await asyncio.sleep(seconds)
        if not seconds:
            pace.slow()
            pace.slow()
        pace.ready()
        intervals.append(pace.interval)
    assert intervals == pytest.approx([1.1, 1.5, 1.5, 1.25, 1.1, 1.0, 1.25, 1.25, 1.25])


async def test_who_comes_after_a_quiet_minute_does_not_wait_for_the_pace_to_relax():
    """It has earned its unit, however often the pace relaxes; one that leaves right before keeps its distance."""
    limiter, log = RateLimiter(RateLimits(rpm=3)), []
    for _ in range(3):
        limiter._pace.slow()
    await asyncio.sleep(300)
    await use(limiter, log, max_wait=1.0)
    await asyncio.sleep(300)
    await use(limiter, log, max_wait=1.0)
    await use(limiter, log)
    assert log == pytest.approx([300, 600, 620], abs=1e-3)


async def test_one_request_waits_no_longer_because_the_pace_relaxes_meanwhile():
    """Its interval was a minute and a half when it came."""
    pace = Pace(RateLimits(rpm=1))
    for _ in range(4):
        pace.slow()
    await pace.wait(request())
    assert clock() <= 90.0 + 1e-3


async def test_a_minute_with_a_refusal_is_no_quiet_one():
    """Others used the account for long, and the pace is as slow as can be; when they have gone, it relaxes."""
    limiter = RateLimiter(RateLimits(rpm=60), on_event=lambda event: None)
    for _ in range(4):
        limiter._pace.slow()
    await asyncio.sleep(40)
    reservation = await limiter.acquire(ONE)
    reservation.sent()
    reservation.refused(REFUSED)
    await asyncio.sleep(40)
    await use(limiter, [])
    assert limiter._pace.interval == pytest.approx(1.5)
    await asyncio.sleep(21)
    await use(limiter, [])
    assert limiter._pace.interval == pytest.approx(1.25)


@pytest.mark.parametrize("rpm", [20, 60, 100])
async def test_a_probe_behind_a_refused_first_request_is_the_first_as_well(rpm):
    """Nothing was let in before it, so it was not refused for its pace."""
    events = []
    limiter = RateLimiter(RateLimits(rpm=rpm), on_event=events.append)
    place = None
    for _ in range(4):
        reservation = await limiter.acquire(ONE, place=place)
        place = reservation.place
        reservation.sent()
        reservation.refused(replace(REFUSED, limit=rpm))
    assert [event.pause for event in events] == [1, 2, 4, 8]


async def test_whoever_waits_while_a_lower_limit_is_learned_goes_by_it():
    """Held at 6,000 a minute, and let go as 60 a minute are."""
    limiter, log = RateLimiter(RateLimits(rpm=6000), on_event=lambda event: None), []
    reservations = await asyncio.gather(*(limiter.acquire(ONE) for _ in range(TRIAL)))
    waiting = [asyncio.create_task(use(limiter, log)) for _ in range(2)]
    await asyncio.sleep(0.1)
    begin = clock()
    reservations[-1].refused(REFUSED)
    await asyncio.gather(*waiting)
    assert [at - begin for at in log] == pytest.approx([1, 2], abs=1e-3)


async def test_whoever_waits_while_the_pace_slows_keeps_the_new_distance():
    """Two would else leave close together, one at the old pace and one at the new, and teach a wrong lesson."""
    pace = Pace(RateLimits(rpm=60))
    pace.take(request())
    begin, waiting = clock(), asyncio.create_task(pace.wait(request()))
    await asyncio.sleep(0.01)
    pace.slow()
    await waiting
    assert clock() - begin == pytest.approx(1.01, abs=1e-3)


@pytest.mark.parametrize(
    ("ours", "refusal", "expected"),
    [
        (40, REFUSED, [ForeignUsage("rpm", 20), Refused("rpm", True, 0.0)]),
        (58, REFUSED, [Refused("rpm", False, 1.0)]),
        (40, replace(REFUSED, limit=None), [Refused("rpm", False, 1.0)]),
    ],
)
async def test_a_gateway_that_let_a_burst_pass_is_not_paced_for_one_refusal(ours, refusal, expected):
    """The minute is full of other requests; of few, they may be ours, and of no stated limit nobody knows how many."""
    events = []
    limiter = RateLimiter(RateLimits(rpm=60), on_event=events.append)
    await departures(limiter, ours)
    await asyncio.sleep(2)
    reservation = await limiter.acquire(ONE)
    reservation.sent()
    reservation.refused(refusal)
    assert events == expected
    assert limiter._pace.interval == pytest.approx(SMOOTH)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 2000),
    st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 2)), max_size=60),
    st.sampled_from(["smooth", "even"]),
)
def test_a_minutes_requests_never_leave_faster_than_in_their_share_of_it(rpm, requests, mode):
    """Whenever they come and however long they take; groups of a quantum aside."""
    log, limits = [], RateLimits(rpm=rpm)
    pace = Pace(limits, mode)

    async def main():
        limiter = RateLimiter(limits, pace=mode)
        async with asyncio.TaskGroup() as tasks:
            for gap, seconds in requests:
                await asyncio.sleep(gap if gap > 0.1 else 0.0)
                tasks.create_task(use(limiter, log, seconds=seconds))

    run_virtual(main())
    group = pace._burst
    for first, begin in enumerate(log):
        for last in range(first + 2 * group, len(log)):
            units = (last - first) // group - (group > 1)  # the rest of an earlier group may leave with the next
            assert log[last] - begin >= units * group * pace.interval - 1e-6


# -- gateways -------------------------------------------------------------------------------------------------


class Gateway:
    """The mock gateway's account, behind a network."""

    def __init__(self, case, seed, way=0.0015):
        self.account = Account(case.settings(seed))
        self.case = case
        self.way = way
        self.dice = Random(seed)

    async def send(self, limiter, tokens):
        """Send a request until it is admitted, as the transport does."""
        place = None
        while True:
            reservation = await limiter.acquire(Cost(tokens), place=place)
            await asyncio.sleep(self.way)
            reservation.sent()
            await asyncio.sleep(self.way + self.dice.uniform(0, self.case.delay))
            refusal = self.account.admit(clock(), tokens)
            if refusal is None:
                break
            await asyncio.sleep(self.way)
            limit, seconds = refusal.limit, refusal.retry_after
            reservation.refused(Refusal("budget", refusal.budget, limit=limit, retry_after=seconds))
            place = reservation.place
        await asyncio.sleep(self.case.latency)
        self.account.release()
        reservation.end()

    @property
    def refused(self):
        """How often it did."""
        return sum(self.account.stats().refused.values())


def sent(case, seed, **options):
    """A file through a gateway: seconds, and the gateway."""
    gateway = Gateway(case, seed, **options)

    async def main():
        limiter = RateLimiter(case.limits, on_event=lambda event: None)
        await asyncio.gather(*(gateway.send(limiter, request.tokens) for request in case.file(seed)))
        return clock()

    return run_virtual(main()), gateway


@pytest.mark.parametrize("jitter", JITTERS)
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(("minute", "way"), [(6.0, 0.0015), (60.0, 0.1)])
def test_a_gateway_that_refuses_bursts_refuses_few(minute, way, bound, jitter):
    """Three of the first four, and then as often as the network pushes two together, until the pace allows for it."""
    _, gateway = sent(Case("gcra", bound, jitter, minute), 1, way=way)
    assert TRIAL - 1 <= gateway.refused <= 2 * TRIAL - 1


@pytest.mark.parametrize("jitter", JITTERS)
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "gcra"])
def test_a_gateway_that_lets_bursts_pass_refuses_nothing_and_is_used_in_full(policy, bound, jitter):
    """Whatever binds; 2 % above the ideal schedule pay for the guard, the trial and the smoothing."""
    case = Case(policy, bound, jitter)
    seconds, gateway = sent(case, 1)
    assert gateway.refused == 0
    assert seconds <= 1.02 * case.ideal(case.file(1))


async def test_each_process_of_an_account_tries_on_its_own():
    """Two that share a ledger: both hold after four, and the refusal of one slows that one."""
    ledger = MemoryLedger()
    one, other = (RateLimiter(RateLimits(rpm=60), ledger=ledger, on_event=lambda event: None) for _ in range(2))
    logs = [], []
    for limiter, log in zip((one, other), logs, strict=True):
        for _ in range(5):
            asyncio.create_task(use(limiter, log, seconds=3))  # noqa: RUF006 - they are waited for by the clock
    await asyncio.sleep(HOLD - 0.01)
    assert [len(log) for log in logs] == [TRIAL, TRIAL]
    await asyncio.sleep(4)
    assert [len(log) for log in logs] == [5, 5]


@pytest.mark.parametrize("way", [0.0015, 0.01])
def test_another_client_on_the_account_is_made_room_for(way):
    """It sends a third of RPM, evenly: each minute a few are refused, which are under way when the first one is."""
    case = Case("sliding", "RPM", 0.0, 6.0)
    gateway, events = Gateway(case, 1, way=way), []

    async def spend():
        while True:
            refusal = gateway.account.admit(clock(), 1)
            if refusal is None:
                gateway.account.release()
            others.append(refusal)
            await asyncio.sleep(3 * 6 / case.limits.rpm)

    async def main():
        spender = asyncio.create_task(spend())
        await asyncio.sleep(6)
        limiter, begin = RateLimiter(case.limits, on_event=events.append), clock()
        await asyncio.gather(*(gateway.send(limiter, request.tokens) for request in case.file(1)))
        spender.cancel()
        return clock() - begin

    others = []
    left = replace(case.limits, rpm=case.limits.rpm * 2 // 3)
    seconds = run_virtual(main())
    departures = ideal([request.tokens for request in case.file(1)], left, latency=case.latency)
    least = makespan(departures, latency=case.latency)
    assert seconds <= 1.02 * least
    assert gateway.refused <= 10
    assert not any(others)
    assert {event.budget for event in events} == {"rpm"}
