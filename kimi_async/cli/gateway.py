"""The gateway that a command talks to, and the client for it."""

import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated

import httpx
from cyclopts import Parameter

from kimi_async.client import AsyncKimi, base_url_of
from kimi_async.connections import ConnectionStack
from kimi_async.errors import LedgerUnavailable
from kimi_async.events import EventHook
from kimi_async.ledger import Ledger, WhenAway, account_of_key, open_ledger
from kimi_async.limits import RateLimits
from kimi_async.mock import MockSettings, spawn
from kimi_async.models import Currency
from kimi_async.pace import PaceMode


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GatewayOptions:
    """Where requests go, and where they are recorded."""

    base_url: str | None = None
    """Instead of MOONSHOT_BASE_URL or https://api.moonshot.cn/v1."""
    ledger: str | None = None
    """Where the account's requests are recorded: sqlite:///path, redis://host, or memory: for this run alone. Default:
    the user's own file, so that runs share the account and its day; memory: for a mock on this machine."""
    account: str | None = None
    """Name of the account in the ledger. Default: one for each API key."""
    when_away: WhenAway = "wait"
    """What to do while the ledger cannot be reached: wait for it, fail, or go on with a share of the limits."""
    pace: PaceMode = "smooth"
    """"even" spaces requests at minute / rpm, for a gateway that refuses bursts."""
    mock: Annotated[bool, Parameter(negative="")] = False
    """Ask a mock gateway with the same limits, started for this run. No key, no cost."""

    @asynccontextmanager
    async def client(
        self,
        limits: RateLimits,
        *,
        on_event: EventHook,
        mock: MockSettings = MockSettings(),  # noqa: B008 - frozen
    ) -> AsyncIterator[AsyncKimi]:
        """A client, ready; with ``--mock`` that of a mock gateway, whose settings take the same limits.

        Raises:
            ConfigurationError: what `AsyncKimi` and `open_ledger` raise.
        """
        with ExitStack() as stack:
            base_url = stack.enter_context(spawn(replace(mock, limits=limits))) if self.mock else self.base_url
            books = await self._books(base_url, on_event)
            try:
                kimi = AsyncKimi(
                    api_key="mock" if self.mock else None,
                    base_url=base_url,
                    limits=limits,
                    ledger=books,
                    pace=self.pace,
                    transport=ConnectionStack(proxy="") if self.mock else None,  # no proxy leads to this machine
                    on_event=on_event,
                )
                async with kimi:
                    yield kimi
            finally:
                await books.aclose()

    async def _books(self, base_url: str | None, on_event: EventHook) -> Ledger:
        url, account = self.ledger or default_ledger(base_url), self.account or account_of()
        try:
            return await open_ledger(url, account=account, when_away=self.when_away, on_event=on_event)
        except LedgerUnavailable as exc:
            raise LedgerUnavailable(f"{exc}; --ledger names another place, memory: is for this run alone") from exc


def default_ledger(base_url: str | None) -> str:
    """The user's own ledger; the memory of this process for a gateway on this machine, which is somebody's mock."""
    return "memory:" if httpx.URL(base_url_of(base_url)).host in {"127.0.0.1", "localhost", "::1"} else "sqlite:"


def account_of() -> str:
    """The name under which the account of this environment's key is kept."""
    key = os.environ.get("MOONSHOT_API_KEY") or os.environ.get("KIMI_API_KEY")
    return account_of_key(key) if key else "default"


def currency_of(base_url: str) -> Currency:
    """What the account behind a base URL is billed in."""
    return "CNY" if httpx.URL(base_url).host.endswith(".cn") else "USD"


SIGNS: dict[Currency, str] = {"CNY": "¥", "USD": "$"}
