"""The ideal schedule, and a bound below all schedules: how soon a file can end if nothing but limits holds it up.

**The ideal.** Requests are admitted in the order in which they came, all of them waiting from time 0. Each is
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

**Other policies** have an ideal of their own, by the same induction. ``fixed``: whoever admits no request before
``i`` earlier has none of them in an earlier minute of the clock, so that ``i`` is in no earlier one either.
``bucket`` and ``gcra``: the time at which the level is zero again, ``max(zero, admitted) + amount * interval``, is
never earlier if no admission was. Either may end before the ideal of the sliding minute, for in some minute it lets
through more than the limit: a client which does not know how its gateway counts cannot make use of that without risk.

**The fluid bound** holds for every order, and for requests that could be cut into pieces and poured. Before time
``k * minute`` no sliding minute lets more than ``k`` times the limit through, since that time consists of ``k``
minutes. What is left of the file's requests, or tokens, is admitted then or later: ``rest``, in at least
``rest / largest`` requests. Each of them holds one of ``concurrency`` slots for the latency, and so the file takes
``k * minute + latency * max(1, rest / largest / concurrency)`` at least, for every ``k`` that leaves a rest.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kimi_async import RateLimits
from kimi_async.limits import Budget
from kimi_async.mock import Policy

ROUNDING = 1e-9
"""Seconds, at the edge of a fixed window."""


@dataclass(frozen=True, slots=True)
class Departure:
    """When one request leaves.

    Attributes:
        at: seconds after the first.
        waited_for: the budget that it had to wait for; None if it leaves with its predecessor.
    """

    at: float
    waited_for: Budget | None


def ideal(
    tokens: Sequence[int], limits: RateLimits, *, latency: float, policy: Policy = "sliding", begin: float = 0.0
) -> list[Departure]:
    """The earliest departures of requests that cost ``tokens``, in that order.

    Args:
        tokens: prompt tokens and ``max_tokens`` of each request.
        limits: of the account.
        latency: seconds that a request holds its slot.
        policy: how the gateway counts a minute.
        begin: what the gateway's clock shows at the beginning, seconds; only fixed windows look at it.

    Raises:
        ValueError: a request exceeds a limit all by itself.
    """
    rules = _rules(limits, latency, policy, begin)
    departures: list[Departure] = []
    for index, cost in enumerate(tokens):
        latest = Departure(departures[-1].at if departures else 0.0, None)
        for rule, amount in zip(rules, (1, 1, cost, cost), strict=True):
            if amount > rule.limit:
                raise ValueError(f"request {index} needs {amount:,} of {rule.budget}; the limit is {rule.limit:,}")
            earliest = rule.earliest(amount)
            if earliest > latest.at:
                latest = Departure(earliest, rule.budget)
        for rule, amount in zip(rules, (1, 1, cost, cost), strict=True):
            rule.book(latest.at, amount)
        departures.append(latest)
    return departures


def makespan(departures: Sequence[Departure], *, latency: float) -> float:
    """Seconds until the last answer."""
    return departures[-1].at + latency if departures else 0.0


def fluid_bound(tokens: Sequence[int], limits: RateLimits, *, latency: float) -> float:
    """Seconds until the last answer that no schedule under a sliding minute is below, whatever its order.

    Args:
        tokens: prompt tokens and ``max_tokens`` of each request.
        limits: of the account; a day's are not looked at.
        latency: seconds that a request holds its slot.
    """
    budgets = (([1] * len(tokens), limits.rpm), (tokens, limits.tpm))
    return max((end for amounts, limit in budgets for end in _fluid_ends(amounts, limit, limits, latency)), default=0)


def _fluid_ends(amounts: Sequence[int], limit: int | None, limits: RateLimits, latency: float) -> Iterator[float]:
    """What the rest after each minute says."""
    rest, minutes = sum(amounts), 0
    while rest > 0:
        slots = limits.concurrency or math.inf
        yield minutes * limits.minute + latency * max(1.0, rest / max(amounts) / slots)
        minutes += 1
        rest -= rest if limit is None else limit


class _Rule(Protocol):
    """One limit. What fits at some time fits later as well, until more is booked."""

    budget: Budget
    limit: float

    def earliest(self, amount: int) -> float:
        """When ``amount`` fits, as far as this limit is concerned; it is asked for the next request only."""
        ...

    def book(self, at: float, amount: int) -> None:
        """Count what was admitted."""
        ...


def _rules(limits: RateLimits, latency: float, policy: Policy, begin: float) -> list[_Rule]:
    """Those of concurrency, RPM, TPM and TPD; a slot is a budget like the others, whose span is the latency."""

    def rule(budget: Budget, limit: int | None, span: float, how: Policy) -> _Rule:
        most = math.inf if limit is None else limit
        if how == "sliding" or limit is None:
            return _Sliding(budget, most, span)
        if how == "fixed":
            return _Fixed(budget, most, span, begin)
        return _Bucket(budget, most, span, capacity=1 if how == "gcra" else most)

    return [
        rule("concurrency", limits.concurrency, latency, "sliding"),
        rule("rpm", limits.rpm, limits.minute, policy),
        rule("tpm", limits.tpm, limits.minute, "bucket" if policy == "gcra" else policy),
        rule("tpd", limits.tpd, limits.day, "sliding" if policy == "sliding" else "fixed"),
    ]


class _Sliding:
    """What was admitted counts for a span."""

    def __init__(self, budget: Budget, limit: float, span: float) -> None:
        self.budget = budget
        self.limit = limit
        self._span = span
        self._counted: deque[tuple[float, int]] = deque()
        self._sum = 0
        self._free_at = 0.0

    def earliest(self, amount: int) -> float:
        while self._sum + amount > self.limit:
            at, oldest = self._counted.popleft()
            self._sum -= oldest
            self._free_at = at + self._span
        return self._free_at

    def book(self, at: float, amount: int) -> None:
        self._counted.append((at, amount))
        self._sum += amount


class _Fixed:
    """What was admitted counts until the clock's next edge."""

    def __init__(self, budget: Budget, limit: float, span: float, begin: float) -> None:
        self.budget = budget
        self.limit = limit
        self._span = span
        self._edge = span - begin % span
        self._sum = 0

    def earliest(self, amount: int) -> float:
        return 0.0 if self._sum + amount <= self.limit else self._edge

    def book(self, at: float, amount: int) -> None:
        while at >= self._edge - ROUNDING:
            self._edge += self._span
            self._sum = 0
        self._sum += amount


class _Bucket:
    """A level that drains ``limit / span`` a second; ``capacity`` fits in at once (`kimi_async.mock.policies`)."""

    def __init__(self, budget: Budget, limit: float, span: float, capacity: float) -> None:
        self.budget = budget
        self.limit = limit
        self._interval = span / limit
        self._capacity = capacity
        self._empty_at = 0.0

    def earliest(self, amount: int) -> float:
        return self._empty_at - (self._capacity - amount) * self._interval

    def book(self, at: float, amount: int) -> None:
        self._empty_at = max(self._empty_at, at) + amount * self._interval
