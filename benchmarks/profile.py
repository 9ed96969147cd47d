"""Where the CPU time of a request goes: the stack is looked at whenever the process has used a few milliseconds more.

The system's timer of CPU time (``ITIMER_PROF``) sends a signal, Python calls a function with the running frame, and
that is all. A function does not become dearer the more calls it makes, as it does under a tracing profiler, and what
the kernel does for it is in its time. The signal waits until Python code goes on: time in C counts for the Python
function that called it, or for one that the C code calls.
"""

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from kimi_async.mock import MockSettings

from .contenders import connect
from .contenders.contract import Account, Ask
from .processes import gateway, measured
from .prompts import two_kilobytes
from .results import OURS, Provenance
from .tables import Table

LEVELS = (1, 100, 1_000)
"""Requests in flight."""

WARM_UP = 1.0
"""Seconds."""

INTERVAL = 0.001
"""Seconds of CPU between two looks, if the system's clock is that fine; many tick every 4 ms."""

GROUPS = {
    OURS: OURS,
    "httpx": "httpx",
    "httpcore": "httpcore",
    "h11": "h11",
    "anyio": "anyio",
    "asyncio": "asyncio",
    "selectors": "asyncio",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic",
    "json": "json",
    "tiktoken": "tiktoken",
}
"""By the first part of a module's name; the others are ``other``."""

FUNCTIONS = 20
"""In each table of functions."""

Place = tuple[str, str]
"""A function: its module and its qualified name."""


@dataclass(slots=True)
class Samples:
    """What was seen at one concurrency.

    Attributes:
        requests: answered while the stack was looked at.
        cpu: seconds, user and system, meanwhile.
        looks: at the stack.
        looking: seconds of that CPU which the looks took.
        own: those in which a function was running.
        within: those in which it was running, or waiting for one that it had called.
    """

    requests: int = 0
    cpu: float = 0.0
    looks: int = 0
    looking: float = 0.0
    own: Counter[Place] = field(default_factory=Counter)
    within: Counter[Place] = field(default_factory=Counter)

    @property
    def look(self) -> float:
        """Microseconds of CPU a request that one look stands for."""
        return 1e6 * self.cpu / self.requests / max(self.looks, 1)


def run(*, seconds: float) -> str:
    """Profile all levels, and put the findings in words and tables.

    Args:
        seconds: of measurement at each level.
    """
    settings = MockSettings(latency=0.0, latency_jitter=0.0, completion_ratio=1.0, completion_spread=0.0)
    levels = {}
    for level in LEVELS:
        with gateway(settings) as base_url:
            levels[level] = measured(profiled, base_url, level, seconds)
    return text(levels)


async def profiled(base_url: str, concurrency: int, seconds: float) -> Samples:
    """What is seen of a closed loop of different prompts, after a warm-up."""
    unlimited = 10**12
    account = Account(base_url=base_url, concurrency=concurrency, rpm=unlimited, tpm=unlimited)
    load = _Load(await connect(OURS, account))
    workers = [asyncio.create_task(load.work()) for _ in range(concurrency)]
    await asyncio.sleep(WARM_UP)
    samples = Samples()
    with _looking(samples):
        samples.requests, samples.cpu = await load.during(seconds)
    for worker in workers:
        worker.cancel()
    return samples


class _Load:
    """Requests one after the other, by as many workers as are to be in flight."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._numbers = itertools.count()
        self._answered = 0

    async def work(self) -> None:
        for number in self._numbers:
            if not await self._ask(two_kilobytes(number)):
                raise RuntimeError(f"{OURS} was not answered")
            self._answered += 1

    async def during(self, seconds: float) -> tuple[int, float]:
        """Requests answered and seconds of CPU."""
        answered, cpu = self._answered, time.process_time()
        await asyncio.sleep(seconds)
        return self._answered - answered, time.process_time() - cpu


@contextmanager
def _looking(samples: Samples) -> Iterator[None]:
    def look(number: int, frame: FrameType | None) -> None:
        began = time.perf_counter()
        samples.looks += 1
        stack = list(_places(frame))
        samples.own[stack[0]] += 1
        samples.within.update(set(stack))
        samples.looking += time.perf_counter() - began

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def _places(frame: FrameType | None) -> Iterator[Place]:
    """From the running function outwards."""
    while frame is not None:
        yield str(frame.f_globals.get("__name__", "")), frame.f_code.co_qualname
        frame = frame.f_back


# -- in words -----------------------------------------------------------------------------------------------------


def text(levels: dict[int, Samples]) -> str:
    """Three tables, and how they were made."""
    looks = ", ".join(f"{samples.looks:,}" for samples in levels.values())
    looking = max(samples.looking / samples.cpu for samples in levels.values())
    intent = (
        "Microseconds of CPU a request, and their share, by the module that was running. C code counts for the Python "
        f"function that called it, or for one that it calls. {looks} looks at the stack, which took {looking:.1%} of "
        "the time at most."
    )
    where = Provenance.here(command="", seed=0)
    totals = ["total", *(f"{1e6 * samples.cpu / samples.requests:,.0f}" for samples in levels.values())]
    groups = _table("module", levels, _groups(levels))
    return "\n\n".join(
        [
            intent,
            str(Table(groups.header, [*groups.rows, totals])),
            f"The {FUNCTIONS} functions that take most themselves:",
            str(_table("function", levels, _functions(levels, "own"))),
            f"Functions of {OURS}, with all that they call before they wait:",
            str(_table("function", levels, _functions(levels, "within"))),
            f"*{where.date[:10]}, {where.machine}*",
        ]
    )


def _table(head: str, levels: dict[int, Samples], counts: dict[str, dict[int, int]]) -> Table:
    """Sorted by the sum of the shares."""

    def weight(name: str) -> float:
        return sum(count / max(levels[level].looks, 1) for level, count in counts[name].items())

    rows = [
        [name, *(_cell(samples, counts[name].get(level, 0)) for level, samples in levels.items())]
        for name in sorted(counts, key=weight, reverse=True)[:FUNCTIONS]
    ]
    return Table((head, *(f"{level:,} in flight" for level in levels)), rows)


def _cell(samples: Samples, count: int) -> str:
    return f"{count * samples.look:,.0f} ({count / max(samples.looks, 1):.1%})"


def _groups(levels: dict[int, Samples]) -> dict[str, dict[int, int]]:
    found = (
        (GROUPS.get(module.partition(".")[0], "other"), level, n) for (module, _), level, n in _all(levels, "own")
    )
    return _summed(found)


def _functions(levels: dict[int, Samples], which: str) -> dict[str, dict[int, int]]:
    return _summed(
        (f"`{module}.{name}`", level, count)
        for (module, name), level, count in _all(levels, which)
        if which == "own" or module.partition(".")[0] == OURS
    )


def _all(levels: dict[int, Samples], which: str) -> Iterator[tuple[Place, int, int]]:
    for level, samples in levels.items():
        for place, count in (samples.own if which == "own" else samples.within).items():
            yield place, level, count


def _summed(counts: Iterable[tuple[str, int, int]]) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for name, level, count in counts:
        by_level = found.setdefault(name, {})
        by_level[level] = by_level.get(level, 0) + count
    return found
