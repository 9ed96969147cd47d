"""What happens inside, as frozen values handed to one hook, always before the wait that they announce.

Pass ``on_event=`` to receive them; without it, ``log_event`` writes them to the logger ``kimi_async``.
Events never hold keys, prompts or answers.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .limits import Budget

logger = logging.getLogger("kimi_async")


@dataclass(frozen=True, slots=True)
class Retrying:
    """A failed attempt is tried again after ``delay`` seconds; ``attempt`` counts from 1.

    ``error`` is the name of the error's class, ``reason`` its text.
    """

    attempt: int
    delay: float
    error: str
    reason: str

    def __str__(self) -> str:
        return f"attempt {self.attempt} failed ({self.reason}); trying again in {self.delay:.2f} s"


@dataclass(frozen=True, slots=True)
class Refused:
    """The gateway refused a request for one of the budgets; it goes back to the front of the line.

    ``explained`` says whether our own ledger knew the budget to be full. ``pause`` is the time in seconds for
    which that budget is closed now; 0 where the ledger's arithmetic or a slower pace is enough, or where an earlier
    refusal of the same burst has said it all.
    """

    budget: Budget
    explained: bool
    pause: float

    def __str__(self) -> str:
        because = "as the ledger now knows" if self.explained else "which the ledger did not expect"
        return f"refused (429) for {self.budget}, {because}; pausing for {self.pause:.2f} s"


@dataclass(frozen=True, slots=True)
class LimitAdopted:
    """The gateway stated a lower limit than was configured; it holds from now on."""

    budget: Budget
    configured: int | None
    limit: int

    def __str__(self) -> str:
        return (
            f"the account's {self.budget} is {self.limit}, not {self.configured}: "
            f"using {self.limit}; set RateLimits({self.budget}={self.limit})"
        )


@dataclass(frozen=True, slots=True)
class ForeignUsage:
    """Another program uses the account: what it spent is now booked in ``budget``, requests of RPM or else tokens."""

    budget: Budget
    spent: int

    def __str__(self) -> str:
        unit = "requests" if self.budget == "rpm" else "tokens"
        return f"{self.spent:,} {unit} of {self.budget} were spent elsewhere on this account; booked"


@dataclass(frozen=True, slots=True)
class SameOrganization:
    """Accounts that are kept apart in the ledger are one to Kimi, and so are their limits."""

    organization: str
    accounts: tuple[str, ...]

    def __str__(self) -> str:
        names = " and ".join(map(repr, self.accounts))
        return f"{names} are one account to Kimi, {self.organization}: give them one name, open_ledger(account=...)"


@dataclass(frozen=True, slots=True)
class LedgerAway:
    """The shared ledger cannot be reached. ``then`` is what happens to requests meanwhile, see `open_ledger`."""

    reason: str
    then: Literal["wait", "fail", "share"]

    def __str__(self) -> str:
        meanwhile = {
            "wait": "requests wait",
            "fail": "requests fail",
            "share": "requests wait a minute, and then go on with a share of the limits",
        }
        return f"the ledger is away ({self.reason}); {meanwhile[self.then]} until it is back"


@dataclass(frozen=True, slots=True)
class LedgerBack:
    """It can be reached again, after so many seconds; ``admitted`` requests were let in meanwhile, on a share."""

    seconds: float
    admitted: int

    def __str__(self) -> str:
        return f"the ledger is back after {self.seconds:.1f} s, in which {self.admitted} requests were let in"


@dataclass(frozen=True, slots=True)
class VocabularyMissing:
    """Kimi's vocabulary could not be loaded; token counts are upper estimates until it can."""

    reason: str

    def __str__(self) -> str:
        return f"tokens are counted by their upper bound, a byte of UTF-8 each: no vocabulary ({self.reason})"


Event = (
    Retrying | Refused | LimitAdopted | ForeignUsage | SameOrganization | LedgerAway | LedgerBack | VocabularyMissing
)
EventHook = Callable[[Event], None]


def log_event(event: Event) -> None:
    """The default hook: routine waits at INFO, what the user should know at WARNING."""
    routine = isinstance(event, Retrying | Refused | LedgerBack)
    logger.log(logging.INFO if routine else logging.WARNING, "%s", event)
