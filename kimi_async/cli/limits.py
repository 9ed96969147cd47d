"""``kimi-async limits``."""

import asyncio
import sys
from collections.abc import Collection
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from pydantic_core import to_json
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from kimi_async.errors import ConfigurationError
from kimi_async.ledger import open_ledger
from kimi_async.ledger.shared import SharedLedger
from kimi_async.ledger.view import AccountView
from kimi_async.limits import BUDGETS, BudgetUsage

from .gateway import account_of
from .options import ANSWERED
from .terminal import Output

REFRESH = 1.0
"""Seconds between two looks."""


def limits(
    *,
    ledger: str = "sqlite:",
    account: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    watch: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Show an account's budgets: what is taken, by which processes, and what refusals have taught.

    Args:
        ledger: Where the account's requests are recorded; default: the user's own file.
        account: Its name there; default: that of the API key.
        json: As one line of JSON, for other programs.
        watch: Look again every second until Ctrl-C.
    """
    return asyncio.run(_show(ledger, account or account_of(), as_json=json, watch=watch))


async def _show(url: str, account: str, *, as_json: bool, watch: bool) -> int:
    ledger = await open_ledger(url, account=account)
    if not isinstance(ledger, SharedLedger):
        raise ConfigurationError(f"{url} is the memory of another process; only a ledger that is shared can be shown")
    try:
        await ledger.refresh()
        names = await ledger.namesakes()
        if as_json:
            sys.stdout.buffer.write(to_json(asdict(ledger.view()) | {"accounts": names}) + b"\n")
        elif watch:
            await _watch(ledger)
        else:
            Output().print(_table(ledger.view(), names))
    finally:
        await ledger.aclose()
    return ANSWERED


async def _watch(ledger: SharedLedger) -> None:
    with Live(_table(ledger.view()), console=Output(), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(REFRESH)
            await ledger.refresh()
            live.update(_table(ledger.view()), refresh=True)


def _table(account: AccountView, names: Collection[str] = ()) -> RenderableType:
    budgets = Table.grid(padding=(0, 2))
    for budget in BUDGETS:
        taken: BudgetUsage = getattr(account.usage, budget)
        left = "" if taken.limit is None else f"{max(taken.limit - taken.used, 0):,} left"
        pause = f"closed for {account.pauses[budget]:.0f} s" if budget in account.pauses else ""
        learned = "learned from a refusal" if budget in account.learned else ""
        limit = "unlimited" if taken.limit is None else f"{taken.limit:,}"
        budgets.add_row(budget, f"{taken.used:,} / {limit}", left, learned or pause)
    processes = Table.grid(padding=(0, 2))
    for one in account.participants:
        turn = "dead" if one.dead else "" if one.place is None else f"waits, {one.place}. in line"
        processes.add_row(one.name[:8], f"{one.slots} under way", turn, f"seen {one.seen:.0f} s ago")
    if account.configured is None:
        return "nothing has been recorded yet"
    parts: list[RenderableType] = [budgets]
    if account.participants:
        parts.append(processes)
    if account.organization is not None:
        parts.append(f"Kimi calls it {account.organization}")
    if len(names) > 1:
        parts.append(f"and so it calls all of {', '.join(names)}: use one --account for them, they share their limits")
    return Group(*parts)
