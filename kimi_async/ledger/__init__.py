"""Where an account's reservations are recorded.

A ledger keeps one account's books and owns the clock: only durations leave it. ``reserve`` takes all budgets or
none, in one step. Everything that a limiter asks of it is on this screen.
"""

from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import platformdirs

from kimi_async.budgets import Charge, Denial, Lesson
from kimi_async.errors import ConfigurationError
from kimi_async.events import EventHook, log_event
from kimi_async.limits import Cost, RateLimits, Usage
from kimi_async.refusal import Refusal

if TYPE_CHECKING:
    from .journal import Journal
    from .shared import SharedLedger

__all__ = ["Charge", "Denial", "Ledger", "Lesson", "OnRoom", "WhenAway", "account_of_key", "open_ledger"]

WhenAway = Literal["wait", "fail", "share"]
"""What happens to requests while a shared ledger cannot be reached; see `open_ledger`."""


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

    def refuse(self, charge: Charge, refusal: Refusal, learned: Callable[[Lesson], None], *, pause: bool) -> None:
        """End a refused reservation and learn from the refusal; ``learned`` is told what.

        One that the books do not explain closes its budget for a while if it is to ``pause``.
        """

    def forecast(self, costs: Iterable[Cost]) -> Callable[[Cost], Denial]:
        """A function that says how long each further cost, in line behind ``costs``, would wait."""

    def time_to_send(self, requests: int, tokens: int) -> float:
        """Seconds until so many requests, costing so many tokens together, can all have been sent; a lower bound."""

    def usage(self) -> Usage:
        """How much of each budget is taken."""

    async def aclose(self) -> None:
        """Let go of what it holds open; the books stay where they are."""


async def open_ledger(
    url: str, *, account: str = "default", when_away: WhenAway = "wait", on_event: EventHook = log_event
) -> Ledger:
    """Open the ledger that a URL names.

    Args:
        url: ``"memory:"``, the books of this process, forgotten when it ends; ``"sqlite:///path"``, a file that the
            processes of one machine share; ``"sqlite:"``, the user's own such file; ``"redis://host:port/db"``,
            ``"rediss://…"`` with TLS or ``"unix:///path"``, a Valkey or Redis that many machines share (the package's
            extra ``redis``).
        account: whose books in it. Limits belong to an account, whatever keys it has.
        when_away: what happens to requests while a shared ledger cannot be reached. They ``"wait"``, or they
            ``"fail"`` with LedgerUnavailable; none is let in unseen. Or the processes ``"share"``: after a minute in
            which they wait, each goes on with an equal part of the limits, and enters it when the ledger is back;
            `kimi_async.ledger.share` says what that cannot promise.
        on_event: is told when a shared ledger goes and comes back; by default that is logged.

    Raises:
        ConfigurationError: no such kind of ledger, its extra is not installed, or what is there is no ledger.
        LedgerUnavailable: it cannot be reached now.
    """
    scheme, colon, rest = url.partition(":")
    if scheme == "memory" and colon and not rest:
        from .memory import MemoryLedger  # noqa: PLC0415 - it imports this module

        return MemoryLedger()
    from .shared import SharedLedger  # noqa: PLC0415 - likewise

    if scheme == "sqlite" and colon and (not rest or rest.startswith("///")):
        from .sqlite import SQLiteJournal  # noqa: PLC0415 - likewise

        path = Path(rest.removeprefix("//")) if rest else platformdirs.user_state_path("kimi_async") / "ledger.sqlite3"
        return await _opened(SharedLedger(SQLiteJournal(path, account), when_away=when_away, on_event=on_event))
    if scheme in {"redis", "rediss", "unix"} and rest.startswith("//"):
        journal = _redis_journal(url, account)
        return await _opened(SharedLedger(journal, when_away=when_away, on_event=on_event))
    shown = url if "//" not in url else f"{scheme}://…"  # which may have a password
    raise ConfigurationError(f"no ledger is called {shown!r}; there is memory:, sqlite:///path, sqlite:, redis://host")


def account_of_key(api_key: str) -> str:
    """A name for the account of a key that nobody has named: a digest, from which the key cannot be told."""
    content = api_key.strip().encode(errors="backslashreplace")  # bytes that are no UTF-8 are the client's to refuse
    return f"key-{blake2b(content, digest_size=8, person=b'kimi_async').hexdigest()}"


async def _opened(ledger: "SharedLedger") -> Ledger:
    """One that was never reached is a mistake, and nobody wants to wait for its end."""
    try:
        await ledger.refresh()
    except BaseException:
        await ledger.aclose()
        raise
    return ledger


def _redis_journal(url: str, account: str) -> "Journal":
    try:
        from .redis import RedisJournal  # noqa: PLC0415 - its library is an extra
    except ModuleNotFoundError as exc:
        raise ConfigurationError("a ledger in Valkey or Redis needs: pip install 'kimi_async[redis]'") from exc
    return RedisJournal(url, account)
