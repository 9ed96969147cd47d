"""The ideal schedules that the benchmarks compare with, and the bound below all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.schedule import fluid_bound, ideal, makespan
from kimi_async import RateLimits
from kimi_async.mock.policies import fits, open_window

LATENCY = 2.0


def schedule(tokens, *, latency=LATENCY, **limits):
    """Departures as pairs of time and what was waited for."""
    return [(departure.at, departure.waited_for) for departure in ideal(tokens, RateLimits(**limits), latency=latency)]


def times(tokens, limits, **options):
    """Departures."""
    return [departure.at for departure in ideal(tokens, limits, latency=LATENCY, **options)]


def test_without_limits_everything_leaves_at_once():
    """Nothing to wait for."""
    assert schedule([5, 500, 50]) == [(0.0, None)] * 3


def test_a_slot_comes_back_after_the_latency():
    """Two slots, 2 s each: pairs."""
    assert schedule([1] * 5, concurrency=2) == [
        (0.0, None),
        (0.0, None),
        (2.0, "concurrency"),
        (2.0, None),
        (4.0, "concurrency"),
    ]


def test_the_fourth_request_of_a_minute_waits_for_the_first_to_be_a_minute_old():
    """RPM 3: the window is half open, so at 60 s sharp the request of 0 s is gone."""
    assert schedule([1] * 7, rpm=3)[3:] == [(60.0, "rpm"), (60.0, None), (60.0, None), (120.0, "rpm")]


def test_tokens_wait_for_the_oldest_tokens():
    """TPM 100: 40 + 50 fit; 20 more fit when the 40 have left; 90 only when all have."""
    assert schedule([40, 50, 20, 90], tpm=100, latency=1.0, concurrency=1) == [
        (0.0, None),
        (1.0, "concurrency"),
        (60.0, "tpm"),
        (120.0, "tpm"),
    ]


def test_nobody_overtakes_a_large_request():
    """The 5 would fit at once, but stands behind the 100."""
    assert schedule([60, 100, 5], tpm=100) == [(0.0, None), (60.0, "tpm"), (120.0, "tpm")]


def test_the_day_binds_like_a_long_minute():
    """TPD 100 with 60 a request: one a day."""
    assert schedule([60, 60], tpd=100) == [(0.0, None), (86_400.0, "tpd")]


def test_the_last_answer_ends_the_makespan():
    """Departure of the last request, and its latency."""
    limits = RateLimits(rpm=1)
    assert makespan(ideal([1, 1], limits, latency=LATENCY), latency=LATENCY) == 62.0
    assert makespan([], latency=LATENCY) == 0.0


def test_what_can_never_fit_is_an_error():
    """101 tokens under TPM 100."""
    with pytest.raises(ValueError, match="request 1 needs 101 of tpm; the limit is 100"):
        ideal([1, 101], RateLimits(tpm=100), latency=LATENCY)


def keeps_limits(times, tokens, limits, latency):
    """Whether departures keep the order and all limits, counted afresh, from the definition."""
    for index, now in enumerate(times):
        minute = [i for i in range(index + 1) if times[i] > now - limits.minute]
        running = [i for i in range(index + 1) if times[i] > now - latency]
        if (
            (index and now < times[index - 1])
            or len(running) > limits.concurrency
            or len(minute) > limits.rpm
            or sum(tokens[i] for i in minute) > limits.tpm
        ):
            return False
    return True


FILES = st.lists(st.integers(1, 10), min_size=1, max_size=30)
ACCOUNTS = st.builds(
    RateLimits,
    concurrency=st.integers(1, 5),
    rpm=st.integers(1, 8),
    tpm=st.integers(10, 40),
    minute=st.sampled_from([8.0, 60.0]),
)


@given(tokens=FILES, limits=ACCOUNTS)
def test_it_keeps_every_limit(tokens, limits):
    """Never above a budget; whole seconds, so that sums of floats are exact."""
    assert keeps_limits(times(tokens, limits), tokens, limits, LATENCY)


@given(tokens=FILES, limits=ACCOUNTS, data=st.data())
def test_no_request_can_leave_any_earlier(tokens, limits, data):
    """Whatever delays another schedule chooses before it, none of its requests is ahead of the ideal."""
    best = [departure.at for departure in ideal(tokens, limits, latency=LATENCY)]
    other = []
    for index in range(len(tokens)):
        earliest = other[-1] if other else 0.0
        # A candidate changes only where something leaves a window, that is at a known time plus a span.
        moments = {earliest} | {at + span for at in other for span in (limits.minute, LATENCY)}
        feasible = (
            now for now in sorted(moments) if keeps_limits([*other, now], tokens[: index + 1], limits, LATENCY)
        )
        other.append(next(feasible) + data.draw(st.sampled_from([0.0, 0.0, 1.0, 5.0])))
        assert other[-1] >= best[index]


def test_a_fixed_minute_begins_anew_at_the_clocks_edge():
    """RPM 3, 20 s before the edge: three, three more at the edge, and the seventh a minute later."""
    limits = RateLimits(rpm=3)
    assert times([1] * 7, limits, policy="fixed", begin=100.0) == [0, 0, 0, 20, 20, 20, 80]


def test_a_fixed_minute_that_has_passed_is_forgotten():
    """One slot, 25 s each, RPM 2: what leaves after the edge counts from that edge on."""
    limits = RateLimits(concurrency=1, rpm=2)
    departures = ideal([1] * 5, limits, latency=25.0, policy="fixed", begin=30.0)
    assert [departure.at for departure in departures] == [0, 25, 50, 75, 100]


def test_a_bucket_starts_full_and_refills():
    """RPM 3: three at once, then one each 20 s."""
    assert times([1] * 5, RateLimits(rpm=3), policy="bucket") == [0, 0, 0, 20, 40]


def test_gcra_spaces_requests_and_keeps_a_bucket_of_tokens():
    """RPM 3, 20 s apart; TPM 60: the second 60 tokens wait until the bucket is full again."""
    assert times([60, 60, 1], RateLimits(rpm=3, tpm=60), policy="gcra") == [0, 60, 80]


@given(tokens=FILES, limits=ACCOUNTS, policy=st.sampled_from(["fixed", "bucket", "gcra"]), begin=st.integers(0, 100))
def test_the_mocks_policies_let_their_ideal_through_and_nothing_sooner(tokens, limits, policy, begin):
    """Each request fits when it leaves, and a moment earlier it would not, or its predecessor was not gone."""
    windows = [
        (open_window(policy, limits.rpm, window=limits.minute), [1] * len(tokens)),
        (open_window("bucket" if policy == "gcra" else policy, limits.tpm, window=limits.minute), tokens),
    ]
    departures = ideal(tokens, limits, latency=LATENCY, policy=policy, begin=begin)
    moment, before = 1e-4, begin
    for index, departure in enumerate(departures):
        now = begin + departure.at + moment / 100  # rounding
        if departure.waited_for in {"rpm", "tpm"}:
            assert now - moment >= before
            assert not all(fits(window, now - moment, amounts[index]) for window, amounts in windows)
        for window, amounts in windows:
            assert fits(window, now, amounts[index])
            window.charge(now, amounts[index])
        before = begin + departure.at


def test_the_fluid_bound_is_what_is_left_after_whole_minutes():
    """RPM 3 and ten requests: one is left after three minutes. TPM 10 and 35 tokens: five are, and take as long."""
    assert fluid_bound([1] * 10, RateLimits(rpm=3), latency=LATENCY) == 182.0
    assert fluid_bound([5] * 7, RateLimits(tpm=10), latency=LATENCY) == 182.0


def test_the_fluid_bound_knows_slots():
    """Two slots, five requests of 2 s; after a minute of 20, ten more take five turns."""
    assert fluid_bound([1] * 5, RateLimits(concurrency=2), latency=LATENCY) == 5.0
    assert fluid_bound([1] * 30, RateLimits(concurrency=2, rpm=20), latency=LATENCY) == 70.0


def test_nothing_takes_no_time():
    """An empty file, and one without limits, which takes a latency."""
    assert fluid_bound([], RateLimits(rpm=1), latency=LATENCY) == 0
    assert fluid_bound([1, 2], RateLimits(), latency=LATENCY) == LATENCY


@given(tokens=FILES, limits=ACCOUNTS, order=st.randoms())
def test_no_order_is_below_the_fluid_bound(tokens, limits, order):
    """The ideal of each order is a schedule like any other."""
    shuffled = order.sample(tokens, len(tokens))
    bound = fluid_bound(tokens, limits, latency=LATENCY)
    assert makespan(ideal(shuffled, limits, latency=LATENCY), latency=LATENCY) >= bound - 1e-9
