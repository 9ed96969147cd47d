"""The limiter: a line of requests before an account's budgets."""

import asyncio
import math
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Literal

from .budgets import MAX_GUARD
from .errors import DailyBudgetExhausted, LimiterClosed, RequestTooLarge, WaitTooLong
from .events import EventHook, ForeignUsage, LimitAdopted, Refused, log_event
from .ledger import Charge, Denial, Ledger, Lesson
from .ledger.memory import MemoryLedger
from .limits import WINDOWED, Cost, RateLimits, Usage
from .line import Line, Waiter
from .pace import Pace, PaceMode
from .refusal import Refusal
from .reservation import Acquisition, Reservation


class RateLimiter:
    """Lets requests through as fast as an account's four budgets allow, and never faster.

    ::

        limiter = RateLimiter(RateLimits(concurrency=50, rpm=200, tpm=128_000))
        async with limiter.acquire(Cost(prompt_tokens=210, max_tokens=512)) as reservation:
            ...                    # write the request
            reservation.sent()     # its minute begins here
            ...                    # read the answer; the slot comes back when the block ends

    Three verbs differ only where there is no room: ``try_acquire`` returns None, ``wait_time`` says for how long,
    ``acquire`` waits.

    **What is counted.** Slots in use, requests and tokens of the last minute, tokens of the day. A cost takes all
    four in one step or none, so nobody holds a slot while waiting for tokens or tokens while waiting for a slot.
    The windows slide and are exact; ``kimi_async.budgets`` has the rule and its proof.

    **Order.** First come, first served, whatever a request costs: a newcomer stands in line behind those who wait
    even if it would fit. Only the head of the line has a timer, set for the moment at which it fits.

    **When a budget is empty** ``acquire`` waits, unless the wait would exceed ``max_wait``: that is refused before
    it begins, with the numbers. A request that no wait can make fit raises RequestTooLarge at once. An exhausted
    day raises DailyBudgetExhausted, for nobody wants to wait silently for hours.

    **Smoothing.** ``pace="smooth"`` spreads what a window would let out in one instant over a fortieth of the minute.
    The first burst begins with four requests; the others follow when those are let in, or would have been refused by
    now: `kimi_async.pace.Trial`. ``pace="even"`` spaces requests at ``minute / rpm``, for gateways that refuse bursts.

    **Cancellation** is safe at every await: a waiter that goes gives back what it had, and the next moves up.
    Nothing runs in the background; ``close`` only turns the line away. Use one limiter on one event loop.

    Args:
        limits: what the account may do.
        ledger: where reservations are recorded; the memory of this process by default.
        pace: see above.
        on_event: receives what refusals taught; by default they are logged.
    """

    def __init__(
        self,
        limits: RateLimits,
        *,
        ledger: Ledger | None = None,
        pace: PaceMode = "smooth",
        on_event: EventHook = log_event,
    ) -> None:
        self.ledger: Ledger = MemoryLedger() if ledger is None else ledger
        self.ledger.configure(limits)
        self._pace = Pace(limits, pace)
        self._on_event = on_event
        self._line = Line()
        self._places = count()
        self._closed = asyncio.Event()
        self._answering: asyncio.Timeout | None = None
        self._denial: Denial | None = None
        self._denied_until = 0.0
        self._forecast: Callable[[Cost], Denial] | None = None
        self._forecast_from = 0.0

    @property
    def limits(self) -> RateLimits:
        """The limits in force: those configured, lowered by what refusals taught."""
        return self.ledger.limits

    def try_acquire(self, cost: Cost) -> Reservation | None:
        """A reservation if there is room now and nobody waits, else None; always None where a ledger must be asked.

        Raises:
            RequestTooLarge: there will never be room.
        """
        reservation = self.admit_now(cost)
        if reservation is None:
            self._refuse_impossible(cost)
        return reservation

    def acquire(self, cost: Cost, *, max_wait: float | None = None, place: int | None = None) -> Acquisition:
        """Wait for room, in line; use it with ``async with``, or ``await`` it.

        Args:
            cost: what the request takes.
            max_wait: seconds that the wait may last; None waits as long as it takes, but no longer than a minute
                for the budget of the day.
            place: the place of a reservation that was refused, to go back to it.

        Raises:
            RequestTooLarge: there will never be room.
            WaitTooLong: there will be none in time, known beforehand where the ledger can tell.
            DailyBudgetExhausted: the tokens of the day are spent.
            LimiterClosed: ``close`` was called.
        """
        return Acquisition(self, cost, max_wait, place)

    async def wait_time(self, cost: Cost) -> float:
        """Seconds that ``acquire`` of this cost would wait, were it called now and were slots free by then.

        Smoothing may add up to ``SMOOTH`` of a minute to it, and the trial of the first burst ``LONGEST`` of one; a
        pace that refusals have slowed, or an even one, up to one and a half even intervals for each ahead.

        Raises:
            RequestTooLarge: there will never be room.
        """
        self._refuse_impossible(cost)
        return self._forecast_line()(cost).wait

    def close(self) -> None:
        """Let nobody in any more: whoever waits, or comes later, gets LimiterClosed. What is under way goes on."""
        if self._closed.is_set():
            return
        self._closed.set()
        gatekeeper = Waiter(-1, Cost(0))  # stands at the head for ever, so that nobody is served without a look
        gatekeeper.admitted = True
        self._line.join(gatekeeper)  # without asking for room
        for waiter in self._line:
            waiter.wake()
        if self._answering is not None:
            self._answering.reschedule(-math.inf)

    async def sleep(self, seconds: float) -> None:
        """Wait between two attempts. Raises LimiterClosed as soon as ``close`` is called: there is no next one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        self._refuse_closed()

    def time_to_send(self, requests: int, tokens: int) -> float:
        """Seconds until so many further requests, costing so many tokens together, can all have been sent.

        A lower bound, which RPM, TPM and TPD set; where requests wait for slots, these take longer.
        """
        return self.ledger.time_to_send(requests, tokens)

    def usage(self) -> Usage:
        """A snapshot of the four budgets and of the line."""
        usage = self.ledger.usage()
        waiting = len(self._line) - self._closed.is_set()
        if not waiting or self._denial is None:
            return replace(usage, waiting=waiting)
        left = self._denied_until - asyncio.get_running_loop().time()
        next_in = None if math.isinf(left) else max(left, 0.0)
        return replace(usage, waiting=waiting, binding=self._denial.reason, next_in=next_in)

    def __repr__(self) -> str:
        return f"<RateLimiter {self.usage()}>"

    # -- admission --------------------------------------------------------------------------------------------

    def admit_now(self, cost: Cost, place: int | None = None) -> Reservation | None:
        """A reservation if there is room now and nobody waits: what the three verbs have in common."""
        self._keep_pace()
        if self._line.head is not None or not self._pace.ready():
            return None
        verdict = self.ledger.reserve_now(cost)
        if not isinstance(verdict, Charge):
            return None
        self._pace.take(verdict)
        return Reservation(self, verdict, cost, next(self._places) if place is None else place)

    async def admit_in_turn(self, cost: Cost, max_wait: float | None, place: int | None) -> Reservation:
        """Stand in line until the cost is admitted: the waiting half of ``acquire``."""
        self._refuse_closed()
        self._refuse_impossible(cost)
        self._refuse_long_wait(cost, max_wait, place)
        waiter = Waiter(next(self._places) if place is None else place, cost)
        self._join(waiter)
        try:
            async with asyncio.timeout(max_wait) if max_wait is not None else nullcontext():
                charge = await self._turn(waiter, max_wait)
        except TimeoutError as exc:
            raise self._too_late(waiter, max_wait or 0.0) from exc
        finally:
            self._leave(waiter)
        return Reservation(self, charge, cost, waiter.place)

    def _join(self, waiter: Waiter) -> None:
        if self._line.head is None:
            self.ledger.subscribe(self._on_room)
        self._line.join(waiter)

    def _leave(self, waiter: Waiter) -> None:
        if not waiter.admitted:
            self._forecast = None  # it had counted on this one
        self._line.leave(waiter)
        if len(self._line) == self._closed.is_set():
            self.ledger.unsubscribe(self._on_room)

    async def _turn(self, waiter: Waiter, max_wait: float | None) -> Charge:
        """Sleep until the waiter is the head, there is room, and the pace lets it go."""
        while True:
            waiter.look()
            self._refuse_closed()
            if waiter is not self._line.head:
                await waiter.sleep()
                continue
            self._refuse_impossible(waiter.cost)
            verdict = self.ledger.reserve_now(waiter.cost) or await self._ask(waiter.cost)
            if isinstance(verdict, Charge):
                break
            self._refuse_exhausted_day(verdict, max_wait)
            await self._sleep_until_room(waiter, verdict)
        self._denial = None
        waiter.admitted = True
        self._keep_pace()
        try:
            await self._pace.wait(verdict)
        except BaseException:  # cancelled or out of time: it holds what nobody will use
            self.ledger.cancel(verdict)
            raise
        return verdict

    async def _ask(self, cost: Cost) -> Charge | Denial:
        """Ask a ledger that takes its time, for as long as anybody is let in."""
        try:
            async with asyncio.timeout(None) as self._answering:
                return await self.ledger.reserve(cost)
        except TimeoutError:
            self._refuse_closed()
            raise
        finally:
            self._answering = None

    async def _sleep_until_room(self, waiter: Waiter, denial: Denial) -> None:
        loop = asyncio.get_running_loop()
        self._denial = denial
        self._denied_until = loop.time() + denial.wait
        timer = None if math.isinf(denial.wait) else loop.call_at(self._denied_until, waiter.wake)
        try:
            await waiter.sleep()
        finally:
            if timer is not None:
                timer.cancel()

    def _on_room(self, *, slot_only: bool) -> None:
        """Room came back sooner than the clock brings it; a slot alone is no help to a head that needs tokens."""
        self._pace.look()
        if not slot_only:
            self._forecast = None
        head = self._line.head
        if head is None or (slot_only and self._denial is not None and self._denial.reason in WINDOWED):
            return
        head.wake()

    # -- what happens to a reservation ------------------------------------------------------------------------

    def learn(self, charge: Charge, refusal: Refusal) -> None:
        """End a refused reservation, and draw the lessons: ``Reservation.refused`` comes here.

        Kimi's text for RPM states the limit and not what is used of it. A gateway that lets bursts pass says so by
        refusing: the minute is full, and this request was one too many.
        """
        pace = refusal.budget == "rpm" and self._pace.may_be_why(charge)
        if refusal.budget == "rpm":
            self._pace.refused()
            if refusal.limit and self._pace.passed:
                refusal = replace(refusal, current=refusal.limit + 1)
        learned = partial(self._learned, refusal, self.limits, pace=pace)
        self.ledger.refuse(charge, refusal, learned, pause=not pace)

    def _learned(self, refusal: Refusal, configured: RateLimits, lesson: Lesson, *, pace: bool) -> None:
        budget = refusal.budget
        if budget is None:
            return
        self._keep_pace()
        if pace and not (lesson.explained or lesson.echo):
            self._pace.slow()
        if lesson.adopted is not None:
            self._on_event(LimitAdopted(budget, getattr(configured, budget), lesson.adopted))
        if lesson.foreign:
            self._on_event(ForeignUsage(budget, lesson.foreign))
        self._on_event(Refused(budget, lesson.explained, lesson.pause))

    def _keep_pace(self) -> None:
        """Pace by the limit in force, which a refusal of ours may have lowered, or another process'."""
        if self._pace.rpm != self.limits.rpm:
            self._pace.follow(self.limits)

    # -- what is refused at once ------------------------------------------------------------------------------

    def _refuse_closed(self) -> None:
        if self._closed.is_set():
            raise LimiterClosed("the limiter was closed before this request was sent")

    def _refuse_impossible(self, cost: Cost) -> None:
        limits = self.ledger.limits
        tokens = cost.tokens
        if limits.tpm is not None and tokens > limits.tpm:
            raise _too_large(cost, "tpm", limits.tpm)
        if limits.tpd is not None and tokens > limits.tpd:
            raise _too_large(cost, "tpd", limits.tpd)

    def _refuse_long_wait(self, cost: Cost, max_wait: float | None, place: int | None) -> None:
        """Refuse what cannot be served in time; keep the forecast in step with the line that the cost joins."""
        if place is not None:
            self._forecast = None  # it will be wrong for all who stand behind that place
            if max_wait is not None:
                self._refuse_if_longer(self._forecast_line(place)(cost), cost, max_wait)
            return
        if self._line.head is None:
            self._forecast = None
        if max_wait is None and self._forecast is None:
            return
        now = asyncio.get_running_loop().time()
        if self._forecast is None:
            self._forecast, self._forecast_from = self._forecast_line(), now
        reason, wait = self._forecast(cost)
        if max_wait is not None:
            self._refuse_if_longer(Denial(reason, wait - (now - self._forecast_from)), cost, max_wait)

    def _refuse_if_longer(self, forecast: Denial, cost: Cost, max_wait: float) -> None:
        reason, wait = forecast
        if wait <= max_wait:
            return
        self._forecast = None  # it has counted on this one
        self._refuse_exhausted_day(forecast, max_wait)
        raise WaitTooLong(
            f"{cost.tokens:,} tokens would wait {wait:.1f} s for {reason}; max_wait is {max_wait:g} s",
            wait=wait,
            max_wait=max_wait,
            budget=reason,
        )

    def _forecast_line(self, place: float = math.inf) -> Callable[[Cost], Denial]:
        """How long costs would wait at that place, behind those who stand before it."""
        ahead = (waiter for waiter in self._line if waiter.place < place and not waiter.admitted)
        return self.ledger.forecast(waiter.cost for waiter in ahead)

    def _refuse_exhausted_day(self, denial: Denial, max_wait: float | None) -> None:
        patience = self.limits.minute * (1 + MAX_GUARD) if max_wait is None else max_wait
        if denial.reason == "tpd" and patience < denial.wait < math.inf:
            raise DailyBudgetExhausted(
                f"the day's {self.limits.tpd:,} tokens are spent; this request fits in {_clock(denial.wait)}",
                resets_in=denial.wait,
            )

    def _too_late(self, waiter: Waiter, max_wait: float) -> WaitTooLong:
        budget = "pace" if waiter.admitted else self._denial.reason if self._denial else "concurrency"
        return WaitTooLong(
            f"still in line for {budget} after {max_wait:g} s", wait=max_wait, max_wait=max_wait, budget=budget
        )


def _too_large(cost: Cost, budget: Literal["tpm", "tpd"], limit: int) -> RequestTooLarge:
    room = max(limit - cost.prompt_tokens, 0) // cost.n
    remedy = f"lower max_tokens to at most {room:,}" if room else "shorten the prompt"
    return RequestTooLarge(
        f"needs {cost.tokens:,} tokens ({cost.prompt_tokens:,} of prompt + {cost.n} x {cost.max_tokens:,}); "
        f"{budget.upper()} is {limit:,}: {remedy}",
        needed=cost.tokens,
        limit=limit,
        budget=budget,
    )


def _clock(seconds: float) -> str:
    hours, rest = divmod(math.ceil(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
