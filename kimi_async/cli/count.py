"""``kimi-async count``."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol

from cyclopts import Parameter
from rich.cells import set_cell_size

from kimi_async.client import AsyncKimi
from kimi_async.errors import ConfigurationError, RequestTooLarge
from kimi_async.jsonl import BadLine, BatchRequest, Defaults, read_lines
from kimi_async.limiter import RateLimiter
from kimi_async.limits import WINDOWED, Budget, Cost, RateLimits
from kimi_async.models import Currency, money
from kimi_async.parameters import check

from .gateway import SIGNS, currency_of
from .options import ANSWERED, FAILED, LimitOptions, default_model, on_disk
from .progress import clock
from .terminal import Terminal, in_one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is known of one line: its cost, or what is wrong with it, or both where it can never fit.

    ``price`` is the highest: no prompt token cached, and as many generated as may be; None where unknown.
    """

    line: int
    custom_id: str
    model: str = ""
    prompt_tokens: int | None = None
    max_tokens: int | None = None
    n: int | None = None
    tokens: int | None = None
    price: float | None = None
    problem: str | None = None


@dataclass(slots=True)
class Total:
    """Of all lines that can be answered, and how many cannot."""

    lines: int = 0
    bad: int = 0
    too_large: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    price: float = 0.0
    unpriced: int = 0

    def add(self, row: Row) -> None:
        """Count one line in."""
        self.lines += 1
        if row.problem is not None:
            self.bad += row.tokens is None
            self.too_large += row.tokens is not None
            return
        self.prompt_tokens += row.prompt_tokens or 0
        self.tokens += row.tokens or 0
        self.price += row.price or 0.0
        self.unpriced += row.price is None

    @property
    def good(self) -> int:
        """Lines that can be answered."""
        return self.lines - self.bad - self.too_large


def count(
    input: Annotated[str, Parameter(name="INPUT")],  # noqa: A002 - its name to the user
    /,
    *,
    model: str | None = None,
    max_tokens: int | None = None,
    system: str | None = None,
    limits: LimitOptions = LimitOptions(),  # noqa: B008 - frozen
    currency: Currency | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Count what a file of prompts costs, without sending anything.

    For each line of INPUT, in any form that batch takes: tokens of the prompt, max_tokens, answers asked for, tokens
    charged against TPM and TPD, and the highest price. In all: the sums, and the least time that the limits allow.
    A line that is no request, that the model refuses, or that can never fit, is marked and left out of the sums; the
    exit status is then 1. No key is needed.

    Args:
        input: A JSONL file or a pipe, or - for standard input.
        model: For lines that name none. Default: KIMI_MODEL of the environment, else kimi-k2.6.
        max_tokens: For lines that set none. Default: what Kimi assumes for the model.
        system: A system message for lines that have none.
        limits: What the account may do.
        currency: Of the prices. Default: that of the base URL in the environment.
        json: A JSON object for each line and one for the total.
    """
    defaults = Defaults(model=model or default_model(), max_tokens=max_tokens, system=system)
    with on_disk(input) as source:
        return asyncio.run(_count(source, defaults, limits.rate_limits(), currency, as_json=json))


async def _count(
    source: Path, defaults: Defaults, limits: RateLimits, currency: Currency | None, *, as_json: bool
) -> int:
    terminal, total = Terminal(), Total()
    kimi = AsyncKimi(api_key="none", limits=limits, on_event=terminal.note)  # sends nothing
    currency = currency or currency_of(kimi.base_url)
    report: Report = _Json() if as_json else _Columns(terminal.out.width) if terminal.out.is_terminal else _Tabs()
    report.begin()
    async for row in rows(source, defaults, kimi, currency):
        total.add(row)
        report.row(row)
        if row.problem is not None:
            terminal.note(f"kimi-async: line {row.line}: {row.problem}", style="")
    report.end(total, await least_time(limits, total), currency)
    return FAILED if total.good < total.lines else ANSWERED


async def rows(source: Path, defaults: Defaults, kimi: AsyncKimi, currency: Currency) -> AsyncIterator[Row]:
    """The lines of a file, one at a time, each with its cost to an account of the client's limits."""
    for line in read_lines(source, defaults):
        if isinstance(line, BadLine):
            yield Row(line=line.line, custom_id=line.custom_id, problem=in_one_line(line.problem))
        else:
            yield await _row(line, kimi, currency)


async def _row(request: BatchRequest, kimi: AsyncKimi, currency: Currency) -> Row:
    model = str(request.body.get("model", ""))
    row = Row(line=request.line or 0, custom_id=request.custom_id, model=model)
    try:
        check(request.body)
        cost = await kimi.counter.cost(request.body)
    except RequestTooLarge as exc:
        return replace(row, tokens=exc.needed, problem=in_one_line(str(exc)))
    except ConfigurationError as exc:
        return replace(row, problem=in_one_line(str(exc)))
    return await _priced(row, cost, kimi, currency)


async def _priced(row: Row, cost: Cost, kimi: AsyncKimi, currency: Currency) -> Row:
    problem: str | None = None
    try:
        await kimi.limiter.wait_time(cost)
    except RequestTooLarge as exc:
        problem = str(exc)
    return replace(
        row,
        prompt_tokens=cost.prompt_tokens,
        max_tokens=cost.max_tokens,
        n=cost.n,
        tokens=cost.tokens,
        price=money(
            row.model,
            prompt_tokens=cost.prompt_tokens,
            completion_tokens=cost.n * cost.max_tokens,
            currency=currency,
        ),
        problem=problem,
    )


async def least_time(limits: RateLimits, total: Total) -> tuple[float, Budget]:
    """Seconds until the last line can have been sent, at least, and the budget that sets it.

    How long slots are held is not known before.
    """
    alone = RateLimits(minute=limits.minute, day=limits.day)
    return max(
        (RateLimiter(alone.with_limit(budget, getattr(limits, budget))).time_to_send(total.good, total.tokens), budget)
        for budget in WINDOWED
    )


class Report(Protocol):
    """Where the rows go, and in the end the total."""

    def begin(self) -> None:
        """Before the first row."""
        ...

    def row(self, row: Row) -> None:
        """One row."""
        ...

    def end(self, total: Total, least: tuple[float, Budget], currency: Currency) -> None:
        """After the last; ``least`` is what `least_time` says."""
        ...


class _Columns:
    """For a terminal: aligned, and written row by row however many there are. Names get what room there is."""

    def __init__(self, width: int) -> None:
        self._name = min(max(width - 69, 10), 40)

    def begin(self) -> None:
        self._print("line", "custom_id", "prompt", "max", "n", "charged", "price", "model")

    def row(self, row: Row) -> None:
        numbers = (row.prompt_tokens, row.max_tokens, row.n, row.tokens)
        prompt, most, n, charged = ("-" if number is None else f"{number:,}" for number in numbers)
        price = "-" if row.price is None else f"{row.price:.4f}"
        last = in_one_line(row.model) if row.problem is None else _mark(row)
        self._print(f"{row.line}", in_one_line(row.custom_id), prompt, most, n, charged, price, last)

    def _print(self, *cells: str) -> None:
        line, name, prompt, most, n, charged, price, last = cells
        name = set_cell_size(name, self._name)
        print(f"{line:>7} {name} {prompt:>9} {most:>9} {n:>2} {charged:>10} {price:>9} {last}")

    def end(self, total: Total, least: tuple[float, Budget], currency: Currency) -> None:
        print(f"\n{summary(total, least, currency)}")


class _Tabs:
    """For a pipe: tab-separated values under a header; the total goes to standard error."""

    HEADS = ("line", "custom_id", "model", "prompt_tokens", "max_tokens", "n", "charged", "price", "problem")

    def begin(self) -> None:
        print(*self.HEADS, sep="\t")

    def row(self, row: Row) -> None:
        print(*(_cell(value) for value in asdict(row).values()), sep="\t")

    def end(self, total: Total, least: tuple[float, Budget], currency: Currency) -> None:
        print(summary(total, least, currency), file=sys.stderr)


class _Json:
    """For programs: an object a line, the last one ``{"total": {...}}``."""

    def begin(self) -> None:
        pass

    def row(self, row: Row) -> None:
        print(json.dumps(asdict(row), ensure_ascii=False))

    def end(self, total: Total, least: tuple[float, Budget], currency: Currency) -> None:
        seconds, budget = least
        summed = asdict(total) | {
            "currency": currency,
            "least_seconds": seconds,
            "bound_by": budget if seconds else None,
        }
        print(json.dumps({"total": summed}))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return "" if value is None else in_one_line(str(value))


def _mark(row: Row) -> str:
    return "never fits" if row.tokens is not None else "cannot be sent"


def summary(total: Total, least: tuple[float, Budget], currency: Currency) -> str:
    """The total in a few lines."""
    seconds, budget = least
    wrong = {"cannot be sent": total.bad, "can never fit": total.too_large}
    unpriced = f" ({total.unpriced:,} lines of models without a known price left out)" if total.unpriced else ""
    figures = {
        "lines": ", ".join([f"{total.lines:,}", *(f"{number:,} {what}" for what, number in wrong.items() if number)]),
        "tokens": f"{total.prompt_tokens:,} of prompt, {total.tokens:,} charged",
        "price": f"at most {SIGNS[currency]}{total.price:.4f}{unpriced}",
        "time": f"at least {clock(seconds)}, bound by {budget}" if seconds else "within the first minute's limits",
    }
    return "\n".join(f"{name:7} {text}" for name, text in figures.items())
