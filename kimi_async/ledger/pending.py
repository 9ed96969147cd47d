"""What a process has yet to enter in its account's journal, and what it asks of it, in order."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from kimi_async.budgets import Charge, Denial, Lesson
from kimi_async.limits import Cost

from .journal import Line
from .replica import Operation

NEWS = 3.0
"""Seconds for which what a refusal says of others' usage is news: a few attempts at entering it."""


@dataclass(slots=True)
class Told:
    """An operation to be entered, and who is told then what a refusal taught.

    A journal may be away for long. A refusal that was ``at`` an earlier time says nothing of the window as it is now.
    """

    operation: Operation
    detail: dict[str, object] = field(default_factory=dict)
    charge: Charge | None = None
    learned: Callable[[Lesson], None] | None = None
    at: float = -math.inf

    def line(self, number: int | None, now: float) -> Line:
        """What is entered, of the charge that has this number."""
        charge = {} if number is None else {"charge": number}
        old = self._old(now) if self.operation == "refuse" and self._is_old(now) else {}
        return self.operation, self.detail | charge | old

    def _old(self, now: float) -> dict[str, object]:
        """What is left of a refusal: the limit, and the rest of what the gateway asked to wait."""
        asked = self.detail["retry_after"]
        left = max(asked - (now - self.at), 0.0) if isinstance(asked, int | float) else None
        return {"current": None, "pause": False, "retry_after": left}

    def lesson(self, lesson: Lesson | None, now: float) -> Lesson:
        """What to make of a refusal's lesson now; None is that of one who was taken for dead meanwhile."""
        taught = lesson or Lesson(explained=True)
        return replace(taught, explained=True) if self._is_old(now) else taught

    def _is_old(self, now: float) -> bool:
        return now - self.at > NEWS


@dataclass(slots=True)
class Asked:
    """A request that wants in."""

    cost: Cost
    answer: "asyncio.Future[Charge | Denial]"

    def charge(self) -> Charge | None:
        """What it was given, if anything; only when it is answered."""
        failed = self.answer.cancelled() or self.answer.exception() is not None
        return charge if not failed and isinstance(charge := self.answer.result(), Charge) else None


@dataclass(slots=True)
class Look:
    """There is something to be read, and maybe somebody who waits for it."""

    answer: "asyncio.Future[None] | None" = None


class Pending(deque[Told | Asked | Look]):
    """Them all, the oldest first."""

    def told(self) -> list[Told]:
        """What is to be entered before the next who asks is answered."""
        told = []
        for one in self:
            if not isinstance(one, Told):
                break
            told.append(one)
        return told

    def turn_away(self, exc: Exception, *, but_requests: bool = False) -> None:
        """Whoever asks gets an error, maybe with the exception of requests. What has happened, and news, stay."""
        kept: list[Told | Asked | Look] = []
        for one in self:
            if isinstance(one, Told) or one.answer is None or (but_requests and isinstance(one, Asked)):
                kept.append(one)
            elif not one.answer.done():
                one.answer.set_exception(exc)
        self.keep(kept)

    def only_looks(self) -> bool:
        """Whether nothing has happened and nobody wants in."""
        return all(isinstance(one, Look) for one in self)

    def asked(self) -> list[Asked]:
        """Requests that want in, which leave the queue."""
        asked = [one for one in self if isinstance(one, Asked) and not one.answer.done()]
        self.keep(one for one in self if not isinstance(one, Asked))
        return asked

    def keep(self, some: "Iterable[Told | Asked | Look]") -> None:
        """Forget all but these."""
        kept = list(some)
        self.clear()
        self.extend(kept)
