"""The ideal schedule: when requests would leave if nothing but the limits ever held them up. Pure arithmetic.

**What it is.** Requests are admitted in the order in which they came, all of them waiting from time 0. Each is
admitted at the earliest time at which all of these hold: its predecessor has been admitted; fewer than ``concurrency``
requests are under way; with it, no more than ``rpm`` requests and ``tpm`` tokens were admitted in the last minute,
and no more than ``tpd`` tokens in the last day.

**Why nothing is faster.** Take any other schedule that keeps the order and the limits; by induction it admits no
request earlier. Say that holds for all requests before ``i``. Request ``i`` waits for its predecessor and, in each
budget, until enough of the *oldest* amounts have left: for the admission of some ``j < i`` plus a constant (the
window, or the latency of a slot), where ``j`` follows from the amounts alone and not from any time. None of these is
earlier there than here, hence neither is the latest of them. So this schedule is optimal for every request at once,
the last one included.

That holds for a given order and for one latency. Another order may pack the windows better, which a client that
serves first come, first served may not do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kimi_async import RateLimits
from kimi_async.limits import Budget


@dataclass(frozen=True, slots=True)
class Departure:
    """When one request leaves.

    Attributes:
        at: seconds after the first.
        waited_for: the budget that it had to wait for; None if it leaves with its predecessor.
    """

    at: float
    waited_for: Budget | None


def ideal(tokens: Sequence[int], limits: RateLimits, *, latency: float) -> list[Departure]:
    """The earliest departures of requests that cost ``tokens``, in that order.

    Args:
        tokens: prompt tokens and ``max_tokens`` of each request.
        limits: of the account.
        latency: seconds that a request holds its slot.

    Raises:
        ValueError: a request exceeds a limit all by itself.
    """
    ones = [1] * len(tokens)
    rules = [
        _Rule("concurrency", ones, limits.concurrency, latency),
        _Rule("rpm", ones, limits.rpm, limits.minute),
        _Rule("tpm", tokens, limits.tpm, limits.minute),
        _Rule("tpd", tokens, limits.tpd, limits.day),
    ]
    departures: list[Departure] = []
    for index in range(len(tokens)):
        latest = Departure(departures[-1].at if departures else 0.0, None)
        for rule in rules:
            leaver = rule.must_have_left(index)
            if leaver is not None and departures[leaver].at + rule.span > latest.at:
                latest = Departure(departures[leaver].at + rule.span, rule.budget)
        departures.append(latest)
    return departures


def makespan(departures: Sequence[Departure], *, latency: float) -> float:
    """Seconds until the last answer."""
    return departures[-1].at + latency if departures else 0.0


class _Rule:
    """One limit over a span of time; a slot is a budget like the others, whose span is the latency."""

    def __init__(self, budget: Budget, amounts: Sequence[int], limit: int | None, span: float) -> None:
        self.budget = budget
        self.span = span
        self._amounts = amounts
        self._limit = math.inf if limit is None else limit
        self._oldest = 0
        self._held = 0

    def must_have_left(self, index: int) -> int | None:
        """The latest request that must have left the span before ``index`` fits; ask for each index in turn."""
        own = self._amounts[index]
        if own > self._limit:
            raise ValueError(f"request {index} needs {own:,} of {self.budget}; the limit is {self._limit:,}")
        while self._held + own > self._limit:
            self._held -= self._amounts[self._oldest]
            self._oldest += 1
        self._held += own
        return self._oldest - 1 if self._oldest else None
