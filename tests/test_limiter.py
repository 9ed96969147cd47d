"""The limiter on virtual time: order, waits, endings, cancellation."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_async.budgets import GUARD
from kimi_async.errors import ConfigurationError, DailyBudgetExhausted, LimiterClosed, RequestTooLarge, WaitTooLong
from kimi_async.events import ForeignUsage, LimitAdopted, Refused
from kimi_async.ledger.memory import MemoryLedger
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits
from kimi_async.pace import SMOOTH
from kimi_async.refusal import Refusal

from .conftest import run_virtual

MINUTE = 60 * (1 + GUARD)


def clock():
    """The loop's time, from zero, to the tenth of a millisecond."""
    return round(asyncio.get_running_loop().time() - 1000.0, 4)


TEN = Cost(10)


async def use(limiter, cost=TEN, *, seconds=0.0, log=None, name=None):
    """Acquire, send, hold the slot for a while."""
    async with limiter.acquire(cost) as reservation:
        reservation.sent()
        if log is not None:
            log.append((name, clock()))
        await asyncio.sleep(seconds)


async def test_the_head_is_admitted_at_the_first_instant_at_which_it_fits():
    """Three a minute: the fourth goes a minute and a guard after the first, the fifth after the second."""
    limiter, log = RateLimiter(RateLimits(rpm=3)), []
    await asyncio.gather(*(use(limiter, log=log) for _ in range(5)))
    starts = [at for _, at in log]
    assert starts[3] == pytest.approx(starts[0] + MINUTE, abs=1e-5)
    assert starts[4] == pytest.approx(starts[1] + MINUTE, abs=1e-5)


async def test_first_come_first_served_whatever_it_costs():
    """A big request waits for its room; the small ones behind it wait too, though they would fit."""
    limiter, log = RateLimiter(RateLimits(tpm=1000)), []
    await use(limiter, Cost(600))
    await asyncio.gather(
        use(limiter, Cost(900), log=log, name="big"), *(use(limiter, Cost(10), log=log, name=n) for n in range(5))
    )
    assert [name for name, _ in log] == ["big", 0, 1, 2, 3, 4]


async def test_a_newcomer_stands_behind_the_line_even_if_it_fits():
    """try_acquire does not overtake either."""
    limiter = RateLimiter(RateLimits(tpm=1000))
    await use(limiter, Cost(600))
    waiting = asyncio.create_task(use(limiter, Cost(900)))
    await asyncio.sleep(1)
    assert limiter.try_acquire(Cost(10)) is None
    await waiting


async def test_a_slot_that_comes_back_goes_to_the_head_at_once():
    """One at a time, three seconds each."""
    limiter, log = RateLimiter(RateLimits(concurrency=1)), []
    await asyncio.gather(*(use(limiter, seconds=3, log=log, name=n) for n in range(4)))
    assert log == [(0, 0.0), (1, 3.0), (2, 6.0), (3, 9.0)]


async def test_nobody_holds_a_slot_while_waiting_for_tokens():
    """With two slots and a head that waits for tokens, both slots are free."""
    limiter = RateLimiter(RateLimits(concurrency=2, tpm=100))
    await use(limiter, Cost(100))
    waiting = asyncio.create_task(use(limiter, Cost(50)))
    await asyncio.sleep(1)
    assert limiter.usage().concurrency.used == 0
    await waiting


async def test_try_acquire_never_waits():
    """None where there is no room, a reservation where there is."""
    limiter = RateLimiter(RateLimits(concurrency=1))
    reservation = limiter.try_acquire(Cost(10))
    assert limiter.try_acquire(Cost(10)) is None
    reservation.cancel()
    assert limiter.try_acquire(Cost(10)) is not None


async def test_await_gives_a_bare_reservation():
    """For those whose request outlives a block."""
    limiter = RateLimiter(RateLimits(concurrency=1))
    reservation = await limiter.acquire(Cost(10))
    assert reservation.state == "pending"
    reservation.end()
    assert (reservation.state, limiter.usage().concurrency.used) == ("ended", 0)


async def test_a_block_that_forgets_to_mark_it_sent_is_charged():
    """Nobody knows that it was not sent."""
    limiter = RateLimiter(RateLimits(tpm=100))
    async with limiter.acquire(Cost(60)):
        pass
    assert limiter.usage().tpm.used == 60


async def test_a_block_whose_reservation_was_cancelled_is_not_charged():
    """The explicit ending stands."""
    limiter = RateLimiter(RateLimits(tpm=100))
    async with limiter.acquire(Cost(60)) as reservation:
        reservation.cancel()
    assert limiter.usage().tpm.used == 0


@pytest.mark.parametrize("ask", ["acquire", "try_acquire", "wait_time"])
async def test_an_impossible_request_fails_at_once_with_numbers_and_remedy(ask):
    """No wait can make it fit."""
    limiter = RateLimiter(RateLimits(tpm=128_000))
    verb = getattr(limiter, ask)
    with pytest.raises(RequestTooLarge, match=r"140,000.*TPM is 128,000.*max_tokens to at most 118,000") as caught:
        await verb(Cost(10_000, 130_000))
    assert (caught.value.needed, caught.value.limit, caught.value.budget) == (140_000, 128_000, "tpm")


@pytest.mark.parametrize(("tokens", "waits"), [(40, [0.0]), (60, [0.0, MINUTE]), (100, [0.0, MINUTE, 2 * MINUTE])])
async def test_wait_time_is_the_time_that_acquire_then_takes(tokens, waits):
    """100 tokens a minute; with each in line the next one's wait is known."""
    limiter, log, tasks = RateLimiter(RateLimits(tpm=100)), [], []
    for wait in waits:
        assert await limiter.wait_time(Cost(tokens)) == pytest.approx(wait)
        tasks.append(asyncio.create_task(use(limiter, Cost(tokens), log=log)))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert [at for _, at in log] == pytest.approx(waits, abs=1e-4)


async def test_a_wait_beyond_the_deadline_is_refused_before_it_begins():
    """The line's own wait is counted: the second in line would wait two minutes."""
    limiter = RateLimiter(RateLimits(tpm=100))
    await use(limiter, Cost(100))
    waiting = asyncio.create_task(use(limiter, Cost(100)))
    await asyncio.sleep(1)
    with pytest.raises(WaitTooLong, match=r"119\.6 s for tpm; max_wait is 100 s") as caught:
        await limiter.acquire(Cost(100), max_wait=100)
    assert clock() == 1.0
    assert (caught.value.budget, caught.value.max_wait) == ("tpm", 100)
    await limiter.acquire(Cost(100), max_wait=120)
    assert clock() == pytest.approx(2 * MINUTE, abs=1e-4)
    await waiting


async def test_a_wait_for_a_slot_ends_at_the_deadline():
    """No clock tells when a slot comes back, so this wait begins, and ends in time."""
    limiter = RateLimiter(RateLimits(concurrency=1))
    held = await limiter.acquire(Cost(10))
    with pytest.raises(WaitTooLong, match="still in line for concurrency after 5 s"):
        await limiter.acquire(Cost(10), max_wait=5)
    assert clock() == 5.0
    held.end()
    assert limiter.try_acquire(Cost(10)) is not None


async def test_many_waiters_with_deadlines_are_forecast_incrementally():
    """Each newcomer is told the wait behind all before it, without replaying the whole line."""
    limiter, started = RateLimiter(RateLimits(rpm=1)), []
    tasks = [asyncio.create_task(use_within(limiter, 100 * 60, started)) for _ in range(150)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 100 + [WaitTooLong] * 50


async def use_within(limiter, max_wait, started):
    """Acquire with a deadline."""
    async with limiter.acquire(Cost(1), max_wait=max_wait) as reservation:
        reservation.sent()
        started.append(clock())


async def test_an_exhausted_day_is_never_waited_for_silently():
    """It raises with the time until it resets, unless the caller allows that much."""
    limiter = RateLimiter(RateLimits(tpd=1000))
    await use(limiter, Cost(1000))
    with pytest.raises(DailyBudgetExhausted, match=r"1,000 tokens are spent; this request fits in 24:00:01") as caught:
        await limiter.acquire(Cost(1))
    assert caught.value.resets_in == pytest.approx(86_400 + 0.3)
    await limiter.acquire(Cost(1), max_wait=90_000)
    assert clock() == pytest.approx(86_400.3)


async def test_a_minute_of_waiting_for_the_day_is_no_exhaustion():
    """A sliding day gives back as it goes; a short wait is just a wait."""
    limiter = RateLimiter(RateLimits(tpd=1000, minute=60, day=80))
    await use(limiter, Cost(1000))
    await asyncio.sleep(30)
    await limiter.acquire(Cost(1))
    assert clock() == pytest.approx(80.3)


# -- cancellation ---------------------------------------------------------------------------------------------


async def test_a_cancelled_waiter_gives_its_place_to_the_next():
    """The head goes; the second takes over, timer and all."""
    limiter, log = RateLimiter(RateLimits(tpm=100)), []
    await use(limiter, Cost(100))
    head = asyncio.create_task(use(limiter, Cost(100), log=log, name="head"))
    second = asyncio.create_task(use(limiter, Cost(100), log=log, name="second"))
    await asyncio.sleep(1)
    head.cancel()
    await second
    assert log == [("second", pytest.approx(MINUTE))]
    assert head.cancelled()


async def test_cancelled_while_the_pace_holds_it_back_gives_everything_back():
    """Admitted, but not yet let go."""
    limiter = RateLimiter(RateLimits(rpm=3))
    await use(limiter)
    paced = asyncio.create_task(use(limiter))
    await asyncio.sleep(SMOOTH * 20 / 2)
    assert limiter.usage().rpm.used == 2
    paced.cancel()
    await asyncio.sleep(0)
    assert limiter.usage().rpm.used == 1
    await use(limiter)
    assert clock() == pytest.approx(SMOOTH * 20)


async def test_a_cancelled_reservation_lets_the_head_in_early():
    """Tokens that were never sent are room at once, not in a minute."""
    limiter, log = RateLimiter(RateLimits(tpm=100)), []
    pending = await limiter.acquire(Cost(100))
    waiting = asyncio.create_task(use(limiter, Cost(100), log=log))
    await asyncio.sleep(2)
    pending.cancel()
    await waiting
    assert log == [(None, 2.0)]


async def test_half_a_line_that_leaves_is_forgotten():
    """Whoever leaves from the middle takes no memory for long."""
    limiter = RateLimiter(RateLimits(concurrency=1))
    held = await limiter.acquire(Cost(10))
    tasks = [asyncio.create_task(use(limiter)) for _ in range(1000)]
    await asyncio.sleep(0)
    for task in tasks[100:]:
        task.cancel()
    await asyncio.sleep(0)
    assert len(limiter._line._heap) <= 200
    held.end()
    await asyncio.gather(*tasks[:100])


# -- smoothing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rpm", [3, 100, 10_000])
async def test_a_minutes_requests_take_a_fortieth_of_it(rpm):
    """No faster, and hardly slower: groups of up to 10 ms."""
    limiter, log = RateLimiter(RateLimits(rpm=rpm)), []
    await asyncio.gather(*(use(limiter, log=log) for _ in range(rpm)))
    last = log[-1][1]
    assert SMOOTH * 60 * (rpm - 1) / rpm - 0.01 <= last <= SMOOTH * 60


async def test_even_pace_spaces_requests_a_share_of_the_minute_apart():
    """For gateways that refuse bursts."""
    limiter, log = RateLimiter(RateLimits(rpm=6), pace="even"), []
    await asyncio.gather(*(use(limiter, log=log) for _ in range(4)))
    assert [at for _, at in log] == pytest.approx([0, 10, 20, 30])


async def test_whoever_waited_for_a_budget_is_spaced_from_the_next_as_well():
    """Credit for time spent waiting is not kept: two would leave in one instant."""
    limiter, log = RateLimiter(RateLimits(rpm=60, tpm=100), pace="even"), []
    await use(limiter, Cost(100))
    await asyncio.gather(*(use(limiter, Cost(50), log=log) for _ in range(2)))
    assert [at for _, at in log] == pytest.approx([MINUTE, MINUTE + 1], abs=1e-3)


async def test_a_closed_limiter_turns_the_line_away():
    """Those who wait, and those who come; what is under way goes on."""
    limiter = RateLimiter(RateLimits(concurrency=1))
    held = await limiter.acquire(Cost(1))
    waiting = asyncio.create_task(use(limiter))
    await asyncio.sleep(1)
    limiter.close()
    limiter.close()
    with pytest.raises(LimiterClosed):
        await waiting
    held.end()
    for max_wait in (None, 5):
        with pytest.raises(LimiterClosed):
            await limiter.acquire(Cost(1), max_wait=max_wait)
    assert (limiter.try_acquire(Cost(1)), limiter.usage().waiting) == (None, 0)


async def test_a_wait_between_two_attempts_ends_when_the_limiter_is_closed():
    """There is no next attempt to wait for."""
    limiter = RateLimiter(RateLimits())
    await limiter.sleep(2)
    assert clock() == 2.0
    asyncio.get_running_loop().call_later(1, limiter.close)
    with pytest.raises(LimiterClosed):
        await limiter.sleep(30)
    assert clock() == 3.0


# -- refusals -------------------------------------------------------------------------------------------------


async def test_a_refused_request_goes_back_to_its_place_in_line():
    """It was second; it is served before the third, who was already waiting."""
    limiter, log = RateLimiter(RateLimits(tpm=100)), []
    await use(limiter, Cost(40))
    refused = await limiter.acquire(Cost(60))
    refused.sent()
    third = asyncio.create_task(use(limiter, Cost(100), log=log, name="third"))
    await asyncio.sleep(1)
    refused.refused(Refusal("budget", "tpm", limit=100, current=130))
    again = await limiter.acquire(Cost(60), place=refused.place)
    again.sent()
    log.append(("again", clock()))
    again.end()
    await third
    assert [name for name, _ in log] == ["again", "third"]


async def test_lessons_are_told():
    """A lower limit, foreign usage and the refusal itself, each as one event."""
    events = []
    limiter = RateLimiter(RateLimits(tpm=2000), on_event=events.append)
    reservation = await limiter.acquire(Cost(100))
    reservation.sent()
    reservation.refused(Refusal("budget", "tpm", limit=1000, current=1050))
    assert events == [LimitAdopted("tpm", 2000, 1000), ForeignUsage("tpm", 950), Refused("tpm", True, 0.0)]
    assert "RateLimits(tpm=1000)" in str(events[0])


async def test_unexplained_rpm_refusals_slow_the_pace_before_anything_is_closed():
    """First the even interval and three steps more; only then a pause. None is sent again at once."""
    events, times = [], []
    limiter = RateLimiter(RateLimits(rpm=60), on_event=events.append)
    (await limiter.acquire(Cost(1))).end()
    for _ in range(5):
        reservation = await limiter.acquire(Cost(1))
        reservation.sent()
        times.append(clock())
        reservation.refused(Refusal("budget", "rpm", limit=60, retry_after=1.0))
    assert [event.pause for event in events] == [0, 0, 0, 0, 1]
    assert times == pytest.approx([0.025, 1.025, 2.125, 3.375, 4.875], abs=1e-3)


async def test_a_lower_rpm_does_not_make_the_pace_forget_what_it_learned():
    """Refused although the books saw room, and with a lower limit: even, at the new limit."""
    limiter = RateLimiter(RateLimits(rpm=100))
    (await limiter.acquire(Cost(1))).end()
    reservation = await limiter.acquire(Cost(1))
    reservation.sent()
    reservation.refused(Refusal("budget", "rpm", limit=50, retry_after=1.0))
    assert limiter._pace.interval == pytest.approx(60 / 50)


async def test_a_line_that_a_lower_limit_leaves_no_room_for_is_forecast():
    """Of two who wait, the second has become too large; whoever asks how long it takes behind them is told."""
    limiter = RateLimiter(RateLimits(tpm=1280), on_event=lambda event: None)
    refused = await limiter.acquire(Cost(1000))
    refused.sent()
    line = [asyncio.create_task(use(limiter, Cost(tokens))) for tokens in (300, 500)]
    await asyncio.sleep(1)
    refused.refused(Refusal("budget", "tpm", limit=320, current=1300))
    assert await limiter.wait_time(Cost(10)) == pytest.approx(60.3)
    _, too_large = await asyncio.gather(*line, return_exceptions=True)
    assert isinstance(too_large, RequestTooLarge)


async def test_a_refused_request_is_forecast_at_its_own_place():
    """Behind nobody, whatever the line behind it would wait; and the line is forecast anew."""
    limiter = RateLimiter(RateLimits(tpm=100))
    refused = await limiter.acquire(Cost(100))
    refused.sent()
    line = [asyncio.create_task(use(limiter, Cost(100))) for _ in range(3)]
    await asyncio.sleep(1)
    refused.refused(Refusal("budget", "tpm", limit=100))
    again = await limiter.acquire(Cost(100), max_wait=5, place=refused.place)
    assert clock() == 2.0  # after the pause of a second that an unexplained refusal asks for
    again.cancel()
    await asyncio.gather(*line)


async def test_a_burst_that_is_refused_slows_the_pace_once():
    """Three requests under way teach no more than the first of them."""
    limiter = RateLimiter(RateLimits(rpm=6000))
    first, *burst = [limiter.try_acquire(Cost(1)) for _ in range(4)]
    first.end()
    for reservation in burst:
        reservation.sent()
        reservation.refused(Refusal("budget", "rpm", limit=6000, retry_after=1.0))
    assert limiter._pace.interval == pytest.approx(0.01)


async def test_the_line_moves_again_when_the_probe_has_passed():
    """Three wait out a pause: one goes first, the others follow its answer, not before."""
    limiter, log = RateLimiter(RateLimits(concurrency=5)), []
    reservation = await limiter.acquire(Cost(1))
    reservation.sent()
    reservation.refused(Refusal("budget", "concurrency", retry_after=1.0))
    await asyncio.gather(*(use(limiter, seconds=0.5, log=log, name=n) for n in range(3)))
    assert log == [(0, pytest.approx(1.0)), (1, pytest.approx(1.5)), (2, pytest.approx(1.5))]


# -- what can be seen -----------------------------------------------------------------------------------------


async def test_repr_is_a_dashboard():
    """The budgets, the line, and when it moves."""
    limiter = RateLimiter(RateLimits(rpm=60, tpm=128_000))
    await use(limiter, Cost(91_000))
    waiting = asyncio.create_task(use(limiter, Cost(60_000)))
    await asyncio.sleep(0.3)
    assert repr(limiter) == "<RateLimiter rpm 1/60, tpm 91k/128k, 1 waiting for tpm, next in 60.00 s>"
    waiting.cancel()


def test_it_can_be_looked_at_where_no_loop_runs():
    """In a REPL, before anything was sent."""
    assert repr(RateLimiter(RateLimits(rpm=60))) == "<RateLimiter rpm 0/60>"


async def test_usage_is_its_frozen_twin():
    """The same numbers, as values."""
    limiter = RateLimiter(RateLimits(concurrency=2, tpm=1000))
    reservation = await limiter.acquire(Cost(100))
    usage = limiter.usage()
    assert (usage.concurrency.used, usage.tpm.used, usage.tpm.share, usage.waiting) == (1, 100, 0.1, 0)
    reservation.end()


async def test_two_limiters_on_one_ledger_share_the_account():
    """A slot that one gives back wakes the head of the other."""
    ledger, log = MemoryLedger(), []
    one, other = (RateLimiter(RateLimits(concurrency=1), ledger=ledger) for _ in range(2))
    held = await one.acquire(Cost(1))
    waiting = asyncio.create_task(use(other, log=log))
    await asyncio.sleep(3)
    held.end()
    await waiting
    assert log == [(None, 3.0)]


async def test_a_ledger_keeps_its_account_after_it_learned_a_lower_limit():
    """A second limiter configures what the first one did; other limits are another account's."""
    ledger, limits = MemoryLedger(), RateLimits(rpm=20)
    reservation = await RateLimiter(limits, ledger=ledger, on_event=lambda event: None).acquire(Cost(1))
    reservation.refused(Refusal("budget", "rpm", limit=3))
    assert RateLimiter(limits, ledger=ledger).limits.rpm == 3
    with pytest.raises(ConfigurationError, match="cannot also have"):
        RateLimiter(RateLimits(rpm=21), ledger=ledger)


# -- properties -----------------------------------------------------------------------------------------------

REQUESTS = st.lists(
    st.tuples(
        st.floats(0, 5),  # gap before it arrives
        st.integers(1, 500),  # tokens
        st.floats(0, 20),  # time to connect, before it is sent
        st.floats(0, 0.3),  # delay to the gateway
        st.floats(0, 40),  # time to answer
        st.one_of(st.none(), st.floats(0, 90)),  # cancelled after
    ),
    max_size=40,
)


@settings(max_examples=120, deadline=None)
@given(REQUESTS)
def test_whatever_happens_no_window_is_exceeded_nothing_is_lost_and_order_is_kept(requests):
    """Arrivals, connects, answers and cancellations in any interleaving."""
    limits = RateLimits(concurrency=4, rpm=6, tpm=1000)
    admitted, arrivals = [], []

    async def one(limiter, number, request):
        _, tokens, connect, delay, answer, _ = request
        async with limiter.acquire(Cost(tokens)) as reservation:
            admitted.append(number)
            await asyncio.sleep(connect)
            reservation.sent()
            arrivals.append((clock() + delay, tokens))
            await asyncio.sleep(answer)

    async def main():
        limiter, tasks = RateLimiter(limits), []
        for number, request in enumerate(requests):
            await asyncio.sleep(request[0])
            tasks.append(asyncio.create_task(one(limiter, number, request)))
            if request[-1] is not None:
                asyncio.get_running_loop().call_later(request[-1], tasks[-1].cancel)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert (limiter.usage().concurrency.used, limiter.usage().waiting) == (0, 0)
        assert limiter.ledger._subscribers == []

    run_virtual(main())
    assert admitted == sorted(admitted)
    for end, _ in arrivals:
        window = [tokens for at, tokens in arrivals if end - 60 < at <= end]
        assert len(window) <= limits.rpm
        assert sum(window) <= limits.tpm


@settings(max_examples=120, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(2, 9))
def test_a_saturated_limiter_uses_all_there_is(costs, rpm):
    """All at once: each starts at the very moment the exact first-come-first-served schedule gives, pacing aside."""
    limits, log = RateLimits(rpm=rpm, tpm=1000), []

    async def main():
        limiter = RateLimiter(limits)
        await asyncio.gather(*(use(limiter, Cost(tokens), log=log) for tokens in costs))

    run_virtual(main())
    expected = []
    for number, tokens in enumerate(costs):
        at = log[number - 1][1] if number else 0.0
        at = max(at, expected[number - rpm][0] + MINUTE if number >= rpm else 0.0)
        while sum(t for start, t in expected if start > at - MINUTE + 1e-4) + tokens > limits.tpm:
            at = min(start for start, t in expected if start > at - MINUTE + 1e-4) + MINUTE
        expected.append((log[number][1], tokens))
        assert at - 1e-4 <= log[number][1] <= at + SMOOTH * 60 / rpm + 1e-4


async def test_a_limiter_that_was_closed_asks_its_ledger_for_nothing():
    """Neither one that nobody waited for, nor one whose last waiter was turned away."""
    idle = RateLimiter(RateLimits(concurrency=1))
    idle.close()
    assert idle.ledger._subscribers == []
    busy = RateLimiter(RateLimits(concurrency=1))
    held = await busy.acquire(Cost(1))
    waiting = [asyncio.ensure_future(busy.admit_in_turn(Cost(1), None, None)) for _ in range(2)]
    await asyncio.sleep(1)
    assert len(busy.ledger._subscribers) == 1
    busy.close()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert busy.ledger._subscribers == []
    held.end()
