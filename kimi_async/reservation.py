"""A cost held against the budgets, and the way to one."""

from collections.abc import Generator
from types import TracebackType
from typing import Literal, Protocol

from .ledger import Charge, Ledger
from .limits import Cost
from .refusal import Refusal


class Admission(Protocol):
    """The side of a limiter that its reservations see."""

    ledger: Ledger

    def admit_now(self, cost: Cost, place: int | None = None) -> "Reservation | None":
        """A reservation if there is room now and nobody waits."""

    async def admit_in_turn(self, cost: Cost, max_wait: float | None, place: int | None) -> "Reservation":
        """Stand in line until the cost is admitted."""
        ...

    def learn(self, charge: Charge, refusal: Refusal) -> None:
        """End a refused reservation, and draw the lessons."""


class Reservation:
    """A cost held against the budgets, from admission to exactly one ending.

    Call ``sent`` when the request has been written to its connection; the budgets count it from that moment.
    Then one of ``end``, ``refused``, or, only before it was sent, ``cancel``, which gives everything back.

    Attributes:
        cost: what is held.
        place: the place in line that it came from; hand it to ``acquire`` to stand there again.
    """

    __slots__ = ("_charge", "_limiter", "cost", "place")

    def __init__(self, limiter: Admission, charge: Charge, cost: Cost, place: int) -> None:
        self._limiter = limiter
        self._charge = charge
        self.cost = cost
        self.place = place

    @property
    def state(self) -> Literal["pending", "sent", "ended"]:
        """``"pending"`` until the request was sent, then ``"sent"``, and ``"ended"`` after its one ending."""
        return self._charge.state

    def sent(self) -> None:
        """The request has left. Raises RuntimeError when called again, or after the ending."""
        self._limiter.ledger.sent(self._charge)

    def cancel(self) -> None:
        """Give everything back: the request was never sent. Raises RuntimeError if it was, or has ended."""
        self._limiter.ledger.cancel(self._charge)

    def end(self, *, answered: bool = True) -> None:
        """Give the slot back; the tokens stay charged, as they do at the gateway.

        One never marked sent counts as sent now, the cautious ending. ``answered`` says whether the gateway let
        the request in, as far as is known. Raises RuntimeError if the reservation has ended already.
        """
        self._limiter.ledger.end(self._charge, answered=answered)

    def refused(self, refusal: Refusal) -> None:
        """End it as refused by the gateway, and let the ledger learn why."""
        self._limiter.learn(self._charge, refusal)

    def __repr__(self) -> str:
        return f"<Reservation of {self.cost.tokens:,} tokens, {self.state}>"


class Acquisition:
    """What ``acquire`` returns: ``async with`` it for a block, or ``await`` it for the bare reservation."""

    __slots__ = ("_cost", "_limiter", "_max_wait", "_place", "_reservation")

    def __init__(self, limiter: Admission, cost: Cost, max_wait: float | None, place: int | None) -> None:
        self._limiter = limiter
        self._cost = cost
        self._max_wait = max_wait
        self._place = place

    def __await__(self) -> Generator[object, None, Reservation]:
        # A limiter with room answers here and now; only a line takes a coroutine.
        reservation = self._limiter.admit_now(self._cost, self._place)
        if reservation is None:
            reservation = yield from self._limiter.admit_in_turn(self._cost, self._max_wait, self._place).__await__()
        return reservation

    async def __aenter__(self) -> Reservation:
        self._reservation = reservation = await self
        return reservation

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reservation.state != "ended":
            self._reservation.end(answered=kind is None)
