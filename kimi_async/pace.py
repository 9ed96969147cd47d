"""Smoothing, behind admission: what a window lets out in one instant leaves over a second or two."""

import asyncio
import contextlib
import math
from collections import deque
from typing import Literal, Protocol

from aiolimiter import AsyncLimiter

from .limits import RateLimits

PaceMode = Literal["smooth", "even"]
"""``"smooth"`` spreads a window's requests a little; ``"even"`` spaces them at ``minute / rpm``."""

SMOOTH = 0.025
"""A minute's requests never leave in less than this share of the minute: 1.5 s. Not more, for the last ones of a file
leave so much later: 0.05 would take most of the 2 % that a file may take longer than in the ideal schedule. Not less,
for a gateway that refuses only longer bursts than the trial's needs a round trip to say so, while others leave."""

QUANTUM = 0.01
"""Seconds. Requests that would leave closer together than this leave in groups: timers resolve a millisecond."""

TRIAL = 4
"""Requests of the first burst that leave before there is news of them."""

LOOKS = 3
"""How often no news of them is to be found, after all of them were written, until that is good news..."""

STEP = 0.0025
"""...and the share of a minute between two looks: 0.45 s in all, for the way there and back on a network whose delays
vary by 0.2 s."""

LONGEST = 0.03
"""Share of a minute after which the others leave in any case: 1.8 s, for connections that take long to be made."""

BURST = 1 / 3
"""Who lets so large a part of RPM pass at once counts by the minute. The last of them has passed when it is answered,
or when no refusal has come for ``LOOKS * STEP`` of a minute since another one left and found it written. Refusals come
at once, answers may not. A gateway that lets more pass than this, but not all, is used for as much as that."""

SLACK = (1.0, 1.1, 1.25, 1.5)
"""Multiples of the even interval, ``minute / rpm``, that unexplained RPM refusals slow the pace to, in turn."""


ALONE = 2
"""Even intervals, ``minute / rpm``, after which a request is the first of a burst, however the network pushes it."""


class Departed(Protocol):
    """What the pace sees of a request that it let go: its charge."""

    @property
    def state(self) -> Literal["pending", "sent", "ended"]:
        """Until it was written, until it is over, and then."""

    @property
    def answered(self) -> bool:
        """Whether the gateway has let it in, for certain."""


class Trial:
    """Whether the gateway lets bursts pass, as far as is known: pure arithmetic, time is an argument.

    A burst is what leaves ahead of the even pace, ``minute / rpm``. The first ``TRIAL`` requests of the first burst go
    alone, so that a gateway that refuses bursts has few to refuse. The others follow

    - when all of those are answered; who is refused never is. The first answer is no news: a gateway that refuses
      bursts lets the first request of each one in.
    - or when ``LOOKS`` at them, ``STEP`` of a minute apart, have found all of them written and nothing more. However
      long answers take, refusals are not generated: they come as soon as the way there and back allows. Looks are
      counted, and not the time, since a program that is busy with something else hears nothing meanwhile.

    Args:
        rpm: requests a minute.
        minute: seconds.

    Attributes:
        running: those four have left, and there was no news yet when ``holds`` was last asked.
    """

    def __init__(self, rpm: int, minute: float) -> None:
        self._minute = minute
        self._rate = rpm / minute
        self._enough = max(BURST * rpm, 2)  # one request is no burst
        self._seen_from = self._enough
        self._ahead = 0.0
        self._latest = -math.inf
        self._alone: Departed | None = None
        self._alone_is_latest = False
        self._first: deque[Departed] = deque(maxlen=TRIAL)
        self._last: Departed | None = None
        self._passed_at = math.inf
        self._looks = 0
        self._ends_at = math.inf  # before the first burst
        self.running = False

    def leave(self, now: float, request: Departed) -> None:
        """A request leaves."""
        gone = (now - self._latest) * self._rate
        ahead = self._ahead - gone
        self._ahead = ahead = ahead + 1 if ahead > 0 else 1.0
        self._latest = now
        if gone >= ALONE or self._alone_is_latest:
            self._alone_is_latest = gone >= ALONE or _is_lost(self._alone)
            if self._alone_is_latest:
                self._alone = request
        if self._ends_at == math.inf:
            self._first.append(request)
            if ahead > TRIAL - 1:
                self._ends_at = now + LONGEST * self._minute
                self.running = True
        if ahead >= self._seen_from:
            self._see(now, request)

    def _see(self, now: float, request: Departed) -> None:
        """Keep the last of a burst until it is seen to be written; if it never will be, wait for another."""
        last = self._last
        if last is not None and _is_written(last):
            self._passed_at, self._seen_from = now + LOOKS * STEP * self._minute, math.inf
        elif (last is None or _is_lost(last)) and self._ahead >= self._enough:
            self._last, self._seen_from = request, 0.0

    def holds(self, now: float) -> bool:
        """Whether the others must wait for news."""
        if self.running:
            heard = all(one.answered for one in self._first)
            self.running = not heard and self._looks < LOOKS and now < self._ends_at
        return self.running

    def look(self) -> None:
        """``STEP`` of a minute has passed since the others began to wait, or since the last look."""
        self._looks += all(map(_is_written, self._first))

    def passed(self, now: float) -> bool:
        """Whether a burst has passed: if the gateway refuses a request now, that has another reason."""
        return now >= self._passed_at or (self._last is not None and self._last.answered)

    def began_with(self, request: Departed) -> bool:
        """Whether this was the first of the latest burst, or a request by itself."""
        return request is self._alone


def _is_written(request: Departed) -> bool:
    return request.state == "sent" or request.answered


def _is_lost(request: Departed | None) -> bool:
    """Refused, broken off or never sent: nothing that the gateway is known to have let in."""
    return request is not None and request.state == "ended" and not request.answered


class Pace:
    """Spreads departures out; it smooths, it is never the guarantee.

    aiolimiter serves its waiters smallest first, so it is asked for one unit at a time. Who waits is the head of the
    line, and whoever was it when a refused request came back to its place before that. A unit is a quantum, in which
    ``burst`` requests may leave.
    """

    def __init__(self, limits: RateLimits, mode: PaceMode = "smooth") -> None:
        self._mode = mode
        self._news: set[asyncio.Event] = set()
        self._looked = 0
        self.follow(limits)

    def follow(self, limits: RateLimits) -> None:
        """Begin anew, by these limits; whoever waits goes by them as well."""
        even = self._mode == "even"
        self.rpm = limits.rpm
        self._even = 0.0 if limits.rpm is None else limits.minute / limits.rpm
        self._minute = limits.minute
        self._slowdowns = 1 if even else 0
        self._least = 1
        self._has_relaxed = False
        self._quiet_since = -math.inf
        self._trial = None if limits.rpm is None or even else Trial(limits.rpm, limits.minute)
        self._set_interval(self._even * (SLACK[0] if even else SMOOTH))

    def _set_interval(self, interval: float) -> None:
        self.interval = interval
        self._burst = 1 if interval >= QUANTUM else math.ceil(QUANTUM / interval) if interval else 0
        self._quanta = AsyncLimiter(1, interval * self._burst) if interval else None
        self._left = 0

    def ready(self) -> bool:
        """Whether one request may leave now."""
        if self._slowdowns > self._least:
            self._relax()
        if self._trial is not None and self._trial.running and self._trial.holds(_now()):
            return False
        return self._left > 0 or self._quanta is None or self._quanta.has_capacity()

    def take(self, request: Departed) -> None:
        """Let one request leave; only when ``ready``."""
        if self._trial is not None:
            self._trial.leave(_now(), request)
        self._spend()

    async def wait(self, request: Departed) -> None:
        """Let one request leave, as soon as it may."""
        while not self.ready():
            if self._trial is not None and self._holds():
                await self._hear(self._trial)
            else:
                await self._refill()
        self.take(request)

    def look(self) -> None:
        """A request has ended: see whether that is the news that others wait for."""
        if self._news and not self._holds():
            for news in self._news:
                news.set()

    def may_be_why(self, request: Departed) -> bool:
        """Whether a gateway that refuses bursts may have refused this request for one; then ``slow`` helps.

        It lets no burst pass, and the first of each one in; and it never refuses whoever is slow enough.
        """
        if not self._can_slow or self.passed:
            return False
        return self._trial is None or not self._trial.began_with(request)

    @property
    def passed(self) -> bool:
        """Whether the gateway has let a burst pass: what it refuses from now on, it refuses for the whole minute."""
        return self._trial is not None and self._trial.passed(_now())

    @property
    def _can_slow(self) -> bool:
        return bool(self._even) and self._slowdowns < len(SLACK)

    def slow(self) -> None:
        """Space requests out further, as far as that goes."""
        if not self._can_slow:
            return
        self._trial = None
        self._slow_to(self._slowdowns + 1)
        self._spend()  # the request that was refused has just left; the next one keeps its distance
        if self._has_relaxed:
            self._least = self._slowdowns
        self.look()

    def refused(self) -> None:
        """A request was refused for RPM, whatever the reason: this minute is no quiet one."""
        self._quiet_since = _now()

    def _relax(self) -> None:
        """After a quiet minute space them out less, but once for all: it may have been others who used the account."""
        if _now() - self._quiet_since < self._minute:
            return
        earned = self._left > 0 or (self._quanta is not None and self._quanta.has_capacity())
        self._slow_to(self._slowdowns - 1)
        self._has_relaxed = True
        if not earned:
            self._spend()

    def _slow_to(self, slowdowns: int) -> None:
        self._slowdowns, self._quiet_since = slowdowns, _now()
        self._set_interval(self._even * SLACK[slowdowns - 1])

    def _holds(self) -> bool:
        return self._trial is not None and self._trial.holds(_now())

    async def _hear(self, trial: Trial) -> None:
        """Wait for news, or for the time to look again; of several who wait, one looks."""
        news, looked = asyncio.Event(), self._looked
        self._news.add(news)
        try:
            async with asyncio.timeout(STEP * self._minute):
                await news.wait()
        except TimeoutError:
            if looked == self._looked:
                self._looked += 1
                trial.look()
        finally:
            self._news.discard(news)

    async def _refill(self) -> None:
        quanta = self._quanta
        if quanta is not None:
            await quanta.acquire()
        if quanta is self._quanta:  # else the pace has changed meanwhile, and that unit was one of the old
            self._left = self._burst

    def _spend(self) -> None:
        if self._left:
            self._left -= 1
        elif self._quanta is not None:
            # With capacity at hand aiolimiter's acquire() runs to its end without suspending.
            with contextlib.suppress(StopIteration):
                self._quanta.acquire().send(None)
            self._left = self._burst - 1


def _now() -> float:
    return asyncio.get_running_loop().time()
