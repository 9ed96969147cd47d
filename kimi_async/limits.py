"""What an account may do and what one request takes of it: frozen values, no behaviour."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .errors import ConfigurationError

Budget = Literal["concurrency", "rpm", "tpm", "tpd"]
"""One of the four limits that Kimi's gateway enforces."""

WINDOWED: tuple[Budget, ...] = ("rpm", "tpm", "tpd")
"""Those that only the clock refills; a slot comes back when a request ends."""

BUDGETS: tuple[Budget, ...] = ("concurrency", *WINDOWED)


@dataclass(frozen=True, slots=True)
class Cost:
    """What the gateway charges for one request at the moment it is admitted.

    One slot, one request, and ``prompt_tokens + n * max_tokens`` tokens, however few are then generated
    (platform.kimi.ai/docs/introduction, "Rate limits").

    Args:
        prompt_tokens: tokens of the messages and tools, the chat template included.
        max_tokens: tokens the answer may have; the gateway reserves all of them.
        n: answers asked for; each may have ``max_tokens``.
    """

    prompt_tokens: int
    max_tokens: int = 0
    n: int = 1
    tokens: int = field(init=False, repr=False, compare=False)
    """Tokens charged against TPM and TPD."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 0 or self.max_tokens < 0 or self.n < 1:
            raise ConfigurationError(
                f"prompt_tokens={self.prompt_tokens}, max_tokens={self.max_tokens}, n={self.n}: "
                "a cost has no negative tokens and at least one answer"
            )
        object.__setattr__(self, "tokens", self.prompt_tokens + self.n * self.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """The limits of one account; ``None`` means unlimited.

    Kimi counts all keys, all models and all processes of an account together.

    Args:
        concurrency: requests in flight at once.
        rpm: requests a minute.
        tpm: tokens a minute, ``max_tokens`` included.
        tpd: tokens a day, ``max_tokens`` included.
        minute: length of the minute in seconds; only a mock on scaled time needs another.
        day: length of the day in seconds, likewise.
        day_zone: an IANA time zone such as ``"Asia/Shanghai"`` whose midnight resets the day. The default,
            ``None``, slides over the last ``day`` seconds, which is right whatever hour Kimi resets at.

    Raises:
        ConfigurationError: a limit below one, a length that is not positive, or an unknown time zone.
    """

    concurrency: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    tpd: int | None = None
    minute: float = 60.0
    day: float = 86_400.0
    day_zone: str | None = None

    def __post_init__(self) -> None:
        for budget in BUDGETS:
            limit = getattr(self, budget)
            if limit is not None and limit < 1:
                raise ConfigurationError(f"{budget}={limit}: a limit is at least 1, or None for unlimited")
        if not 0 < self.minute <= self.day:
            raise ConfigurationError(f"minute={self.minute}, day={self.day}: need 0 < minute <= day, in seconds")
        if self.day_zone is not None:
            self._check_zone(self.day_zone)

    def _check_zone(self, name: str) -> None:
        if self.day != 86_400.0:
            raise ConfigurationError(f"day_zone={name!r} needs a day of 86,400 s, not {self.day:g}")
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError) as exc:
            raise ConfigurationError(f"day_zone={name!r} is no time zone; try one like 'Asia/Shanghai'") from exc

    @classmethod
    def tier(cls, number: int) -> Self:
        """The limits of a recharge tier, 0 to 5, as Kimi published them in September 2026.

        Raises:
            ConfigurationError: there is no such tier.
        """
        if number not in _TIERS:
            raise ConfigurationError(f"there is no tier {number}; Kimi's tiers are 0 to 5")
        concurrency, rpm, tpm, tpd = _TIERS[number]
        return cls(concurrency=concurrency, rpm=rpm, tpm=tpm, tpd=tpd)

    @classmethod
    def guide(cls) -> Self:
        """The free account of 2024, which many guides still describe."""
        return cls(concurrency=1, rpm=3, tpm=32_000, tpd=1_500_000)

    def with_limit(self, budget: Budget, limit: int | None) -> Self:
        """The same limits with one of them changed."""
        return replace(self, **{budget: limit})  # type: ignore[arg-type]

    def __str__(self) -> str:
        return ", ".join(f"{budget}={getattr(self, budget)}" for budget in BUDGETS)


# platform.kimi.com/docs/pricing/limits, read 2026-09-23: concurrency, RPM, TPM, TPD.
_TIERS: dict[int, tuple[int, int, int, int | None]] = {
    0: (1, 3, 500_000, 1_500_000),
    1: (15, 100, 2_000_000, None),
    2: (40, 100, 3_000_000, None),
    3: (50, 200, 3_000_000, None),
    4: (60, 200, 4_000_000, None),
    5: (100, 300, 5_000_000, None),
}


@dataclass(frozen=True, slots=True)
class BudgetUsage:
    """How much of one budget is taken: ``used`` of ``limit``; ``limit`` is None where there is none."""

    used: int
    limit: int | None

    @property
    def share(self) -> float:
        """Part of the budget in use, 0 to 1; 0 for one that is unlimited."""
        return self.used / self.limit if self.limit else 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """The state of an account's budgets at one moment.

    Attributes:
        concurrency: slots in use.
        rpm: requests of the last minute, those about to be sent included.
        tpm: tokens charged in the last minute, likewise.
        tpd: tokens charged in the day's window, likewise.
        guard: seconds by which a minute is held to be longer than it is.
        requests_sent: all requests since the ledger was opened.
        tokens_charged: tokens of all that were not refused, ``max_tokens`` included.
        peak_slots: most slots in use at once since then.
        waiting: requests in line.
        binding: the budget that the head of the line waits for; None where nobody waits.
        next_in: seconds until the head is admitted; None where nobody waits or another request must end first.
    """

    concurrency: BudgetUsage
    rpm: BudgetUsage
    tpm: BudgetUsage
    tpd: BudgetUsage
    guard: float
    requests_sent: int = 0
    tokens_charged: int = 0
    peak_slots: int = 0
    waiting: int = 0
    binding: str | None = None
    next_in: float | None = None

    def __str__(self) -> str:
        parts = [
            f"{budget} {_short(taken.used)}/{_short(taken.limit)}"
            for budget in BUDGETS
            if (taken := getattr(self, budget)).limit is not None
        ]
        if self.waiting:
            parts.append(f"{self.waiting:,} waiting for {self.binding or 'their turn'}")
        if self.next_in is not None:
            parts.append(f"next in {self.next_in:.2f} s")
        return ", ".join(parts) or "unlimited"


def _short(number: int) -> str:
    return f"{number / 1000:.0f}k" if number >= 10_000 else str(number)
