"""Smoothing, behind admission: what a window lets out in one instant leaves over a few seconds."""

import contextlib
import math
from typing import Literal

from aiolimiter import AsyncLimiter

from .limits import RateLimits

PaceMode = Literal["smooth", "even"]
"""``"smooth"`` spreads a window's requests a little; ``"even"`` spaces them at ``minute / rpm``."""

SMOOTH = 0.05
"""A minute's requests never leave in less than this share of the minute."""

QUANTUM = 0.01
"""Seconds. Requests that would leave closer together than this leave in groups: timers resolve a millisecond."""

SLACK = (1.0, 1.1, 1.25, 1.5)
"""Multiples of the even interval, ``minute / rpm``, that unexplained RPM refusals slow the pace to, in turn."""


class Pace:
    """Spreads departures out; it smooths, it is never the guarantee.

    aiolimiter serves its waiters smallest first, so it is asked for one unit at a time, by one waiter at a time:
    the head of the line. A unit is a quantum, in which ``burst`` requests may leave.
    """

    def __init__(self, limits: RateLimits, mode: PaceMode = "smooth") -> None:
        self.rpm = limits.rpm
        self._even = 0.0 if limits.rpm is None else limits.minute / limits.rpm
        self._slowdowns = 1 if mode == "even" else 0
        self._set_interval(self._even * (SLACK[0] if mode == "even" else SMOOTH))

    def _set_interval(self, interval: float) -> None:
        self.interval = interval
        self._burst = 1 if interval >= QUANTUM else math.ceil(QUANTUM / interval) if interval else 0
        self._quanta = AsyncLimiter(1, interval * self._burst) if interval else None
        self._left = 0

    def ready(self) -> bool:
        """Whether one request may leave now."""
        return self._left > 0 or self._quanta is None or self._quanta.has_capacity()

    def take(self) -> None:
        """Let one request leave; only when ``ready``."""
        if self._left:
            self._left -= 1
        elif self._quanta is not None:
            # With capacity at hand aiolimiter's acquire() runs to its end without suspending.
            with contextlib.suppress(StopIteration):
                self._quanta.acquire().send(None)
            self._left = self._burst - 1

    async def wait(self) -> None:
        """Let one request leave, as soon as it may."""
        if not self.ready() and self._quanta is not None:
            await self._quanta.acquire()
            self._left = self._burst
        self.take()

    def slow(self) -> bool:
        """Space requests out further, for a gateway that refuses bursts; False when that has been tried enough."""
        if self._slowdowns == len(SLACK) or not self._even:
            return False
        self._set_interval(self._even * SLACK[self._slowdowns])
        self._slowdowns += 1
        self.take()  # the request that was refused has just left; the next one keeps its distance
        return True
