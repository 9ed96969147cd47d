"""How a gateway may count one limit over time: four algorithms, pure arithmetic, time is an argument.

Kimi does not publish which of them it runs, so a client has to live with each of them. With a limit of 3 a
minute and three requests offered at each of four times, this many are admitted:

========= ============================================ ===== ===== ===== =====
policy    what counts at time ``t``                     0:58  1:02  1:18  1:58
========= ============================================ ===== ===== ===== =====
sliding   everything in ``(t - window, t]``                3     0     0     3
fixed     everything since the clock's last edge           3     3     0     0
bucket    a level that drains ``limit / window`` a s       3     0     1     2
gcra      the same, with room for ``burst`` = 1 only       1     0     1     1
========= ============================================ ===== ===== ===== =====

``fixed`` and ``bucket`` let up to twice the limit into some window; ``sliding`` never exceeds it.
"""

from collections import deque
from math import floor, inf
from typing import Literal, Protocol

Policy = Literal["sliding", "fixed", "bucket", "gcra"]

_ROUNDING = 1e-6  # of a request or token; clock readings are floats


class Window(Protocol):
    """One limit over one length of time. Amounts are requests or tokens, times are seconds, never falling."""

    capacity: float
    """The most that may count at once."""

    def used(self, now: float) -> float:
        """What counts at ``now``."""
        ...

    def charge(self, now: float, amount: int) -> None:
        """Count ``amount`` from ``now`` on, whether it fits or not."""
        ...

    def fits_in(self, now: float, amount: int) -> float:
        """Seconds until ``amount`` more fits, or until nothing counts if it never will; with no further charge."""
        ...


def fits(window: Window, now: float, amount: int) -> bool:
    """Whether ``amount`` more would stay within the window's capacity at ``now``."""
    return window.used(now) + amount <= window.capacity + _ROUNDING


class SlidingLog:
    """Every charge of the last ``window`` seconds, exactly: the half-open interval ``(now - window, now]``.

    Args:
        capacity: the limit; the default only measures.
        window: seconds.
    """

    def __init__(self, capacity: float = inf, *, window: float) -> None:
        self.capacity = capacity
        self._window = window
        self._charges: deque[tuple[float, int]] = deque()
        self._sum = 0

    def used(self, now: float) -> float:
        """The sum of the charges in the window that ends at ``now``."""
        charges = self._charges
        horizon = now - self._window
        while charges and charges[0][0] <= horizon:
            self._sum -= charges.popleft()[1]
        return self._sum

    def charge(self, now: float, amount: int) -> None:
        """Add to the log."""
        self._charges.append((now, amount))
        self._sum += amount

    def fits_in(self, now: float, amount: int) -> float:
        """Seconds until enough of the oldest charges have left the window."""
        excess = self.used(now) + amount - self.capacity
        wait = 0.0
        for charged_at, charged in self._charges:
            if excess <= 0:
                break
            excess -= charged
            wait = charged_at + self._window - now
        return wait


class FixedWindow:
    """A counter that falls to zero at every edge of a clock.

    Args:
        capacity: the limit.
        window: seconds between two edges.
        phase: where the edges are: at ``(k + phase) * window`` on the caller's clock.
    """

    def __init__(self, capacity: float, *, window: float, phase: float = 0.0) -> None:
        self.capacity = capacity
        self._window = window
        self._phase = phase
        self._index = -1
        self._sum = 0

    def used(self, now: float) -> float:
        """The sum of the charges since the last edge."""
        index = floor(now / self._window - self._phase)
        if index != self._index:
            self._index, self._sum = index, 0
        return self._sum

    def charge(self, now: float, amount: int) -> None:
        """Add to the counter of the window that ``now`` is in."""
        self.used(now)
        self._sum += amount

    def fits_in(self, now: float, amount: int) -> float:
        """Seconds until the next edge, unless ``amount`` fits before it."""
        if fits(self, now, amount):
            return 0.0
        position = now / self._window - self._phase
        return (floor(position) + 1 - position) * self._window


class Bucket:
    """A token bucket in its GCRA form (ITU-T I.371): one number, the time at which it will be full again.

    A bucket that starts full, holds ``capacity`` and refills ``rate`` a second is the same thing as a GCRA
    whose emission interval is ``1 / rate`` and whose tolerance is ``capacity - 1`` intervals.

    Args:
        capacity: the most that passes in one instant.
        rate: refill a second.
    """

    def __init__(self, capacity: float, *, rate: float) -> None:
        self.capacity = capacity
        self._interval = 1 / rate
        self._full_at = 0.0

    def used(self, now: float) -> float:
        """What is missing from a full bucket; a fraction is normal."""
        return max(0.0, self._full_at - now) / self._interval

    def charge(self, now: float, amount: int) -> None:
        """Take from the bucket; it cannot get emptier than empty."""
        full_at = max(self._full_at, now) + amount * self._interval
        self._full_at = min(full_at, now + self.capacity * self._interval)

    def fits_in(self, now: float, amount: int) -> float:
        """Seconds until so much has drained."""
        used = self.used(now)
        return min(used, max(0.0, used + amount - self.capacity)) * self._interval


def open_window(policy: Policy, limit: int, *, window: float, phase: float = 0.0, burst: int = 1) -> Window:
    """The window that ``policy`` counts ``limit`` with.

    Args:
        policy: the algorithm.
        limit: requests or tokens a window.
        window: seconds.
        phase: of ``fixed``: its edges' place, as a share of the window.
        burst: of ``gcra``: how much may come in one instant.
    """
    match policy:
        case "sliding":
            return SlidingLog(limit, window=window)
        case "fixed":
            return FixedWindow(limit, window=window, phase=phase)
        case "bucket":
            return Bucket(limit, rate=limit / window)
        case "gcra":
            return Bucket(min(burst, limit), rate=limit / window)
