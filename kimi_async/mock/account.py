"""The account that the gateway protects: one atomic decision over its four limits, and what it has seen."""

from collections import Counter
from dataclasses import dataclass
from math import ceil

from kimi_async.limits import Budget

from .policies import Policy, SlidingLog, Window, fits, open_window
from .settings import MockSettings

ADVISED_WAIT = 1
"""Seconds in Kimi's RPM and concurrency refusals, whatever the real wait is."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not admitted.

    Attributes:
        budget: the limit that had no room; the first of them in the order concurrency, RPM, TPM, TPD.
        limit: its value.
        current: what the account would have used with this request in it.
        retry_after: whole seconds for the ``Retry-After`` header: 1 for concurrency and RPM and a minute for TPM, as
            Kimi's are; for TPD until the request's tokens fit, or if they never do, until the day's tokens are free.
    """

    budget: Budget
    limit: int
    current: int
    retry_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountStats:
    """What the account has seen since it was opened.

    Attributes:
        admitted: requests.
        refused: requests by the limit that refused them.
        charged_tokens: prompt tokens and ``n * max_tokens`` of all admitted requests.
        in_flight: requests that hold a slot now.
        peak_in_flight: the most that ever did.
        max_window_requests: the most requests admitted in any exact sliding minute, whatever the policy.
        max_window_tokens: the same of tokens.
        max_day_tokens: the most tokens admitted in any exact sliding day; None where TPD is unlimited.
    """

    admitted: int
    refused: dict[str, int]
    charged_tokens: int
    in_flight: int
    peak_in_flight: int
    max_window_requests: int
    max_window_tokens: int
    max_day_tokens: int | None


class _Peak:
    """The largest sum seen in any exact sliding window: the proof that a limit was never exceeded."""

    def __init__(self, window: float) -> None:
        self._log = SlidingLog(window=window)
        self.value = 0

    def charge(self, now: float, amount: int) -> None:
        self._log.charge(now, amount)
        self.value = max(self.value, int(self._log.used(now)))


def _windows(settings: MockSettings) -> list[tuple[Budget, int, Window]]:
    limits, policy = settings.limits, settings.policy
    counted: tuple[tuple[Budget, int | None, Policy, float], ...] = (
        ("rpm", limits.rpm, policy, limits.minute),
        ("tpm", limits.tpm, "bucket" if policy == "gcra" else policy, limits.minute),
        ("tpd", limits.tpd, "sliding" if policy == "sliding" else "fixed", limits.day),
    )
    return [
        (budget, limit, open_window(how, limit, window=window, phase=settings.phase, burst=settings.burst))
        for budget, limit, how, window in counted
        if limit is not None
    ]


class Account:
    """Admits or refuses; knows neither clock nor network.

    A refused request charges nothing, or one request of RPM with ``charge_refused``. An admitted one charges
    its slot, one request and all its tokens at once, and only the slot ever comes back.
    """

    def __init__(self, settings: MockSettings) -> None:
        limits = settings.limits
        self._concurrency = limits.concurrency
        self._charge_refused = settings.charge_refused
        self._minute_seconds = ceil(limits.minute)
        self._windows = _windows(settings)
        self._admitted = 0
        self._refused: Counter[str] = Counter(concurrency=0, rpm=0, tpm=0, tpd=0)
        self._charged_tokens = 0
        self._in_flight = 0
        self._peak_in_flight = 0
        self._minute_requests = _Peak(limits.minute)
        self._minute_tokens = _Peak(limits.minute)
        self._day_tokens = _Peak(limits.day) if limits.tpd is not None else None

    def admit(self, now: float, tokens: int) -> Refusal | None:
        """Charge a request that arrives at ``now``, or say why not; there is nothing in between.

        Args:
            now: seconds; never falls from call to call.
            tokens: prompt tokens and ``n * max_tokens``.

        Returns:
            None if the request was admitted, and ``release`` is owed.
        """
        refusal = self._refusal(now, tokens)
        if refusal is not None:
            self._refused[refusal.budget] += 1
            if self._charge_refused:
                self._charge(now, 1, ("rpm",))
            return refusal
        self._charge(now, 1, ("rpm",))
        self._charge(now, tokens, ("tpm", "tpd"))
        self._admitted += 1
        self._charged_tokens += tokens
        self._in_flight += 1
        self._peak_in_flight = max(self._peak_in_flight, self._in_flight)
        self._minute_requests.charge(now, 1)
        self._minute_tokens.charge(now, tokens)
        if self._day_tokens is not None:
            self._day_tokens.charge(now, tokens)
        return None

    def release(self) -> None:
        """Give back the slot of one admitted request."""
        assert self._in_flight > 0, "more slots given back than taken"
        self._in_flight -= 1

    def stats(self) -> AccountStats:
        """A snapshot."""
        return AccountStats(
            admitted=self._admitted,
            refused=dict(self._refused),
            charged_tokens=self._charged_tokens,
            in_flight=self._in_flight,
            peak_in_flight=self._peak_in_flight,
            max_window_requests=self._minute_requests.value,
            max_window_tokens=self._minute_tokens.value,
            max_day_tokens=self._day_tokens.value if self._day_tokens is not None else None,
        )

    def _refusal(self, now: float, tokens: int) -> Refusal | None:
        if self._concurrency is not None and self._in_flight >= self._concurrency:
            return Refusal("concurrency", self._concurrency, self._in_flight + 1, ADVISED_WAIT)
        for budget, limit, window in self._windows:
            amount = 1 if budget == "rpm" else tokens
            if not fits(window, now, amount):
                current = ceil(window.used(now)) + amount
                return Refusal(budget, limit, current, self._retry_after(budget, window.fits_in(now, amount)))
        return None

    def _retry_after(self, budget: Budget, wait: float) -> int:
        if budget == "rpm":
            return ADVISED_WAIT
        if budget == "tpm":
            return self._minute_seconds
        return max(1, ceil(wait))

    def _charge(self, now: float, amount: int, budgets: tuple[Budget, ...]) -> None:
        for budget, _, window in self._windows:
            if budget in budgets:
                window.charge(now, amount)
