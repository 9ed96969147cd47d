"""What an admission costs when there is room, and what 100,000 waiters cost when there is none."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from random import Random

from aiolimiter import AsyncLimiter

from kimi_async import Cost, RateLimiter, RateLimits

from .processes import measured
from .report import Report, Table, spread

HUGE = 10**9
COST = Cost(prompt_tokens=200, max_tokens=300)
ADMISSIONS = 5_000
LINES = (1_000, 10_000, 100_000)


def run(*, rounds: int = 60, waiters: int = 100_000, seed: int = 1) -> Report:
    """Measure all three parts, each in a process of its own.

    Args:
        rounds: of admissions; the best counts.
        waiters: that stand in line.
        seed: of the order in which they are cancelled.
    """
    admissions = measured(_admissions, rounds)
    lines = [measured(_line, kind, waiters) for _ in range(3) for kind in _LINES]
    cancelled = [measured(_cancel, kind, count, seed) for _ in range(2) for count in LINES for kind in _LINES]
    return Report(
        name="limiter",
        parameters={"rounds": rounds, "admissions": ADMISSIONS, "waiters": waiters, "seed": seed},
        summary=[
            "With room for all, the best of many rounds:",
            _admission_table(admissions),
            f"{waiters:,} waiters; a bare line is tasks that each await a future which their predecessor sets:",
            _line_table(lines),
            "Waiters cancelled in random order, microseconds each:",
            _cancel_table(cancelled),
        ],
        samples=[{"admissions": admissions}, *lines, *cancelled],
    )


# -- with room ----------------------------------------------------------------------------------------------------


def _limiter() -> RateLimiter:
    return RateLimiter(RateLimits(concurrency=HUGE, rpm=HUGE, tpm=HUGE * HUGE, tpd=HUGE * HUGE))


async def _acquire() -> None:
    limiter = _limiter()
    for _ in range(ADMISSIONS):
        await limiter.acquire(COST)


async def _try_acquire() -> None:
    limiter = _limiter()
    for _ in range(ADMISSIONS):
        limiter.try_acquire(COST)


async def _whole_block() -> None:
    limiter = _limiter()
    for _ in range(ADMISSIONS):
        async with limiter.acquire(COST) as reservation:
            reservation.sent()


async def _aiolimiter_acquire() -> None:
    limiter = AsyncLimiter(HUGE)
    for _ in range(ADMISSIONS):
        await limiter.acquire()


async def _aiolimiter_block() -> None:
    limiter = AsyncLimiter(HUGE)
    for _ in range(ADMISSIONS):
        async with limiter:
            pass


_ADMISSIONS: dict[str, Callable[[], Awaitable[None]]] = {
    "AsyncLimiter: await acquire()": _aiolimiter_acquire,
    "AsyncLimiter: async with": _aiolimiter_block,
    "RateLimiter: try_acquire(cost)": _try_acquire,
    "RateLimiter: await acquire(cost)": _acquire,
    "RateLimiter: async with acquire(cost), sent()": _whole_block,
}


async def _admissions(rounds: int) -> dict[str, float]:
    """The least seconds an admission of each kind took."""
    best = dict.fromkeys(_ADMISSIONS, float("inf"))
    for _ in range(rounds):
        for name, admit in _ADMISSIONS.items():
            begin = time.process_time()
            await admit()
            best[name] = min(best[name], (time.process_time() - begin) / ADMISSIONS)
    return best


def _admission_table(best: dict[str, float]) -> Table:
    yardstick = best["AsyncLimiter: await acquire()"]
    rows = [
        [name, f"{seconds * 1e6:.2f}", f"{1 / seconds:,.0f}", f"{yardstick / seconds:.2f}"]
        for name, seconds in best.items()
    ]
    return Table(("admission", "microseconds", "a second", "speed, AsyncLimiter's acquire = 1"), rows)


# -- in line ------------------------------------------------------------------------------------------------------


async def _limiter_line(waiters: int) -> tuple[list[Coroutine[object, object, None]], Callable[[], None]]:
    """Coroutines that wait in one line, each ending at once when it is admitted; and what lets the first one in."""
    limiter = RateLimiter(RateLimits(concurrency=1, rpm=HUGE, tpm=HUGE * HUGE, tpd=HUGE * HUGE))
    first = await limiter.acquire(COST)

    async def wait() -> None:
        async with limiter.acquire(COST) as reservation:
            reservation.sent()

    return [wait() for _ in range(waiters)], first.end


async def _bare_line(waiters: int) -> tuple[list[Coroutine[object, object, None]], Callable[[], None]]:
    """The least that a line can cost in asyncio."""
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[None]] = [loop.create_future() for _ in range(waiters + 1)]

    async def wait(index: int) -> None:
        await futures[index]
        futures[index + 1].set_result(None)

    return [wait(index) for index in range(waiters)], lambda: futures[0].set_result(None)


_LINES = {"RateLimiter": _limiter_line, "bare line": _bare_line}


async def _line(kind: str, waiters: int) -> dict[str, object]:
    """Seconds to queue and to admit all waiters; bytes that one in line takes, measured apart with fewer."""
    gc.collect()
    begin = time.process_time()
    coroutines, open_door = await _LINES[kind](waiters)
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    queued = time.process_time()
    open_door()
    await asyncio.gather(*tasks)
    admitted = time.process_time()
    return {
        "line": kind,
        "waiters": waiters,
        "queue_seconds": queued - begin,
        "admit_seconds": admitted - queued,
        "bytes": await _bytes(kind, waiters // 10),
    }


async def _bytes(kind: str, waiters: int) -> float:
    gc.collect()
    tracemalloc.start()
    coroutines, open_door = await _LINES[kind](waiters)
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    del coroutines
    await asyncio.sleep(0)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    open_door()
    await asyncio.gather(*tasks)
    return taken / waiters


async def _cancel(kind: str, waiters: int, seed: int) -> dict[str, object]:
    """Seconds that the cancellation of one waiter takes, all of them cancelled in random order."""
    coroutines, _ = await _LINES[kind](waiters)
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    order = list(tasks)
    Random(seed).shuffle(order)
    gc.freeze()  # else the garbage collector looks at all who still wait, again and again, which is no line's doing
    begin = time.process_time()
    for task in order:
        task.cancel()
    await asyncio.wait(tasks)
    seconds = time.process_time() - begin
    assert all(task.cancelled() for task in tasks)
    return {"cancelled_in": kind, "waiters": waiters, "seconds_each": seconds / waiters}


def _line_table(samples: list[dict[str, object]]) -> Table:
    def column(kind: str, key: str, scale: float, digits: int) -> str:
        return spread([scale * float(str(s[key])) for s in samples if s["line"] == kind], digits)

    rows = [
        [kind, column(kind, "queue_seconds", 1, 2), column(kind, "admit_seconds", 1, 2), column(kind, "bytes", 1, 0)]
        for kind in _LINES
    ]
    return Table(("line", "seconds to queue all", "seconds to admit all", "bytes a waiter"), rows)


def _cancel_table(samples: list[dict[str, object]]) -> Table:
    def cell(kind: str, count: int) -> str:
        own = [s for s in samples if s["cancelled_in"] == kind and s["waiters"] == count]
        return spread([1e6 * float(str(s["seconds_each"])) for s in own], 1)

    rows = [[kind, *(cell(kind, count) for count in LINES)] for kind in _LINES]
    return Table(("line", *(f"{count:,} waiters" for count in LINES)), rows)
