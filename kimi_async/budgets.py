"""The rule of admission: four budgets, one decision. Pure arithmetic; time is an argument.

A cost is admitted at time ``now`` if and only if all of these hold:

- slots in use + 1 <= concurrency
- requests sent in ``(now - minute - guard, now]`` + pending requests + 1 <= rpm
- tokens sent in that window + pending tokens + its own <= tpm
- tokens sent in the day's window + pending tokens + its own <= tpd
- no refusal's pause is in force

A reservation is *pending* from its admission until its request has been written to the connection, then *sent*,
then *ended*. It is stamped when it is sent.

**Why the gateway never sees more than the limit in any minute.** Let request *i* be admitted at ``p``, stamped at
``s >= p`` and counted by the gateway at ``a = s + delay``, where delays differ by at most ``d``. Take any window
of a minute at the gateway and, of the requests counted in it, the one admitted last; call its times
``p*, s*, a*``. Every other request of the window was, when ``p*`` was decided, either still pending, and so
counted by the rule, or stamped at some ``s``. Both arrived within a minute, so

    p* - s  <=  s* - s  =  (a* - a) + (delay - delay*)  <  minute + d

and with ``guard >= d`` the stamp lies in ``(p* - minute - guard, p*]``: counted by the rule as well. The rule
let the last one in, so all of them together are within the limit. A client that no sliding minute catches is
within every fixed minute too, whatever its phase, and within every token bucket of that capacity.

**Why nothing is left unused.** The window only ever holds what was really sent in it, so the first request that
has to wait is let in at the very moment at which the oldest one leaves the window.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from .limits import WINDOWED, Budget, BudgetUsage, Cost, RateLimits, Usage
from .refusal import Refusal
from .window import TICK, CalendarLog, Entry, Log, SlidingLog

GUARD = 0.005
"""The default guard as a share of the minute: 0.3 s of delay that may vary on the way to the gateway."""

MAX_GUARD = 0.05
"""What unexplained refusals may double the guard up to, as a share of the minute."""

DAY_BUCKETS = 1440
"""Buckets that the sliding day is kept in: one a minute."""

PROBE_PATIENCE = 0.02
"""Share of a minute after which a probe that met no refusal has passed. Refusals come at once, answers may not."""


class Denial(NamedTuple):
    """Why a cost does not fit now, and in how many seconds it will.

    ``wait`` is infinite where no clock helps: another request must end first, or be cancelled. ``"turn"`` is that of
    another process, and ``"ledger"`` one that is away.
    """

    reason: Budget | Literal["probe", "turn", "ledger"]
    wait: float


class Room(NamedTuple):
    """What others may reserve in all without a decision to let somebody in being wrong."""

    requests: int = 0
    tokens: int = 0


UNBOUNDED = 10**15
"""More than anybody reserves, and exact as a float, which is what a script of Valkey's counts with."""


class Charge:
    """What one reservation holds, and whether the gateway is known to have let it in. Only a ledger changes it."""

    __slots__ = ("answered", "day_entry", "minute_entry", "round", "state", "tokens")

    minute_entry: Entry
    day_entry: Entry

    def __init__(self, tokens: int, round_: int) -> None:
        self.tokens = tokens
        self.round = round_
        self.state: Literal["pending", "sent", "ended"] = "pending"
        self.answered = False


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a refusal taught.

    Attributes:
        explained: our own books agree, now, that the budget is full; waiting for them is enough.
        echo: not explained, but the request was under way when the last such refusal came: it says nothing new.
        adopted: the lower limit that holds from now on; None where the configured one stands.
        foreign: what somebody else has spent on this account, now booked: requests of RPM, else tokens.
        pause: seconds for which the budget is closed now.
    """

    explained: bool
    echo: bool = False
    adopted: int | None = None
    foreign: int = 0
    pause: float = 0.0


class Budgets:
    """One account's books.

    Args:
        limits: what the account may do.
        epoch: the Unix time at which the clock that is passed as ``now`` showed zero; only a day that ends at
            midnight needs it.
    """

    def __init__(self, limits: RateLimits, *, epoch: float = 0.0) -> None:
        self.guard = GUARD * limits.minute
        self._quiet_at = math.inf
        self.minute = SlidingLog(limits.minute + self.guard)
        self.day: Log
        if limits.day_zone is None:
            self.day = SlidingLog(limits.day + self.guard, resolution=limits.day / DAY_BUCKETS)
        else:
            self.day = CalendarLog(ZoneInfo(limits.day_zone), epoch, self.guard)
        self._requests_sent = 0
        self._tokens_charged = 0
        self._in_flight = 0
        self._peak = 0
        self._pending = 0
        self._pending_tokens = 0
        self._pauses: dict[Budget, float] = {}
        self.probe: Charge | None = None
        self._streak = 0
        self._round = 0
        self.limits = limits

    @property
    def limits(self) -> RateLimits:
        """The limits in force: those configured, lowered by what refusals taught."""
        return self._limits

    @limits.setter
    def limits(self, limits: RateLimits) -> None:
        self._limits = limits
        self._slots = math.inf if limits.concurrency is None else limits.concurrency
        self._rpm = math.inf if limits.rpm is None else limits.rpm
        self._tpm = math.inf if limits.tpm is None else limits.tpm
        self._tpd = math.inf if limits.tpd is None else limits.tpd

    def reserve(self, now: float, cost: Cost) -> Charge | Denial:
        """Take all four budgets for a cost, or none of them."""
        denial = self.denial(now, cost)
        return self.take(cost.tokens) if denial is None else denial

    def denial(self, now: float, cost: Cost) -> Denial | None:
        """Why a cost does not fit now; None if it does."""
        if now >= self._quiet_at:
            self._relax_guard(now)
        minute, day = self.minute, self.day
        if now >= minute.due:
            minute.expire(now)
        if now >= day.due:
            day.expire(now)
        tokens = self._pending_tokens + cost.tokens
        fits = (
            self._in_flight < self._slots
            and minute.requests + self._pending < self._rpm
            and minute.tokens + tokens <= self._tpm
            and day.tokens + tokens <= self._tpd
            and not self._pauses
        )
        return None if fits else self._denial(now, tokens)

    def room_beside(self, tokens: int) -> Room:
        """What could be reserved beside one of so many tokens that has just not been denied."""
        if self._pauses:
            return Room()
        pending = self._pending_tokens + tokens
        requests = min(self._slots - self._in_flight, self._rpm - self.minute.requests - self._pending) - 1
        free = min(self._tpm - self.minute.tokens, self._tpd - self.day.tokens) - pending
        return Room(int(min(requests, UNBOUNDED)), int(min(free, UNBOUNDED)))

    def take(self, tokens: int) -> Charge:
        """Book a reservation that was admitted, here or by another process on the same account."""
        self._in_flight += 1
        self._pending += 1
        self._pending_tokens += tokens
        charge = Charge(tokens, self._round)
        if self._pauses:
            self.probe = charge
        return charge

    def _denial(self, now: float, tokens: int) -> Denial | None:
        minute, day = self.minute, self.day
        denials = [Denial(budget, until - now) for budget, until in self._pauses.items() if until > now + TICK]
        if minute.requests + self._pending + 1 > self._rpm:
            excess = minute.requests + self._pending + 1 - int(self._rpm)
            denials.append(Denial("rpm", minute.wait(now, excess, 0)))
        if minute.tokens + tokens > self._tpm:
            denials.append(Denial("tpm", minute.wait(now, 0, minute.tokens + tokens - int(self._tpm))))
        if day.tokens + tokens > self._tpd:
            denials.append(Denial("tpd", day.wait(now, 0, day.tokens + tokens - int(self._tpd))))
        if denials:
            return max(denials, key=lambda denial: denial.wait)
        if self._in_flight >= self._slots:
            return Denial("concurrency", math.inf)
        return self._probe_denial(now)

    def _probe_denial(self, now: float) -> Denial | None:
        """After a pause one request goes first; the others follow when it was not refused."""
        if self.probe is None:
            return None
        if self.probe.state == "pending":
            return Denial("probe", math.inf)
        patience = self.probe.minute_entry.at + PROBE_PATIENCE * self._limits.minute - now
        if patience > TICK:
            return Denial("probe", patience)
        self._resume()
        return None

    def _resume(self) -> None:
        self._pauses.clear()
        self.probe = None
        self._streak = 0

    @property
    def paused_until(self) -> float:
        """The time at which the last pause ends; minus infinity where there is none."""
        return max(self._pauses.values(), default=-math.inf)

    def paused(self, now: float) -> dict[Budget, float]:
        """Budgets that a pause keeps closed, with the seconds that it still lasts."""
        return {budget: until - now for budget, until in self._pauses.items() if until > now}

    def sent(self, now: float, charge: Charge) -> None:
        """The request has been written to its connection."""
        if charge.state != "pending":
            raise RuntimeError(f"this reservation is {charge.state} already; a request is sent once")
        charge.state = "sent"
        self._requests_sent += 1
        self._tokens_charged += charge.tokens
        self._peak = max(self._peak, self._in_flight)
        self._pending -= 1
        self._pending_tokens -= charge.tokens
        charge.minute_entry = self.minute.add(now, 1, charge.tokens)
        charge.day_entry = self.day.add(now, 1, charge.tokens)

    def end(self, charge: Charge, *, answered: bool) -> None:
        """Give the slot of a sent request back.

        ``answered`` says that the gateway let the request in; only such an ending lets a probe pass.
        """
        if charge.state == "pending":
            raise RuntimeError("a reservation that may have been sent counts as sent: mark it before it ends")
        self._close(charge)
        charge.answered = answered
        if charge is self.probe:
            self.probe = None
            if answered and charge.round == self._round:  # else another budget was closed meanwhile
                self._resume()

    def cancel(self, charge: Charge) -> None:
        """Give everything back, without a trace; only before the request was sent."""
        if charge.state == "sent":
            raise RuntimeError("a request that was sent is charged; end its reservation instead")
        self._close(charge)
        self._pending -= 1
        self._pending_tokens -= charge.tokens
        if charge is self.probe:
            self.probe = None

    def _close(self, charge: Charge) -> None:
        if charge.state == "ended":
            raise RuntimeError("this reservation has ended already; it ends exactly once")
        charge.state = "ended"
        self._in_flight -= 1

    def refuse(self, now: float, charge: Charge, refusal: Refusal, *, pause: bool = False) -> Lesson:
        """End a reservation that the gateway refused, and learn from what it said.

        Its tokens leave TPM and TPD, its request stays counted in RPM: Kimi counts attempts. A stated limit
        below ours is adopted. ``current`` above what we know is somebody else's usage: booked as of now, the
        latest moment at which it can have been spent. So ``now`` must not be long after the refusal. One that says
        something new, which the books do not explain, closes the budget for a while if it is to ``pause``.
        """
        if charge.state == "ended":
            raise RuntimeError("this reservation has ended already; it ends exactly once")
        if charge.state == "pending":
            self.sent(now, charge)
        self.minute.expire(now)
        self.day.expire(now)
        adopted = self._adopt(refusal)
        foreign = self._book_foreign(now, refusal)
        paused = refusal.budget == "tpd" and bool(refusal.retry_after)
        explained = foreign > 0 or paused or self._over(refusal.budget)
        self._close(charge)
        self._tokens_charged -= charge.tokens
        self.minute.retract(now, charge.minute_entry, charge.tokens)
        self.day.retract(now, charge.day_entry, charge.tokens)
        if charge is self.probe:
            self.probe = None
        if paused:
            self._pauses["tpd"] = now + (refusal.retry_after or 0.0)
        echo = not explained and charge.round < self._round
        self._round += paused or not (explained or echo)
        seconds = self.pause(now, refusal) if pause and not (explained or echo) else 0.0
        return Lesson(explained, echo, adopted, foreign, seconds)

    def _adopt(self, refusal: Refusal) -> int | None:
        if refusal.budget is None or not refusal.limit:
            return None
        configured = getattr(self._limits, refusal.budget)
        if configured is not None and refusal.limit >= configured:
            return None
        self.limits = self._limits.with_limit(refusal.budget, refusal.limit)
        return refusal.limit

    def _book_foreign(self, now: float, refusal: Refusal) -> int:
        """What others spend of the part of the gateway's limit that ours leaves to them is no concern of ours."""
        if refusal.current is None or refusal.budget not in WINDOWED:
            return 0
        if refusal.budget == "tpd" and refusal.retry_after:
            return 0  # the gateway says when its day ends; what is booked now would stay for a whole day
        ours = getattr(self._limits, refusal.budget) or 0
        current = refusal.current - max((refusal.limit or 0) - ours, 0)
        log, requests = self.day if refusal.budget == "tpd" else self.minute, refusal.budget == "rpm"
        foreign = current - (log.requests if requests else log.tokens)
        few = max(MAX_GUARD * ours, 1) if requests else 0  # they may be our own, which came late
        if foreign <= few:
            return 0
        log.add(now, *((foreign, 0) if requests else (0, foreign)))
        return foreign

    def _over(self, budget: Budget | None) -> bool:
        """Whether our own books hold a budget to be exceeded, the refused request included."""
        if budget == "concurrency":
            return self._in_flight > self._slots
        if budget == "rpm":
            return self.minute.requests > self._rpm
        if budget == "tpm":
            return self.minute.tokens > self._tpm
        return self.day.tokens > self._tpd

    def pause(self, now: float, refusal: Refusal) -> float:
        """Close a budget whose refusal our books do not explain; the seconds it stays closed.

        As long as the gateway asks for, doubled while probes are refused, up to the whole window. RPM and TPM widen
        the guard too.
        """
        budget = refusal.budget
        if budget is None:
            return 0.0
        asked = refusal.retry_after or self._limits.minute / 60
        seconds = min(asked * 2.0**self._streak, self._limits.minute + self.guard)
        self._pauses[budget] = now + seconds
        self._streak += 1
        if budget in {"rpm", "tpm"}:
            self._set_guard(min(2 * self.guard, MAX_GUARD * self._limits.minute))
            self._quiet_at = now + self._limits.minute
        return seconds

    def _relax_guard(self, now: float) -> None:
        """Halve a widened guard after each minute without an unexplained refusal."""
        least = GUARD * self._limits.minute
        while now >= self._quiet_at:  # by the clock alone, whenever somebody looks
            self._set_guard(max(self.guard / 2, least))
            self._quiet_at = self._quiet_at + self._limits.minute if self.guard > least else math.inf

    def _set_guard(self, guard: float) -> None:
        self.guard = guard
        self.minute.span = self._limits.minute + guard
        self.minute.due = -math.inf

    def usage(self, now: float) -> Usage:
        """How much of each budget is taken."""
        self.minute.expire(now)
        self.day.expire(now)
        limits, pending = self._limits, self._pending_tokens
        return Usage(
            concurrency=BudgetUsage(self._in_flight, limits.concurrency),
            rpm=BudgetUsage(self.minute.requests + self._pending, limits.rpm),
            tpm=BudgetUsage(self.minute.tokens + pending, limits.tpm),
            tpd=BudgetUsage(self.day.tokens + pending, limits.tpd),
            guard=self.guard,
            requests_sent=self._requests_sent,
            tokens_charged=self._tokens_charged,
            peak_slots=self._peak,
        )

    def replica(self, now: float) -> "Budgets":
        """A copy to play on: what is pending counts as sent now, and slots are free."""
        twin = Budgets(self._limits.with_limit("concurrency", None))
        twin._set_guard(self.guard)
        twin._quiet_at = self._quiet_at
        twin.minute, twin.day = self.minute.copy(), self.day.copy()
        for log in (twin.minute, twin.day):
            log.expire(now)
            log.add(now, self._pending, self._pending_tokens)
        return twin
