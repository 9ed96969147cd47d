"""What is tried again, and after how long."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    DailyBudgetExhausted,
    EngineOverloadedError,
    InternalServerError,
    InvalidResponseError,
    KimiError,
    LimiterClosed,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
    RequestTooLarge,
    WaitTooLong,
)
from kimi_async.retry import FIRST_DELAY, MAX_ATTEMPTS, MAX_DELAY, MAX_RETRY_AFTER, retry_delay

OVERLOADED = EngineOverloadedError("429: busy", status_code=429)

PASSING = [
    APIConnectionError("dropped"),
    APITimeoutError("silence"),
    InternalServerError("500", status_code=500),
    OVERLOADED,
    InvalidResponseError("garbled", body="<html>"),
]
LASTING = [
    KimiError("?"),
    ConfigurationError("no"),
    RequestTooLarge("big", needed=2, limit=1, budget="tpm"),
    WaitTooLong("long", wait=2, max_wait=1, budget="tpm"),
    DailyBudgetExhausted("spent", resets_in=1),
    LimiterClosed("closed"),
    APIStatusError("418", status_code=418),
    BadRequestError("400", status_code=400),
    AuthenticationError("401", status_code=401),
    PermissionDeniedError("403", status_code=403),
    NotFoundError("404", status_code=404),
    RateLimitError("429", status_code=429, retry_after=1.0),
    QuotaExceededError("429", status_code=429),
    ValueError("a bug"),
]


def delay(error=OVERLOADED, attempt=1, *, max_attempts=MAX_ATTEMPTS, chance=1.0, patience=None):
    """What ``retry_delay`` says, with the longest jitter."""
    return retry_delay(error, attempt, max_attempts=max_attempts, chance=chance, patience=patience)


def asking(retry_after):
    """An overload with ``Retry-After``."""
    return EngineOverloadedError("429: busy", status_code=429, retry_after=retry_after)


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_what_passes_is_tried_again(error):
    """Half a second at most before the second attempt."""
    assert delay(error) == FIRST_DELAY


@pytest.mark.parametrize("error", LASTING, ids=lambda error: type(error).__name__)
def test_what_does_not_pass_is_raised_at_once(error):
    """The budgets' own refusals among them: the transport has tried those often enough."""
    assert delay(error) is None


@pytest.mark.parametrize(
    ("attempt", "longest"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 16.0), (7, 32.0), (8, 32.0)]
)
@pytest.mark.parametrize("chance", [0.0, 0.25, 1.0])
def test_waits_double_up_to_half_a_minute(attempt, longest, chance):
    """Full jitter: any part of the longest."""
    assert delay(attempt=attempt, max_attempts=99, chance=chance) == chance * longest


@pytest.mark.parametrize(("attempt", "again"), [(1, True), (MAX_ATTEMPTS - 1, True), (MAX_ATTEMPTS, False)])
def test_the_last_attempt_is_the_last(attempt, again):
    """Eight attempts are seven waits."""
    assert (delay(attempt=attempt) is not None) is again


def test_all_waits_together_are_a_minute_at_most():
    """As the constant's docstring promises."""
    assert sum(delay(attempt=attempt) for attempt in range(1, MAX_ATTEMPTS)) == 63.5


@pytest.mark.parametrize(
    ("asked", "patience", "expected"),
    [
        (3.0, None, 3.0),  # more than the jitter would wait
        (0.1, None, 0.5),  # less
        (MAX_RETRY_AFTER, None, MAX_RETRY_AFTER),
        (MAX_RETRY_AFTER + 0.1, None, None),
        (100.0, 100.0, 100.0),  # the caller allows more than the default
        (100.0, 99.9, None),
        (3.0, 2.9, None),  # and less
        (None, 0.4, None),
    ],
)
def test_retry_after_is_obeyed_as_far_as_patience_goes(asked, patience, expected):
    """At least what the server asks for; beyond the patience the error is raised at once."""
    assert delay(asking(asked), patience=patience) == expected


@given(
    error=st.sampled_from(PASSING) | st.builds(asking, st.none() | st.floats(0, 1e6)),
    attempt=st.integers(1, 100_000),
    chance=st.floats(0, 1),
    patience=st.none() | st.floats(0, 1e6),
)
def test_a_wait_keeps_its_bounds(error, attempt, chance, patience):
    """Never below what was asked, never above the patience, and without reason never above the cap."""
    seconds = delay(error, attempt, max_attempts=math.inf, chance=chance, patience=patience)
    asked = getattr(error, "retry_after", None) or 0.0
    bound = MAX_RETRY_AFTER if patience is None else patience
    if seconds is None:
        assert max(asked, MAX_DELAY) > bound
    else:
        assert asked <= seconds <= bound
        assert seconds <= max(asked, MAX_DELAY)
