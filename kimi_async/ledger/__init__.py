"""Where an account's reservations are recorded.

A ledger keeps one account's books and owns the clock: only durations leave it. ``reserve`` takes all budgets or
none, in one step. Everything that a limiter asks of it is on this screen.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import platformdirs

from kimi_async.budgets import Charge, Denial, Lesson
from kimi_async.errors import ConfigurationError
from kimi_async.limits import Cost, RateLimits, Usage
from kimi_async.refusal import Refusal

__all__ = ["Charge", "Denial", "Ledger", "Lesson", "OnRoom", "open_ledger"]


class OnRoom(Protocol):
    """What a ledger calls when room came back; ``slot_only`` if it was a slot and nothing else."""

    def __call__(self, *, slot_only: bool) -> None:
        """Room came back."""


class Ledger(Protocol):
    """The books of one account. All durations are in seconds."""

    @property
    def limits(self) -> RateLimits:
        """The limits in force: those configured, lowered by what refusals taught."""

    def configure(self, limits: RateLimits) -> None:
        """Set the account's limits; raises ConfigurationError where others are set already."""

    def subscribe(self, on_room: OnRoom) -> None:
        """Call ``on_room`` whenever there may be room sooner than the last denial said, until unsubscribed."""

    def unsubscribe(self, on_room: OnRoom) -> None:
        """Call it no longer."""

    def reserve_now(self, cost: Cost) -> Charge | Denial | None:
        """What ``reserve`` does, where it takes no waiting for others; else None."""

    async def reserve(self, cost: Cost) -> Charge | Denial:
        """Take all four budgets, or none and say what is missing and for how long."""
        ...

    def sent(self, charge: Charge) -> None:
        """The request has been written: from now on it counts in the window."""

    def end(self, charge: Charge, *, answered: bool) -> None:
        """Give the slot back; ``answered`` if the gateway let the request in."""

    def cancel(self, charge: Charge) -> None:
        """Give everything back; only before the request was sent."""

    def refuse(self, charge: Charge, refusal: Refusal, learned: Callable[[Lesson], None]) -> None:
        """End a refused reservation and learn from the refusal; ``learned`` is told what."""

    def pause(self, refusal: Refusal) -> float:
        """Close a budget for a while; returns for how long."""

    def forecast(self, costs: Iterable[Cost]) -> Callable[[Cost], Denial]:
        """A function that says how long each further cost, in line behind ``costs``, would wait."""

    def time_to_send(self, requests: int, tokens: int) -> float:
        """Seconds until so many requests, costing so many tokens together, can all have been sent; a lower bound."""

    def usage(self) -> Usage:
        """How much of each budget is taken."""

    async def aclose(self) -> None:
        """Let go of what it holds open; the books stay where they are."""


async def open_ledger(url: str, *, account: str = "default") -> Ledger:
    """Open the ledger that a URL names.

    Args:
        url: ``"memory:"``, the books of this process, forgotten when it ends; ``"sqlite:///path"``, a file that the
            processes of one machine share; ``"sqlite:"``, the user's own such file.
        account: whose books in it. Limits belong to an account, whatever keys it has.

    Raises:
        ConfigurationError: no such kind of ledger.
    """
    scheme, colon, rest = url.partition(":")
    if scheme == "memory" and colon and not rest:
        from .memory import MemoryLedger  # noqa: PLC0415 - it imports this module

        return MemoryLedger()
    if scheme == "sqlite" and colon and (not rest or rest.startswith("///")):
        from .shared import SharedLedger  # noqa: PLC0415 - likewise
        from .sqlite import SQLiteJournal  # noqa: PLC0415 - likewise

        path = Path(rest.removeprefix("//")) if rest else platformdirs.user_state_path("kimi_async") / "ledger.sqlite3"
        return SharedLedger(SQLiteJournal(path, account))
    raise ConfigurationError(
        f"no ledger is called {_without_password(url)!r}; there is memory:, sqlite:///path, sqlite:"
    )


def _without_password(url: str) -> str:
    before, at, host = url.rpartition("@")
    return f"{before.partition('://')[0]}://…@{host}" if at else url
