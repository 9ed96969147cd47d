"""What a request costs the client's processor, by the number of requests in flight."""

import asyncio
import statistics
import time
from dataclasses import asdict, dataclass

from kimi_async import RateLimits
from kimi_async.mock import MockSettings

from .contenders import CONTENDERS
from .processes import gateway, measured
from .prompts import Prompt, two_kilobytes
from .report import Report, Table, spread

LEVELS = (1, 100, 1_000)
"""Requests in flight; the gateway answers each at once, so the client is what keeps them waiting."""

COMPARED = ("kimi_async", "httpx", "httpx, unlimited connections", "AsyncOpenAI")
BODIES = 50
WAVE = {"httpx": 100}
"""The most requests that a contender has on the way at once, where it is less than the concurrency."""

LEAST_REQUESTS = 200
LEAST_SECONDS = 1.5

NOT_REPEATED = 8.0
"""Seconds. What took longer once is measured no more than once."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one contender.

    Attributes:
        requests: measured, after a warm-up in which each connection is opened.
        cpu: seconds of the client's process, user and system.
        seconds: on the clock.
    """

    contender: str
    concurrency: int
    requests: int
    cpu: float
    seconds: float

    @property
    def milliseconds(self) -> float:
        """Of CPU, a request."""
        return 1000 * self.cpu / self.requests


def run(*, rounds: int = 3) -> Report:
    """Measure all contenders at all levels, in turns."""
    samples: list[Sample] = []
    prompts = two_kilobytes(BODIES)
    for concurrency in LEVELS:
        settings = MockSettings(latency=0.0, latency_jitter=0.0, completion_ratio=1.0, completion_spread=0.0)
        with gateway(settings) as base_url:
            samples += _level(concurrency, base_url, prompts, rounds)
    return Report(
        name="overhead",
        parameters={
            "rounds": rounds,
            "levels": LEVELS,
            "bodies": BODIES,
            "least_requests": LEAST_REQUESTS,
            "least_seconds": LEAST_SECONDS,
        },
        summary=["Milliseconds of CPU a request:", _table(samples), "Times kimi_async:", _ratios(samples)],
        samples=[{**asdict(sample), "milliseconds": sample.milliseconds} for sample in samples],
    )


def _level(concurrency: int, base_url: str, prompts: list[Prompt], rounds: int) -> list[Sample]:
    samples: list[Sample] = []
    slow: set[str] = set()
    for _ in range(rounds):
        for name in COMPARED:
            if name in slow:
                continue
            begin = time.perf_counter()
            requests, cpu, seconds = measured(_measure, name, base_url, concurrency, prompts)
            samples.append(Sample(name, concurrency, requests, cpu, seconds))
            if time.perf_counter() - begin > NOT_REPEATED:
                slow.add(name)
    return samples


async def _measure(name: str, base_url: str, concurrency: int, prompts: list[Prompt]) -> tuple[int, float, float]:
    """Requests, seconds of CPU and seconds, in a closed loop of ``concurrency`` workers."""
    unlimited = 10**12
    limits = RateLimits(concurrency=concurrency, rpm=unlimited, tpm=unlimited, tpd=unlimited)
    ask = await CONTENDERS[name](base_url, limits)
    meter = _Meter(min(concurrency, WAVE.get(name, concurrency)))

    async def work(number: int) -> None:
        while not meter.done:
            if not await ask(prompts[number % len(prompts)]):
                raise RuntimeError(f"{name} was not answered")
            number += 1
            meter.answered()

    workers = [asyncio.create_task(work(number)) for number in range(concurrency)]
    while not meter.done:
        finished, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        for worker in finished:
            worker.result()
    return meter.requests, meter.cpu, meter.seconds


class _Meter:
    """Counts answers: first those of a warm-up, which opens each connection, then those that are measured.

    Many requests at a time are written, and then as many answers read: a measurement holds whole waves of them.
    """

    def __init__(self, wave: int) -> None:
        self._wave = wave
        self._warm_up = max(wave, 2 * BODIES)
        self._warm = False
        self._began = (0.0, 0.0)
        self.done = False
        self.requests = 0
        self.cpu = 0.0
        self.seconds = 0.0

    def answered(self) -> None:
        """One more."""
        self.requests += 1
        if self._warm:
            self._count()
        elif self.requests == self._warm_up:
            self._warm = True
            self.requests = 0
            self._began = (time.process_time(), time.perf_counter())

    def _count(self) -> None:
        if self.done or self.requests < LEAST_REQUESTS or self.requests % self._wave:
            return
        self.seconds = time.perf_counter() - self._began[1]
        self.cpu = time.process_time() - self._began[0]
        self.done = self.seconds >= LEAST_SECONDS


def _of(samples: list[Sample], name: str, concurrency: int) -> list[float]:
    return [sample.milliseconds for sample in samples if (sample.contender, sample.concurrency) == (name, concurrency)]


def _table(samples: list[Sample]) -> Table:
    rows = [[name, *(spread(_of(samples, name, level), 2) for level in LEVELS)] for name in COMPARED]
    return Table(("contender", *(f"{level:,} in flight" for level in LEVELS)), rows)


def _ratios(samples: list[Sample]) -> Table:
    def ratio(name: str, level: int) -> str:
        own, other = (statistics.median(_of(samples, who, level)) for who in ("kimi_async", name))
        return f"{other / own:.1f} (kimi_async {own / other:.2f})"

    rows = [[name, *(ratio(name, level) for level in LEVELS)] for name in COMPARED if name != "kimi_async"]
    return Table(("contender", *(f"{level:,} in flight" for level in LEVELS)), rows)
