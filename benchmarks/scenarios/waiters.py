"""What requests cost that wait in line: to join it, to be admitted, to be cancelled, and in memory."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from random import Random

from benchmarks.processes import measured
from benchmarks.results import OURS, Figure, Observation, Plan, Scenario
from kimi_async import Cost, RateLimiter, RateLimits

HUGE = 10**9
COST = Cost(prompt_tokens=200, max_tokens=300)
LINES = (1_000, 10_000, 100_000)

BARE = "a bare line"
"""Tasks that each await a future which their predecessor sets: the least that a line can cost in asyncio."""

BESIDE = 2_000
"""Admissions that are made beside the line, in a limiter of their own."""

SCENARIO = Scenario(
    name="waiters",
    title="What 0 to 100,000 waiters cost",
    about="""\
Tasks behind a single slot, each ending as soon as it is admitted; a *bare line* is tasks that each await a future
which their predecessor sets. Microseconds of CPU for each waiter: to *join*, to be *admitted* when all who stand
before it have gone, and to be *cancelled*, all of them in random order; a line that searched for the leaver would take
a hundred times longer for each of 100,000 than of 1,000. Compare with the bare line, which grows as well: a longer
line fits no cache. It is a yardstick and competes in no row: without a place that can be asked for, a forecast and
budgets it is no limiter, but the least that asyncio can do. *Beside* is what the program pays that goes on meanwhile:
one admission by a limiter with room, in a loop where so many wait for another one.""",
    figures=(
        Figure("join", "CPU to join, microseconds a waiter", 1),
        Figure("admit", "CPU to be admitted, microseconds a waiter", 1),
        Figure("cancel", "CPU to be cancelled, microseconds a waiter", 1),
        Figure("bytes", "Memory, bytes a waiter", 0),
        Figure("beside", "CPU of an admission beside them, microseconds", 2),
    ),
    plot="lines",
    yardsticks=(BARE,),
)


def parameters(plan: Plan) -> dict[str, object]:
    """How many wait."""
    return {"lines": LINES, "beside": BESIDE}


def measure(plan: Plan) -> Iterator[Observation]:
    """Line by line, ours and the bare one in turns; a quick plan leaves the longest out."""
    lines = LINES[:-1] if plan.quick else LINES
    for repetition in range(plan.repetitions):
        yield Observation("0 waiting", OURS, repetition, {"beside": measured(_beside, 0)})
        for count in lines:
            for name in _LINES:
                values = measured(_line, name, count) | {"cancel": measured(_cancel, name, count, plan.seed)}
                if name == OURS:
                    values["beside"] = measured(_beside, count)
                yield Observation(f"{count:,} waiting", name, repetition, values)


Opener = Callable[[], None]
"""Lets the first in line in."""


async def _limiter_line(waiters: int) -> tuple[list[Coroutine[object, object, None]], Opener]:
    """Coroutines that wait in one line, each ending at once when it is admitted."""
    limiter = RateLimiter(RateLimits(concurrency=1, rpm=HUGE, tpm=HUGE * HUGE, tpd=HUGE * HUGE))
    first = await limiter.acquire(COST)

    async def wait() -> None:
        async with limiter.acquire(COST) as reservation:
            reservation.sent()

    return [wait() for _ in range(waiters)], first.end


async def _bare_line(waiters: int) -> tuple[list[Coroutine[object, object, None]], Opener]:
    """The same without a limiter."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[None]] = [loop.create_future() for _ in range(waiters + 1)]

    async def wait(index: int) -> None:
        await futures[index]
        futures[index + 1].set_result(None)

    return [wait(index) for index in range(waiters)], partial(futures[0].set_result, None)


_LINES = {OURS: _limiter_line, BARE: _bare_line}


async def _line(name: str, waiters: int) -> dict[str, float]:
    """To join and to be admitted; bytes that one in line takes, measured apart with fewer."""
    gc.collect()
    begin = time.process_time()
    coroutines, open_door = await _LINES[name](waiters)
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    joined = time.process_time()
    open_door()
    await asyncio.gather(*tasks)
    admitted = time.process_time()
    return {
        "join": 1e6 * (joined - begin) / waiters,
        "admit": 1e6 * (admitted - joined) / waiters,
        "bytes": await _bytes(name, min(waiters, LINES[1])),
    }


async def _bytes(name: str, waiters: int) -> float:
    gc.collect()
    tracemalloc.start()
    coroutines, open_door = await _LINES[name](waiters)
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    del coroutines
    await asyncio.sleep(0)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    open_door()
    await asyncio.gather(*tasks)
    return taken / waiters


async def _cancel(name: str, waiters: int, seed: int) -> float:
    """Microseconds that the cancellation of one waiter takes, all of them cancelled in random order."""
    tasks = await _waiting(name, waiters)
    order = list(tasks)
    Random(seed).shuffle(order)
    begin = time.process_time()
    for task in order:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    seconds = time.process_time() - begin
    if not all(task.cancelled() for task in tasks):
        raise RuntimeError("somebody was admitted")
    return 1e6 * seconds / waiters


async def _beside(waiters: int) -> float:
    """Microseconds of one admission while so many wait for something else."""
    tasks = await _waiting(OURS, waiters)
    limiter = RateLimiter(RateLimits(concurrency=HUGE, rpm=HUGE, tpm=HUGE * HUGE, tpd=HUGE * HUGE))
    begin = time.process_time()
    for _ in range(BESIDE):
        async with limiter.acquire(COST) as reservation:
            reservation.sent()
            await asyncio.sleep(0)
    seconds = time.process_time() - begin
    if any(task.done() for task in tasks):
        raise RuntimeError("somebody was admitted")
    return 1e6 * seconds / BESIDE


async def _waiting(name: str, waiters: int) -> list[asyncio.Task[None]]:
    coroutines, _ = await _LINES[name](waiters)
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    gc.freeze()  # else the garbage collector looks at all who wait, again and again, which is no line's doing
    return tasks
