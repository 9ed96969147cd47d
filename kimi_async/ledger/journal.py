"""What a shared ledger needs of a database: an ordered journal, and a way to wake another process."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from kimi_async.budgets import Room

from .replica import Entry, Operation
from .snapshot import State

TIGHTENING: frozenset[Operation] = frozenset({"join", "recall", "limits", "reserve", "refuse"})
"""Operations that may leave less room than before, and those that whoever sets the limits must know of. All others
leave as much or more: a request that fitted before one of them fits after it."""

LOOSENING: frozenset[Operation] = frozenset({"end", "cancel", "refuse", "leave", "pass", "dead", "part", "limits"})
"""Operations after which somebody who waits may look again; so he may after another's ``reserve``: the line moves."""

Line = tuple[Operation, dict[str, object]]
"""An operation to be entered, and its detail."""


def tightened(entries: list[Entry], room: Room) -> bool:
    """Whether entries may leave less room than a decision needs that leaves ``room`` beside it."""
    reserved = [int(str(entry.detail["tokens"])) for entry in entries if entry.operation == "reserve"]
    others = any(entry.operation in TIGHTENING and entry.operation != "reserve" for entry in entries)
    return others or len(reserved) > room.requests or sum(reserved) > room.tokens


class Read(NamedTuple):
    """What ``append`` found and did.

    Attributes:
        snapshot: the state to begin with, where the entries asked for have been pruned.
        entries: all after it, or after the last one known, in order; those appended are the last of them.
        appended: whether there are any.
        lost: the database has lost the last entry known. What it still has comes from the beginning, nothing was
            appended, and whoever reads this enters what he knows more.
    """

    snapshot: State | None
    entries: list[Entry]
    appended: bool
    lost: bool = False


class Journal(Protocol):
    """The journal of one account.

    Errors are `LedgerUnavailable`: nothing was appended, or nobody knows; or `ConfigurationError`: what is there is
    no journal, or does not accept us.
    """

    def now(self) -> float:
        """The journal's clock in seconds, or a little less: what is stamped from now on is not earlier."""

    async def append(
        self, last: int, process: str, lines: list[Line], room: Room | None = None, *, wake: str | None = None
    ) -> Read:
        """Enter lines, all or none, and read what others entered since.

        Args:
            last: the last entry known.
            process: whose lines they are.
            lines: may be none, to only read.
            room: append nothing if entries after ``last`` may leave less room than there was when it was decided to
                append; reservations that fit into ``room`` together do no harm. None appends in any case.
            wake: whom the lines will be news to, see `wake`; he may also be woken if nothing was appended.
        """
        ...

    async def prune(self, state: State) -> None:
        """Keep the state as it was after its last entry, and forget entries that nobody is likely to need."""

    async def claim(self, organization: str) -> list[str]:
        """Keep that the account is this organization's, in Kimi's words; all accounts here that are, in order."""
        ...

    async def listen(self, on_wake: Callable[[], None]) -> str:
        """Call ``on_wake`` when another process wakes this one; the address under which it does."""
        ...

    def wake(self, address: str) -> None:
        """Wake the process that listens there. It may be lost."""

    async def aclose(self) -> None:
        """Let go of everything."""
