"""The books of one process."""

import asyncio
import time
from collections.abc import Callable, Iterable

from kimi_async.budgets import Budgets, Charge, Denial, Lesson
from kimi_async.errors import ConfigurationError
from kimi_async.forecast import Forecast, time_to_send
from kimi_async.limits import Cost, RateLimits, Usage
from kimi_async.refusal import Refusal

from . import OnRoom


class MemoryLedger:
    """A ledger in memory, on the time of the event loop that first uses it.

    Several limiters may share one: they then share the account.
    """

    def __init__(self) -> None:
        self._books = Budgets(RateLimits())
        self._configured: RateLimits | None = None
        self._time: Callable[[], float] = self._first_time
        self._subscribers: list[OnRoom] = []

    def _first_time(self) -> float:
        try:
            self._time = asyncio.get_running_loop().time
        except RuntimeError:
            return time.monotonic()  # no loop, so nothing has been booked yet, and any clock shows that
        return self._time()

    @property
    def limits(self) -> RateLimits:
        """The limits in force."""
        return self._books.limits

    def configure(self, limits: RateLimits) -> None:
        """Set the account's limits; raises ConfigurationError where others are set already."""
        if self._configured is None:
            self._books = Budgets(limits, epoch=time.time() - time.monotonic())
            self._configured = limits
        elif limits != self._configured:
            raise ConfigurationError(f"this ledger's account has {self._configured}; it cannot also have {limits}")

    def subscribe(self, on_room: OnRoom) -> None:
        """Call ``on_room`` whenever there may be room sooner than the last denial said, until unsubscribed."""
        self._subscribers.append(on_room)

    def unsubscribe(self, on_room: OnRoom) -> None:
        """Call it no longer."""
        self._subscribers.remove(on_room)

    def _notify(self, *, slot_only: bool) -> None:
        for on_room in tuple(self._subscribers):
            on_room(slot_only=slot_only)

    def reserve_now(self, cost: Cost) -> Charge | Denial:
        """Take all four budgets, or none and say what is missing and for how long."""
        return self._books.reserve(self._time(), cost)

    async def reserve(self, cost: Cost) -> Charge | Denial:
        """The same."""
        return self.reserve_now(cost)

    def sent(self, charge: Charge) -> None:
        """The request has been written: from now on it counts in the window."""
        self._books.sent(self._time(), charge)
        if charge is self._books.probe:
            self._notify(slot_only=True)  # from now on a clock tells when the probe has passed

    def end(self, charge: Charge, *, answered: bool) -> None:
        """Give the slot back; ``answered`` if the gateway let the request in."""
        if charge.state == "pending":
            self.sent(charge)
        self._books.end(charge, answered=answered)
        if self._subscribers:
            self._notify(slot_only=True)

    def cancel(self, charge: Charge) -> None:
        """Give everything back; only before the request was sent."""
        self._books.cancel(charge)
        self._notify(slot_only=False)

    def refuse(self, charge: Charge, refusal: Refusal, learned: Callable[[Lesson], None], *, pause: bool) -> None:
        """End a refused reservation and learn from the refusal; ``learned`` is told what."""
        lesson = self._books.refuse(self._time(), charge, refusal, pause=pause)
        self._notify(slot_only=False)
        learned(lesson)

    def forecast(self, costs: Iterable[Cost]) -> Callable[[Cost], Denial]:
        """A function that says how long each further cost, in line behind ``costs``, would wait."""
        forecast = Forecast(self._books, self._time())
        for cost in costs:
            forecast.admit(cost)
        return forecast.admit

    def time_to_send(self, requests: int, tokens: int) -> float:
        """Seconds until so many requests, costing so many tokens together, can all have been sent; a lower bound."""
        return time_to_send(self._books, self._time(), requests, tokens)

    def usage(self) -> Usage:
        """How much of each budget is taken."""
        return self._books.usage(self._time())

    async def aclose(self) -> None:
        """Nothing is open."""
