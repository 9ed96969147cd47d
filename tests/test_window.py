"""The logs of a window: exact, and never early."""

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_async.window import TICK, CalendarLog, SlidingLog


def test_what_is_sent_leaves_exactly_one_span_later():
    """(time, requests, tokens): booked at 0 and 5, the minute holds both until 60 and the second until 65."""
    log = SlidingLog(60.0)
    log.add(0.0, 1, 100)
    log.add(5.0, 1, 30)
    for now, requests, tokens in [(5.0, 2, 130), (59.999, 2, 130), (60.0, 1, 30), (64.999, 1, 30), (65.0, 0, 0)]:
        log.expire(now)
        assert (log.requests, log.tokens) == (requests, tokens), now


@pytest.mark.parametrize(
    ("requests", "tokens", "wait"),
    [(0, 0, 0.0), (1, 0, 50.0), (2, 0, 55.0), (0, 100, 50.0), (0, 101, 55.0), (3, 0, 60.0), (0, 131, 60.0)],
)
def test_wait_names_the_entry_that_must_leave(requests, tokens, wait):
    """At 10, with 100 tokens booked at 0 and 30 at 5; what is not booked yet cannot leave before a span."""
    log = SlidingLog(60.0)
    log.add(0.0, 1, 100)
    log.add(5.0, 1, 30)
    assert log.wait(10.0, requests, tokens) == pytest.approx(wait)


def test_buckets_leave_with_their_last_part():
    """Two bookings of one bucket leave together, never before the later one's time."""
    log = SlidingLog(100.0, resolution=10.0)
    log.add(0.0, 1, 5)
    log.add(9.0, 1, 5)
    log.add(10.0, 1, 5)
    log.expire(105.0)
    assert log.tokens == 15
    log.expire(109.0)
    assert log.tokens == 5


def test_a_sliding_day_of_a_million_requests_stays_small():
    """A day in one-minute buckets has at most 1,440 of them, give or take the one being filled."""
    log = SlidingLog(86_400.0, resolution=60.0)
    for second in range(0, 200_000, 2):
        log.expire(float(second))
        log.add(float(second), 1, 1)
    assert len(log._entries) <= 1441
    assert log.tokens == pytest.approx(43_200, abs=60)


def test_a_retraction_after_the_window_takes_nothing_twice():
    """An entry that has left by itself is not subtracted again."""
    log = SlidingLog(60.0)
    entry = log.add(0.0, 1, 100)
    log.add(1.0, 1, 7)
    log.retract(60.0, entry, 100)
    assert log.tokens == 7


def test_a_retraction_within_the_window_frees_tokens_but_no_request():
    """The gateway counts attempts."""
    log = SlidingLog(60.0)
    entry = log.add(0.0, 1, 100)
    log.retract(1.0, entry, 100)
    assert (log.requests, log.tokens) == (1, 0)


def test_a_copy_lives_its_own_life():
    """Forecasts replay on copies."""
    log = SlidingLog(60.0)
    log.add(0.0, 1, 100)
    twin = log.copy()
    twin.add(1.0, 1, 50)
    twin.expire(60.0)
    assert (log.tokens, twin.tokens) == (100, 50)


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 1000)), max_size=60), st.sampled_from([0.0, 7.0]))
def test_the_sums_are_those_of_the_last_span(steps, resolution):
    """Exact without buckets; with buckets never less, and never more than a bucket more."""
    log, sent, now = SlidingLog(60.0, resolution), [], 0.0
    for gap, tokens in steps:
        now += gap
        log.expire(now)
        log.add(now, 1, tokens)
        sent.append((now, tokens))
        exact = sum(tokens for at, tokens in sent if at > now - 60.0 + TICK)
        late = sum(tokens for at, tokens in sent if at > now - 60.0 - resolution)
        assert exact <= log.tokens <= late


SHANGHAI = ZoneInfo("Asia/Shanghai")
MIDNIGHT = 1_790_006_400.0  # 2026-09-22 00:00 in Shanghai, as Unix time


def test_a_calendar_day_ends_at_midnight_of_its_zone():
    """Booked at 23:00, kept until a guard after midnight."""
    log = CalendarLog(SHANGHAI, epoch=MIDNIGHT, guard=2.0)
    log.add(-3600.0, 1, 100)
    assert log.wait(-3600.0, 0, 1) == pytest.approx(3602.0)
    log.expire(1.9)
    assert log.tokens == 100
    log.expire(2.0)
    assert log.tokens == 0


def test_what_leaves_just_before_midnight_counts_for_both_days():
    """It may arrive after midnight: one second before it, with a guard of two, is charged to the next day too."""
    log = CalendarLog(SHANGHAI, epoch=MIDNIGHT, guard=2.0)
    log.add(-1.0, 1, 100)
    log.expire(10.0)
    assert log.tokens == 100
    assert log.wait(10.0, 0, 1) == pytest.approx(86_400 - 10 + 2)


def test_a_window_that_has_grown_gives_nothing_back_that_it_had_forgotten():
    """The guard may widen after an entry has left; its tokens are not taken off twice."""
    log = SlidingLog(60)
    entry = log.add(0, 1, 10)
    log.expire(61)
    log.span = 70
    log.retract(62, entry, 10)
    assert (log.requests, log.tokens) == (0, 0)
