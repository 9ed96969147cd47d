"""When there will be room: the rule of admission, played ahead on a copy of the books. Time is an argument."""

import math
from collections.abc import Callable
from typing import Literal

from .budgets import Budgets, Denial
from .limits import Budget, BudgetUsage, Cost


class Forecast:
    """Admission times of costs that come one after the other, as if slots were free.

    It replays the rule itself. What waits for a slot waits longer, so it is a lower bound, exact wherever RPM, TPM or
    TPD bind.
    """

    def __init__(self, books: Budgets, now: float) -> None:
        self._books = books.replica(now)
        self._now = now
        self._at = max(now, books.paused_until)

    def admit(self, cost: Cost) -> Denial:
        """How long the next cost waits, in seconds from the forecast's beginning, and what for in the end.

        For ever, if limits have been lowered below it; it holds nobody up, since its turn will be its end.
        """
        limits = self._books.limits
        if limits.tpm is not None and cost.tokens > limits.tpm:
            return Denial("tpm", math.inf)
        if limits.tpd is not None and cost.tokens > limits.tpd:
            return Denial("tpd", math.inf)
        reason: Budget | Literal["probe", "turn", "ledger"] = "concurrency"
        while isinstance(verdict := self._books.reserve(self._at, cost), Denial):
            reason = verdict.reason
            self._at += verdict.wait
        self._books.sent(self._at, verdict)
        return Denial(reason, self._at - self._now)


def time_to_send(books: Budgets, now: float, requests: int, tokens: int) -> float:
    """Seconds until so many requests, costing so many tokens together, can all have been sent.

    As if they were a fluid and slots were free: a lower bound. What a window lets out comes back one span later, so
    whole windows are counted, and the log says when there is room for the rest.
    """
    usage, span = books.usage(now), books.minute.span
    return max(
        books.paused_until - now,
        _drain(requests, usage.rpm, span, lambda rest: books.minute.wait(now, rest, 0)),
        _drain(tokens, usage.tpm, span, lambda rest: books.minute.wait(now, 0, rest)),
        _drain(tokens, usage.tpd, books.limits.day, lambda rest: books.day.wait(now, 0, rest)),
    )


def _drain(amount: int, taken: BudgetUsage, span: float, wait: Callable[[int], float]) -> float:
    """Seconds until an amount fits a window of which some is taken; ``wait`` says when so much of that has left."""
    if taken.limit is None or amount <= (room := taken.limit - taken.used):
        return 0.0
    overdrawn = max(-room, 0)  # more is taken than a limit adopted since allows
    windows, rest = divmod(amount - max(room, 0) - 1, taken.limit)
    return windows * span + wait(rest + 1 + overdrawn)
