"""What is tried again, and after how long: a pure function."""

from .errors import (
    APIConnectionError,
    APIStatusError,
    EngineOverloadedError,
    InternalServerError,
    InvalidResponseError,
)

MAX_ATTEMPTS = 8
"""Attempts in all; their waits come to half a minute on average, and to 64 s at most unless Kimi asks for more."""

FIRST_DELAY = 0.5
"""Seconds that the first wait lasts at most; each further one twice as long."""

MAX_DELAY = 32.0
"""Seconds that no wait exceeds, unless the server asks for more."""

MAX_RETRY_AFTER = 60.0
"""Seconds a server's ``Retry-After`` is obeyed for without the caller's word; beyond it the error is raised."""

RETRIED = (APIConnectionError, InternalServerError, EngineOverloadedError, InvalidResponseError)
"""Failures that pass. Bad requests, wrong keys, unknown models and empty accounts do not."""


def retry_delay(
    error: Exception, attempt: int, *, max_attempts: int, chance: float, patience: float | None = None
) -> float | None:
    """Seconds to wait before the next attempt, or None if there is none.

    Capped exponential backoff with full jitter: ``chance * min(MAX_DELAY, FIRST_DELAY * 2 ** (attempt - 1))``
    (AWS Architecture Blog, "Exponential Backoff and Jitter"); at least ``Retry-After`` where the server sent one.

    Args:
        error: what the attempt failed with.
        attempt: its number, from 1.
        max_attempts: attempts in all.
        chance: a random number from 0 to 1.
        patience: seconds that the caller still allows; None for the default.
    """
    if not isinstance(error, RETRIED) or attempt >= max_attempts:
        return None
    asked = (error.retry_after or 0.0) if isinstance(error, APIStatusError) else 0.0
    doublings = min(attempt - 1, 1000)  # a float holds no more
    delay = max(chance * min(MAX_DELAY, FIRST_DELAY * 2.0**doublings), asked)
    if delay > (max(MAX_RETRY_AFTER, MAX_DELAY) if patience is None else patience):
        return None
    return delay
