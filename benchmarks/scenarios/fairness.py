"""Whether a large request is served in its turn, where small ones would always fit sooner."""

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial

from benchmarks.contenders import CONTENDERS, connect
from benchmarks.contenders.contract import Account, Ask, Outcome, Request, ask_all
from benchmarks.lanes import Lane
from benchmarks.processes import gateway, measured
from benchmarks.prompts import sized
from benchmarks.results import LOST, Figure, Observation, Plan, Remark, Scenario
from benchmarks.schedule import ideal
from benchmarks.trial import Task, account, entrants, in_lanes, observed, patience, trial
from kimi_async import RateLimits
from kimi_async.mock import MockSettings

LIMITS = RateLimits(concurrency=20, rpm=600, tpm=10_000, minute=6.0)
"""TPM binds; who is not quite in order at the gateway cannot be out of it by more than the slots."""

LATENCY = 0.1
SMALL, LARGE = 100, 6_000
"""Tokens: 100 small requests, or a large one and 40 small ones, are a minute's."""

BEFORE, BEHIND = 70, 110
"""Small requests in the file, before the large one and behind it."""

LOOPS = 40
LOOPED = replace(LIMITS, concurrency=60)
"""A slot for each."""

AT, END = 0.3, 2.5
"""Minutes after which the first large request comes to the loops, and after which they end."""

AGAIN = 0.01
"""Seconds after which a loop sends again what was given up."""

FILE, AMONG_LOOPS = "in a file", "among loops"

SCENARIO = Scenario(
    name="fairness",
    title="How long a large request waits among small ones",
    about=f"""\
TPM binds; a large request takes 60 % of it, a small one 1 %. A minute takes {LIMITS.minute:g} s here. *In a file*:
{BEFORE} small requests, a large one and {BEHIND} more small ones, all submitted at once. Served first come, first
served, the large one leaves after a minute, and the small ones behind it do not leave before it; who lets pass
whatever fits serves it last of all. *Among loops*: {LOOPS} tasks send a small request as soon as they have an answer,
so that there is never room for a large one unless somebody keeps it; after {AT:g} minutes a large request comes, and
another one whenever it was served, until {END:g} minutes have passed. In its turn, too, a large one waits longer than
a small one on average: until it has room. One that is given up is sent again, and waits on. Only contenders that run
in the benchmark's own environment and send single requests take part in the loops. Several files are sent at a time,
each to its own gateway; the loops run one after the other.""",
    figures=(
        Figure("wait", "Minutes that a large request waits until its answer", 2),
        Figure("relative", "The same, times what a small request waits", 2),
        Figure("unserved", "Large requests that were never served", 0),
        Figure(LOST, "Requests lost", 0),
    ),
    remarks=(
        Remark(
            "wait",
            "*",
            "kimi_async serves a large request in its turn, half a percent of a minute behind the gateway's own. "
            "Whoever tries again until it fits may come before its turn, by luck, and others wait for it.",
        ),
        Remark(
            "relative",
            "*",
            "What a small request waits is below the line: whoever keeps the small ones waiting as well has a lower "
            "ratio. The wait itself is the figure before.",
        ),
    ),
)


def parameters(plan: Plan) -> dict[str, object]:
    """The account, the file and the loops."""
    requests = file()
    return {
        "limits": asdict(LIMITS),
        "latency": LATENCY,
        "lanes": plan.lanes,
        "small": SMALL,
        "large": LARGE,
        "ideal_wait": best(requests) / LIMITS.minute,
        "loops": LOOPS,
        "end": END,
    }


def measure(plan: Plan) -> Iterator[Observation]:
    """The file, contenders in turns and in lanes; then the loops, one contender after the other."""
    settings = MockSettings(limits=LIMITS, latency=LATENCY, latency_jitter=0.0)
    requests = file()

    def in_file(name: str, lane: Lane) -> dict[str, float]:
        found = trial(name, requests, settings, patience=patience(2 * LIMITS.minute), lane=lane)
        return values(requests, found.outcomes)

    def in_loops(name: str) -> dict[str, float]:
        with gateway(replace(settings, limits=LOOPED)) as base_url:
            return loop_values(*measured(among_loops, name, account(base_url, LOOPED)))

    names = {number: entrants(plan, minute=LIMITS.minute, repetition=number) for number in range(plan.repetitions)}
    clients = [name for name in names[0] if CONTENDERS[name].connect is not None and not CONTENDERS[name].own_venv]
    yield from in_lanes(
        plan, [Task(FILE, name, number, partial(in_file, name)) for number in names for name in names[number]]
    )
    for repetition in names:
        for name in clients:
            yield from observed(AMONG_LOOPS, name, repetition, partial(in_loops, name))


def file() -> list[Request]:
    """The requests."""
    return sized([*[SMALL] * BEFORE, LARGE, *[SMALL] * BEHIND])


def best(requests: Sequence[Request]) -> float:
    """Seconds until the large request's answer in the ideal schedule."""
    return ideal([request.tokens for request in requests], LIMITS, latency=LATENCY)[BEFORE].at + LATENCY


def values(requests: Sequence[Request], outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The figures of one file."""
    waits = [
        (request.tokens == LARGE, outcome.finished - outcome.submitted)
        for request, outcome in zip(requests, outcomes, strict=True)
        if outcome.answered
    ]
    return _figures(
        [wait for large, wait in waits if large],
        [wait for large, wait in waits if not large],
        unserved=1 - sum(large for large, _ in waits),
    ) | {LOST: len(requests) - len(waits)}


def loop_values(large: Sequence[float], small: Sequence[float]) -> dict[str, float]:
    """The figures of loops; the last large request was not served."""
    return _figures(large, small, unserved=not large) | {LOST: 0}


def _figures(large: Sequence[float], small: Sequence[float], *, unserved: float) -> dict[str, float]:
    """From seconds that large and small requests waited."""
    figures: dict[str, float] = {"unserved": unserved}
    if large:
        figures["wait"] = statistics.mean(large) / LIMITS.minute
        if small:
            figures["relative"] = statistics.mean(large) / statistics.mean(small)
    return figures


async def among_loops(name: str, told: Account) -> tuple[list[float], list[float]]:
    """Seconds that large and small requests waited which were answered in time."""
    ask = await connect(name, told)
    large, small = sized([LARGE])[0], sized([SMALL] * LOOPS)
    begin = time.monotonic()
    end = begin + END * LIMITS.minute
    large_waits: list[float] = []
    small_waits: list[float] = []

    async def loop(request: Request, waits: list[float]) -> None:
        while True:
            waits.append(await _wait(ask, request))

    async def come() -> None:
        await asyncio.sleep(AT * LIMITS.minute)
        await loop(large, large_waits)

    tasks = [asyncio.create_task(loop(request, small_waits)) for request in small]
    tasks.append(asyncio.create_task(come()))
    await asyncio.wait(tasks, timeout=end - time.monotonic())
    return large_waits, small_waits


async def _wait(ask: Ask, request: Request) -> float:
    """Seconds until it was answered, however often it had to be sent again."""
    begin = time.monotonic()
    while not (await ask_all(ask, [request]))[0].answered:  # noqa: ASYNC110 - it asks, it does not poll
        await asyncio.sleep(AGAIN)
    return time.monotonic() - begin
