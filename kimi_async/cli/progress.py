"""What a batch shows while it runs, and at the end."""

import asyncio
import math
import time
from collections import Counter

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kimi_async.batch import BatchRun
from kimi_async.client import AsyncKimi
from kimi_async.limits import BUDGETS, Budget, BudgetUsage, Usage

from .gateway import SIGNS

REFRESH = 0.25
"""Seconds between two frames in a terminal."""

PLAIN_REFRESH = 10.0
"""Seconds between two lines where the output is no terminal."""

BAR = 40


class Progress:
    """How far a batch is.

    Args:
        work: the batch.
        kimi: its client.
        total: requests that had no answer when it began.
    """

    def __init__(self, work: BatchRun, kimi: AsyncKimi, total: int) -> None:
        self.total = total
        self.began = time.monotonic()
        self._work = work
        self._kimi = kimi

    @property
    def elapsed(self) -> float:
        """Seconds since the batch began."""
        return time.monotonic() - self.began

    @property
    def done(self) -> int:
        """Requests that have an outcome."""
        return self._work.tally.answered + self._work.tally.failed

    async def show(self, console: Console) -> None:
        """Redraw until cancelled: bars in a terminal, else a line now and then."""
        if not console.is_terminal:
            while True:
                await asyncio.sleep(PLAIN_REFRESH)
                console.print(self.line(), highlight=False, soft_wrap=True)
        with Live(self.bars(), console=console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(self.bars(), refresh=True)
                await asyncio.sleep(REFRESH)

    def line(self) -> str:
        """All of it in one line."""
        usage, tally = self._kimi.limiter.usage(), self._work.tally
        binding = binding_budget(usage)
        return (
            f"{self.done:,}/{self.total:,} done, {tally.failed:,} failed, {usage.concurrency.used} in flight, "
            f"{usage}, {f'bound by {binding}, ' if binding else ''}ETA {clock(self.eta(usage))}"
        )

    def bars(self) -> RenderableType:
        """The batch and the four budgets, the one that binds marked."""
        usage, tally = self._kimi.limiter.usage(), self._work.tally
        binding = binding_budget(usage)
        grid = Table.grid(padding=(0, 1))
        share = f"{self.done / self.total:.0%}" if self.total else "100%"
        grid.add_row("done", _bar(self.done, self.total, "green"), f"{self.done:,}/{self.total:,}", share)
        for budget in BUDGETS:
            taken: BudgetUsage = getattr(usage, budget)
            if taken.limit is not None:
                grid.add_row(*_budget_row(budget, taken, binds=budget == binding))
        billed = f"tokens {tally.prompt_tokens:,} + {tally.completion_tokens:,}"
        status = f"{tally.failed:,} failed, {usage.concurrency.used} in flight, {billed}, ETA {clock(self.eta(usage))}"
        return Group(grid, Text(status))

    def eta(self, usage: Usage) -> float:
        """Seconds until the last answer, from the ledger's arithmetic; where slots bind, from the pace so far."""
        left = self.total - self.done
        unsent = max(left - usage.concurrency.used, 0)
        if not left:
            return 0.0
        mean_cost = usage.tokens_charged / usage.requests_sent if usage.requests_sent else 0.0
        budgets = self._kimi.limiter.time_to_send(unsent, math.ceil(unsent * mean_cost))
        slots = left * self.elapsed / self.done if self.done and binding_budget(usage) == "concurrency" else 0.0
        return max(budgets, slots)


def binding_budget(usage: Usage) -> str | None:
    """What the next request waits for, or would if slots are the ones that are all in use."""
    full = usage.concurrency.limit is not None and usage.concurrency.used >= usage.concurrency.limit
    return usage.binding or ("concurrency" if full else None)


def summary(work: BatchRun, kimi: AsyncKimi, progress: Progress, counts: Counter[str]) -> str:
    """The run in a few lines."""
    tally, usage = work.tally, kimi.limiter.usage()
    unpriced = f" ({tally.unpriced:,} answers of models without a known price left out)" if tally.unpriced else ""
    rows = {
        "answered": f"{tally.answered:,} of {progress.total:,} in {clock(progress.elapsed)}",
        "failed": ", ".join(f"{name} {number:,}" for name, number in tally.failures.most_common()),
        "skipped": f"{tally.skipped:,} answered before" if tally.skipped else "",
        "tokens": f"{tally.prompt_tokens:,} of prompt + {tally.completion_tokens:,} of completion billed, "
        f"{usage.tokens_charged:,} charged against the budgets",
        "money": f"{SIGNS[work.currency]}{tally.money:.4f} at list price{unpriced}",
        "budgets": ", ".join(_shares(kimi, usage, progress.elapsed)) or "unlimited",
        "refusals": ", ".join(f"{name} {number:,}" for name, number in counts.most_common()) or "none",
    }
    return "\n".join(f"{name:9} {text}" for name, text in rows.items() if text)


def _shares(kimi: AsyncKimi, usage: Usage, elapsed: float) -> list[str]:
    """Of what could have been sent meanwhile, how much was: whole windows, the one that has begun included."""
    limits = kimi.limiter.limits
    minutes = math.floor(elapsed / (limits.minute + usage.guard)) + 1
    days = math.floor(elapsed / limits.day) + 1
    slots = [f"concurrency at most {usage.peak_slots}/{limits.concurrency}"] if limits.concurrency else []
    possible = (
        ("rpm", usage.requests_sent, limits.rpm, minutes),
        ("tpm", usage.tokens_charged, limits.tpm, minutes),
        ("tpd", usage.tokens_charged, limits.tpd, days),
    )
    return slots + [f"{name} {sent / (limit * windows):.0%} used" for name, sent, limit, windows in possible if limit]


def _budget_row(budget: Budget, taken: BudgetUsage, *, binds: bool) -> tuple[RenderableType, ...]:
    colour = "yellow" if binds else "cyan"
    return (
        Text(budget, style="bold yellow" if binds else ""),
        _bar(taken.used, taken.limit or 1, colour),
        f"{taken.used:,}/{taken.limit:,}",
        Text("binds", style="bold yellow") if binds else "",
    )


def _bar(used: int, limit: int, colour: str) -> ProgressBar:
    return ProgressBar(total=max(limit, 1), completed=min(used, limit), width=BAR, complete_style=colour)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: ``1:02:03``, or ``0:07`` below the hour."""
    whole = math.ceil(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
