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

LEVELS = {1: 0.0, 100: 0.05, 1000: 0.1}
"""Concurrency, and the latency in seconds that the gateway answers with."""

COMPARED = ("kimi_async", "httpx", "httpx, unlimited connections", "AsyncOpenAI")
BODIES = 50
LEAST_REQUESTS = 300
LEAST_SECONDS = 1.5
NOT_REPEATED = 12.0
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
    for concurrency, latency in LEVELS.items():
        settings = MockSettings(latency=latency, latency_jitter=0.0, completion_ratio=1.0, completion_spread=0.0)
        with gateway(settings) as base_url:
            samples += _level(concurrency, base_url, prompts, rounds)
    return Report(
        name="overhead",
        parameters={
            "rounds": rounds,
            "latency": LEVELS,
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
    """Requests, seconds of CPU and seconds, in a closed loop of ``concurrency`` workers.

    The measurement begins and ends with a whole number of requests for each worker, since many at a time are
    written, and then as many read.
    """
    unlimited = 10**12
    limits = RateLimits(concurrency=concurrency, rpm=unlimited, tpm=unlimited, tpd=unlimited)
    ask = await CONTENDERS[name](base_url, limits)
    warm_up = max(concurrency, 2 * BODIES)
    done: asyncio.Future[tuple[int, float, float]] = asyncio.get_running_loop().create_future()
    answered = 0
    begin = (0.0, 0.0)

    async def work(number: int) -> None:
        nonlocal answered, begin
        while not done.done():
            if not await ask(prompts[number % len(prompts)]):
                raise RuntimeError(f"{name} was not answered")
            number += 1
            answered += 1
            if answered == warm_up:
                begin = (time.process_time(), time.perf_counter())
            measured_so_far = answered - warm_up
            if measured_so_far >= LEAST_REQUESTS and measured_so_far % concurrency == 0:
                cpu, seconds = time.process_time() - begin[0], time.perf_counter() - begin[1]
                if seconds >= LEAST_SECONDS and not done.done():
                    done.set_result((measured_so_far, cpu, seconds))

    workers = [asyncio.create_task(work(number)) for number in range(concurrency)]
    await asyncio.wait([done, *workers], return_when=asyncio.FIRST_COMPLETED)
    if not done.done():
        await asyncio.gather(*workers)  # one of them failed, and says why
    return done.result()


def _of(samples: list[Sample], name: str, concurrency: int) -> list[float]:
    return [
        sample.milliseconds for sample in samples if (sample.contender, sample.concurrency) == (name, concurrency)
    ]


def _table(samples: list[Sample]) -> Table:
    rows = [[name, *(spread(_of(samples, name, level), 2) for level in LEVELS)] for name in COMPARED]
    return Table(("contender", *(f"{level:,} in flight" for level in LEVELS)), rows)


def _ratios(samples: list[Sample]) -> Table:
    def ratio(name: str, level: int) -> str:
        own, other = (statistics.median(_of(samples, who, level)) for who in ("kimi_async", name))
        return f"{other / own:.1f} (kimi_async {own / other:.2f})"

    rows = [[name, *(ratio(name, level) for level in LEVELS)] for name in COMPARED if name != "kimi_async"]
    return Table(("contender", *(f"{level:,} in flight" for level in LEVELS)), rows)
