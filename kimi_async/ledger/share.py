"""What a process lets in by itself while its account's ledger is away: an equal share of the limits.

**Who shares.** The ``n`` processes that took part when it went. Each must have entered something within `OUTAGE`
before it noticed, and have joined longer ago than that: where processes share in this way, each shows life every third
of a lease whatever happens, so by then all others know of it, and it of all others. Who is not sure waits.

**Why they stay within the limits.** For the first minute, guard included, nobody lets anything in. What was let in
before the ledger went has left the window then, and each of ``n`` processes keeps to an ``n``-th of each limit,
rounded down, by the same rule. Of the day each takes an ``n``-th of what was left.

**Where they do not.** A process that is cut off from a ledger which others still reach takes its share beside them,
and an answer that takes longer than a minute keeps a slot that others may count as free. So it is a choice.

Pure arithmetic: times are arguments, in seconds of the journal's clock.
"""

import math

from kimi_async.budgets import Budgets, Charge, Denial, Lesson
from kimi_async.limits import BUDGETS, Cost, RateLimits
from kimi_async.refusal import Refusal

from .replica import OUTAGE, Replica


class Share:
    """One process' share of an account; it knows nothing and lets nothing in until it is opened.

    Attributes:
        is_open: whether it is asked instead of the ledger.
        admitted: what it let in, the first first.
    """

    def __init__(self) -> None:
        self.is_open = False
        self.admitted: list[Charge] = []
        self._begins = math.inf
        self._books = Budgets(RateLimits())
        self._twins: dict[Charge, Charge] = {}

    def open(self, replica: Replica, process: str, now: float) -> None:
        """Begin to be asked.

        Args:
            replica: the account as it was read last.
            process: whose share.
            now: when the ledger was found to be away.
        """
        known = replica.books_at(now)
        limits = _part(known, now, len(replica.processes)) if _is_known(replica, process, now) else None
        self.is_open = True
        self._begins = math.inf if limits is None else now + known.limits.minute + known.guard
        self._books = Budgets(limits or known.limits)

    def adopt(self, now: float, charge: Charge) -> None:
        """A reservation from before goes on in this share: its slot is ours."""
        if charge.state != "ended":
            twin = self._twins[charge] = self._books.take(charge.tokens)
            if charge.state == "sent":
                self._books.sent(now, twin)

    def reserve(self, now: float, cost: Cost) -> Charge | Denial | None:
        """Take all four budgets of the share, or none; None where it is not open."""
        if not self.is_open:
            return None
        if now < self._begins:
            return Denial("ledger", self._begins - now)
        verdict = self._books.reserve(now, cost)
        if isinstance(verdict, Denial):
            return verdict
        charge = Charge(cost.tokens, 0)
        self._twins[charge] = verdict
        self.admitted.append(charge)
        return charge

    def sent(self, now: float, charge: Charge) -> bool:
        """The request has been written; whether it was one of this share."""
        twin = self._twins.get(charge)
        if twin is not None:
            self._books.sent(now, twin)
        return twin is not None

    def end(self, now: float, charge: Charge, *, answered: bool) -> bool:
        """Its slot is free; whether it was one of this share."""
        twin = self._twins.pop(charge, None)
        if twin is None:
            return False
        if twin.state == "pending":
            self._books.sent(now, twin)
        self._books.end(twin, answered=answered)
        return True

    def cancel(self, charge: Charge) -> bool:
        """It was never sent; whether it was one of this share."""
        twin = self._twins.pop(charge, None)
        if twin is not None:
            self._books.cancel(twin)
        return twin is not None

    def refuse(self, now: float, charge: Charge, refusal: Refusal, *, pause: bool) -> Lesson | None:
        """The gateway refused it; None if it was none of this share."""
        twin = self._twins.pop(charge, None)
        return None if twin is None else self._books.refuse(now, twin, refusal, pause=pause)


def _is_known(replica: Replica, name: str, now: float) -> bool:
    """Whether all who share the account know that this process does, and it knows of all of them."""
    process = replica.processes.get(name)
    return process is not None and now - process.seen <= OUTAGE < now - process.joined


def _part(known: Budgets, now: float, parts: int) -> RateLimits | None:
    """One of so many equal parts of the limits; None where there is nothing to go on with."""
    left = {budget: getattr(known.limits, budget) for budget in BUDGETS}
    if left["tpd"] is not None:
        left["tpd"] -= known.usage(now).tpd.used
    shares = {budget: limit if limit is None else limit // parts for budget, limit in left.items()}
    if "tpd" in known.paused(now) or any(share is not None and share < 1 for share in shares.values()):
        return None
    return RateLimits(**shares, minute=known.limits.minute, day=known.limits.day)
