"""What the books say about the future."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_async.budgets import GUARD, Budgets, Charge, Denial
from kimi_async.forecast import Forecast, time_to_send
from kimi_async.limits import Cost, RateLimits
from kimi_async.refusal import Refusal

MINUTE = 60 * (1 + GUARD)


def test_costs_are_forecast_one_behind_the_other():
    """100 tokens a minute, 60 of them taken at 0: at 10, 40 fit at once, the next 60 when the first have left."""
    books = Budgets(RateLimits(tpm=100))
    books.sent(0.0, books.reserve(0.0, Cost(60)))
    forecast = Forecast(books, 10.0)
    waits = [forecast.admit(Cost(tokens)).wait for tokens in (40, 60, 41)]
    assert waits == pytest.approx([0, MINUTE - 10, 2 * MINUTE - 10])


def test_a_forecast_leaves_the_books_as_they_are():
    """It plays on a copy."""
    books = Budgets(RateLimits(tpm=100))
    Forecast(books, 0.0).admit(Cost(100))
    assert books.usage(0.0).tpm.used == 0


def test_what_is_pending_is_taken_to_be_sent_now():
    """It cannot leave the window before a span from now."""
    books = Budgets(RateLimits(rpm=1))
    books.reserve(0.0, Cost(1))
    assert Forecast(books, 5.0).admit(Cost(1)) == Denial("rpm", pytest.approx(MINUTE))


@pytest.mark.parametrize("limits", [RateLimits(tpm=100), RateLimits(tpd=100)])
def test_what_has_become_too_large_is_never_let_in_and_holds_nobody_up(limits):
    """A refusal has lowered the limit below it; at the head of the line it will be told so."""
    forecast = Forecast(Budgets(limits), 0.0)
    assert forecast.admit(Cost(101)).wait == math.inf
    assert forecast.admit(Cost(100)).wait == 0.0


def test_a_pause_is_waited_for_first():
    """Nobody goes before it ends."""
    books = Budgets(RateLimits(concurrency=1))
    charge = books.reserve(0.0, Cost(1))
    refusal = Refusal("budget", "concurrency", retry_after=7.0)
    books.refuse(0.0, charge, refusal)
    books.pause(0.0, refusal)
    assert Forecast(books, 1.0).admit(Cost(1)).wait == pytest.approx(6.0)
    assert time_to_send(books, 1.0, 1, 1) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("requests", "tokens", "seconds"),
    [
        (0, 0, 0),
        (8, 0, 0),
        (9, 0, 50.3),
        (10, 0, 50.3),
        (11, 0, 60.3),
        (19, 0, 110.6),
        (0, 701, 50.3),
        (0, 1801, 110.6),
    ],
)
def test_time_to_send_counts_whole_windows(requests, tokens, seconds):
    """At 10, of 10 requests and 1,000 tokens a minute, 2 and 300 were sent at 0."""
    books = Budgets(RateLimits(rpm=10, tpm=1000))
    for _ in range(2):
        books.sent(0.0, books.reserve(0.0, Cost(150)))
    assert time_to_send(books, 10.0, requests, tokens) == pytest.approx(seconds)


def test_a_limit_that_was_adopted_below_what_is_taken_is_waited_for_exactly():
    """Three sent at 0, 1 and 2, then RPM turns out to be 1: the next one fits when all three have left."""
    books = Budgets(RateLimits(rpm=20))
    for now in (0.0, 1.0, 2.0):
        books.sent(now, books.reserve(now, Cost(1)))
    books.limits = RateLimits(rpm=1)
    assert time_to_send(books, 2.0, 1, 1) == pytest.approx(MINUTE)
    assert Forecast(books, 2.0).admit(Cost(1)).wait == pytest.approx(MINUTE)


def test_a_forecast_of_the_day_is_never_late():
    """What is pending joins no bucket that leaves earlier, and moves none."""
    books = Budgets(RateLimits(tpd=100, day=3600.0))
    books.sent(0.0, books.reserve(0.0, Cost(100)))
    assert Forecast(books, 2.0).admit(Cost(1)).wait == pytest.approx(books.reserve(2.0, Cost(1)).wait)


def test_a_forecast_narrows_a_widened_guard_as_the_books_will():
    """Each quiet minute halves it."""
    books, refusal = Budgets(RateLimits(tpm=100)), Refusal("budget", "tpm", retry_after=1.0)
    for _ in range(2):
        charge = books.reserve(0.0, Cost(1))
        books.refuse(0.0, charge, refusal)
    books.pause(0.0, refusal)
    books.pause(0.0, refusal)
    books.sent(10.0, books.reserve(10.0, Cost(100)))
    forecast = Forecast(books, 10.0)
    waits = [forecast.admit(Cost(100)).wait for _ in range(3)]
    assert waits == pytest.approx([61.2, 61.2 + 60.6, 61.2 + 60.6 + 60.3])


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40), st.integers(1, 8))
def test_time_to_send_is_a_lower_bound_of_the_forecast(costs, rpm):
    """A fluid needs no more time than the same amount in pieces."""
    books = Budgets(RateLimits(rpm=rpm, tpm=1000))
    charge = books.reserve(0.0, Cost(500))
    assert isinstance(charge, Charge)
    books.sent(0.0, charge)
    forecast = Forecast(books, 20.0)
    waits = [forecast.admit(Cost(tokens)).wait for tokens in costs]
    assert time_to_send(books, 20.0, len(costs), sum(costs)) <= waits[-1] + 1e-4
    assert waits == sorted(waits)
