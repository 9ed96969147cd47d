"""What a request costs the client's processor, by the number of requests in flight, the latency and the event loop."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle, product
from typing import Literal

from benchmarks.contenders import connect
from benchmarks.contenders.contract import Account
from benchmarks.processes import gateway, measured
from benchmarks.prompts import two_kilobytes
from benchmarks.results import Figure, Observation, Plan, Remark, Scenario
from benchmarks.trial import observed
from kimi_async.mock import MockSettings

Loop = Literal["", "uvloop"]

UNBOUND = "httpx, unlimited connections"
"""Measured in the plain cases alone: elsewhere it takes a minute, and says the same again."""

COMPARED = ("kimi_async", "httpx", UNBOUND, "AsyncOpenAI")
LEVELS = (1, 10, 100, 400, 1_000)
LATENCIES = (0, 50, 1_000)
"""Milliseconds."""

REPEATED = 50
"""Different prompts where they are repeated."""

UNLIMITED = 10**12
WAVE = {"httpx": 100}
"""The most requests that a contender has on the way at once, where it is less than the concurrency."""

WARM_UP = 100
LEAST_REQUESTS = 200
LEAST_SECONDS = 1.5
MOST_SECONDS = 10.0
"""After which fewer requests are enough, if they are a whole wave."""

NOT_REPEATED = 10.0
"""Seconds. What took longer once is measured no more than once."""


@dataclass(frozen=True, slots=True)
class Case:
    """The conditions.

    Attributes:
        level: requests in flight.
        latency: of the gateway, milliseconds.
        loop: empty for asyncio's own.
        repeated: whether there are few prompts, sent again and again.
    """

    level: int
    latency: int = 0
    loop: Loop = ""
    repeated: bool = False

    def __str__(self) -> str:
        latency = f"{self.latency} ms" if self.latency < 1000 else f"{self.latency / 1000:g} s"
        loop = f", {self.loop}" if self.loop else ""
        return f"{self.level:,} in flight, {latency}{loop}" + (", repeated prompts" if self.repeated else "")


SHORT = Case(100)
PLAIN = (Case(1), Case(10), Case(100), Case(400))
REPEATING = (Case(100, repeated=True), Case(400, repeated=True))
ONE_BY_ONE = (
    *(Case(level) for level in LEVELS),
    Case(100, 50),
    Case(1_000, 1_000),
    *(Case(level, loop="uvloop") for level in (1, 100, 1_000)),
    *REPEATING,
)
"""Concurrency varied by itself, then latency and loop at few of its values."""

LOOPS: tuple[Loop, ...] = ("", "uvloop")
ALL = (
    *(Case(level, latency, loop) for loop, latency, level in product(LOOPS, LATENCIES, LEVELS)),
    *REPEATING,
)

ONE_CONNECTION = (
    "What is written by hand counts no tokens, keeps no limits and checks no answer, and few connections are little "
    "to look after. Most of the rest is asyncio and the socket, the same for both. Counting only where TPM is "
    "near would change it."
)
BY_HAND = (
    "What is written by hand counts no tokens, keeps no limits and checks no answer; fewer steps of Python between "
    "the call and the socket would change it."
)

SCENARIO = Scenario(
    name="overhead",
    title="What a request costs the client's processor",
    about=f"""\
CPU time (user and system) of the client's process, in milliseconds a request, and requests a second on its one core:
2 KB up, 1.1 KB down, a closed loop with so many requests in flight, after a warm-up that opens each connection. A case
names that number and what the gateway takes to answer; the loop is asyncio's own, or uvloop. Limits are set but never
reached. Every prompt is another one, as in a file of them, and `kimi_async` counts its tokens; nobody else counts. It
remembers the counts of texts that come again, as instructions do: with *repeated prompts* there are {REPEATED} of
them. Contenders are measured one by one; what takes more than {NOT_REPEATED:.0f} s is measured once. With a latency,
the rate is what the gateway allows as long as the client keeps up: 1,000 in flight at 1 s are 1,000 a second.

The default httpx client keeps 20 idle connections, so at 100 in flight it closes and opens one for nearly every
request: cheap here, a TLS handshake each at Kimi. With unlimited connections it keeps them, and its pool looks at all
of them for every request. At 1,000 the default client has 900 requests in line for 100 connections, and looks at all
of those too.""",
    figures=(
        Figure("cpu", "CPU, milliseconds a request", 2, guarded=True),
        Figure("rate", "Requests a second", 0, "more"),
    ),
    remarks=(
        *(
            Remark(figure, f"{level:,} in flight{latency}*", ONE_CONNECTION if level <= 10 else BY_HAND)
            for level in LEVELS
            for figure, latency in (("cpu", ""), ("rate", ", 0 ms"))
        ),
        Remark(
            "rate",
            "*in flight, [15]*",
            "With a latency everybody who keeps up has the gateway's rate; what is left is how evenly requests leave.",
        ),
    ),
    plot="lines",
)


def parameters(plan: Plan) -> dict[str, object]:
    """How long is measured, and what is sent."""
    return {
        "repeated": REPEATED,
        "least_requests": LEAST_REQUESTS,
        "least_seconds": LEAST_SECONDS,
        "not_repeated": NOT_REPEATED,
    }


def measure(plan: Plan) -> Iterator[Observation]:
    """Case by case, contenders in turns."""
    cases = (SHORT,) if plan.quick else ALL if plan.full else ONE_BY_ONE
    names = [name for name in COMPARED if name in plan.contenders]
    slow: set[tuple[Case, str]] = set()
    for repetition in range(plan.repetitions):
        for case in cases:
            with gateway(_settings(case)) as base_url:
                for name in names:
                    if (case, name) in slow or (name == UNBOUND and case not in PLAIN and not plan.full):
                        continue
                    begin = time.perf_counter()
                    yield from observed(case, name, repetition, partial(measured, _values, name, base_url, case))
                    if time.perf_counter() - begin > NOT_REPEATED:
                        slow.add((case, name))


def _settings(case: Case) -> MockSettings:
    return MockSettings(latency=case.latency / 1000, latency_jitter=0.0, completion_ratio=1.0, completion_spread=0.0)


async def _values(name: str, base_url: str, case: Case) -> dict[str, float]:
    """The figures of one contender, on the loop that the case names."""
    work = _closed_loop(name, base_url, case)
    if not case.loop:
        return await work
    import uvloop  # noqa: PLC0415 - of some systems

    return await asyncio.to_thread(uvloop.run, work)  # this loop sleeps meanwhile


async def _closed_loop(name: str, base_url: str, case: Case) -> dict[str, float]:
    account = Account(base_url=base_url, concurrency=case.level, rpm=UNLIMITED, tpm=UNLIMITED)
    ask = await connect(name, account)
    meter = Meter(min(case.level, WAVE.get(name, case.level)))
    numbers = cycle(range(REPEATED)) if case.repeated else count()

    async def work() -> None:
        while not meter.done:
            if not await ask(two_kilobytes(next(numbers))):
                raise RuntimeError(f"{name} was not answered")
            meter.answered()

    workers = [asyncio.create_task(work()) for _ in range(case.level)]
    finished, others = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
    for worker in others:
        worker.cancel()  # what is still under way is nobody's concern, and what failed once fails for all
    for worker in finished:
        worker.result()
    return {"cpu": 1000 * meter.cpu / meter.requests, "rate": meter.requests / meter.seconds}


class Meter:
    """Counts answers: first those of a warm-up, which opens each connection, then those that are measured.

    Many requests at a time are written, and then as many answers read: a measurement holds whole waves of them.

    Args:
        wave: requests on the way at once.
    """

    def __init__(self, wave: int) -> None:
        self._wave = wave
        self._warm = False
        self._cpu, self._clock = time.process_time(), time.perf_counter()
        self.done = False
        self.requests = 0
        self.cpu = 0.0
        self.seconds = 0.0

    def answered(self) -> None:
        """One more."""
        self.requests += 1
        if self.done or self.requests < self._wave:
            return
        seconds = time.perf_counter() - self._clock
        if not self._warm:
            if self.requests >= WARM_UP or seconds > MOST_SECONDS / 2:
                self._begin()
        elif self.requests % self._wave == 0 and (self.requests >= LEAST_REQUESTS or seconds > MOST_SECONDS):
            self.seconds = seconds
            self.cpu = time.process_time() - self._cpu
            self.done = seconds >= LEAST_SECONDS

    def _begin(self) -> None:
        self._warm = True
        self.requests = 0
        self._cpu, self._clock = time.process_time(), time.perf_counter()
