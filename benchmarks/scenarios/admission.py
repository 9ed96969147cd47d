"""What an admission costs when there is room: no HTTP, no waiting."""

import time
from collections.abc import Awaitable, Callable, Iterator

from aiolimiter import AsyncLimiter

from benchmarks.processes import measured
from benchmarks.results import OURS, Figure, Observation, Plan, Remark, Scenario
from kimi_async import Cost, RateLimiter, RateLimits

HUGE = 10**9
COST = Cost(prompt_tokens=200, max_tokens=300)
ADMISSIONS = 5_000
ROUNDS, QUICK_ROUNDS = 60, 20

THEIRS = "AsyncLimiter"
"""Of aiolimiter, on which kimi_async's own smoothing stands; it needs nothing that is not installed anyway."""

SCENARIO = Scenario(
    name="admission",
    title="What an admission costs when there is room",
    about=f"""\
CPU microseconds of one admission, the best of {ROUNDS} rounds of {ADMISSIONS:,}. `RateLimiter` has four limits set and
far away, and keeps an entry of each request in two logs; one `AsyncLimiter` of aiolimiter knows one limit, and has
nothing to give back. *acquire* is `await limiter.acquire()`; *block* is the whole `async with`, for kimi_async with
`sent()` and the slot's return. `try_acquire`, which never waits, is ours alone. Both take turns in one process.""",
    figures=(Figure("cpu", "CPU, microseconds an admission", 2, guarded=True),),
    remarks=(
        Remark(
            "cpu",
            "*",
            "An AsyncLimiter keeps one number; RateLimiter keeps four budgets, and an entry of each request in two "
            "logs, since a bucket of the same limit lets twice of it into one minute. C would change it; a request "
            "costs a hundred times as much.",
        ),
    ),
)


def parameters(plan: Plan) -> dict[str, object]:
    """How many."""
    return {"admissions": ADMISSIONS, "rounds": QUICK_ROUNDS if plan.quick else ROUNDS}


def measure(plan: Plan) -> Iterator[Observation]:
    """All kinds in turns, round by round, in one process for each repetition."""
    for repetition in range(plan.repetitions):
        best = measured(_admissions, QUICK_ROUNDS if plan.quick else ROUNDS)
        for (case, name), seconds in best.items():
            yield Observation(case, name, repetition, {"cpu": 1e6 * seconds})


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


async def _block() -> None:
    limiter = _limiter()
    for _ in range(ADMISSIONS):
        async with limiter.acquire(COST) as reservation:
            reservation.sent()


async def _their_acquire() -> None:
    limiter = AsyncLimiter(HUGE)
    for _ in range(ADMISSIONS):
        await limiter.acquire()


async def _their_block() -> None:
    limiter = AsyncLimiter(HUGE)
    for _ in range(ADMISSIONS):
        async with limiter:
            pass


_ADMISSIONS: dict[tuple[str, str], Callable[[], Awaitable[None]]] = {
    ("acquire", OURS): _acquire,
    ("acquire", THEIRS): _their_acquire,
    ("block", OURS): _block,
    ("block", THEIRS): _their_block,
    ("try_acquire", OURS): _try_acquire,
}


async def _admissions(rounds: int) -> dict[tuple[str, str], float]:
    """The least seconds an admission of each kind took."""
    best = dict.fromkeys(_ADMISSIONS, float("inf"))
    for _ in range(rounds):
        for kind, admit in _ADMISSIONS.items():
            begin = time.process_time()
            await admit()
            best[kind] = min(best[kind], (time.process_time() - begin) / ADMISSIONS)
    return best
