"""What a chunk of a streamed answer costs the client's processor."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from kimi_async import AsyncKimi, RateLimits
from kimi_async.mock import MockSettings

from .contenders import API_KEY, TIMEOUT
from .processes import gateway, measured
from .report import Report, Table, spread

MODEL = "moonshot-v1-8k"
"""One that does not think: each chunk between the first and the last is a piece of text."""

TOKENS = 500
CHUNKS = TOKENS + 2
"""The first has the role, the last the usage."""

MESSAGES = [{"role": "user", "content": "Tell me about the moon."}]
LEAST_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast chunks come: ``speed`` a second in each of ``streams``, or as fast as the gateway can write."""

    name: str
    streams: int
    speed: float | None


PACES = (Pace("1 stream, as fast as it comes", 1, None), Pace("10 streams, 250 chunks a second each", 10, 250.0))
"""In the first, one read from the socket brings many chunks; in the second, nearly each chunk wakes the process."""

Read = Callable[[], Awaitable[int]]
"""Reads one answer to its end, and returns the chunks, or texts, that it got."""


async def kimi_chunks(base_url: str) -> Read:
    """``create(stream=True)``."""
    kimi = await _kimi(base_url)

    async def read() -> int:
        chunks = await kimi.chat.completions.create(messages=MESSAGES, max_tokens=TOKENS, stream=True)
        return len([chunk async for chunk in chunks])

    return read


async def kimi_texts(base_url: str) -> Read:
    """``stream()``, whose completion is put together at the end."""
    kimi = await _kimi(base_url)

    async def read() -> int:
        async with kimi.chat.completions.stream(messages=MESSAGES, max_tokens=TOKENS) as stream:
            texts = [text async for text in stream]
            if stream.completion.text != "".join(texts):
                raise RuntimeError("a text is missing")
            return len(texts) + 2

    return read


async def openai_chunks(base_url: str) -> Read:
    """``create(stream=True)`` of the openai SDK, over the httpx2 client that it makes for itself."""
    import openai  # noqa: PLC0415 - half a second that only its own process pays

    client = openai.AsyncOpenAI(base_url=base_url, api_key=API_KEY, timeout=TIMEOUT)

    async def read() -> int:
        chunks = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": MESSAGES[0]["content"]}],
            max_tokens=TOKENS,
            stream=True,
        )
        return len([chunk async for chunk in chunks])

    return read


async def bare_httpx(base_url: str) -> Read:
    """httpx, httpx-sse and ``json.loads``: what one would write by hand, with dicts for chunks."""
    import json  # noqa: PLC0415 - each contender imports its own, as a program that uses it would

    import httpx  # noqa: PLC0415
    from httpx_sse import aconnect_sse  # noqa: PLC0415

    client = httpx.AsyncClient(base_url=base_url, headers={"Authorization": f"Bearer {API_KEY}"}, timeout=TIMEOUT)
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": TOKENS, "stream": True}

    async def read() -> int:
        async with aconnect_sse(client, "POST", "/chat/completions", json=body) as source:
            chunks = [json.loads(event.data) async for event in source.aiter_sse() if event.data != "[DONE]"]
        return len(chunks)

    return read


async def _kimi(base_url: str) -> AsyncKimi:
    unlimited = 10**12
    limits = RateLimits(concurrency=1_000, rpm=unlimited, tpm=unlimited, tpd=unlimited)
    kimi = AsyncKimi(api_key=API_KEY, base_url=base_url, model=MODEL, limits=limits, on_event=lambda event: None)
    await kimi.counter.load()
    return kimi


CONTENDERS: dict[str, Callable[[str], Awaitable[Read]]] = {
    "kimi_async": kimi_chunks,
    "kimi_async, stream() and its texts": kimi_texts,
    "AsyncOpenAI": openai_chunks,
    "httpx, httpx-sse, json": bare_httpx,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one contender.

    Attributes:
        chunks: read, after a warm-up.
        cpu: seconds of the client's process, user and system.
        seconds: on the clock.
    """

    contender: str
    pace: str
    chunks: int
    cpu: float
    seconds: float

    @property
    def microseconds(self) -> float:
        """Of CPU, a chunk."""
        return 1e6 * self.cpu / self.chunks


def run(*, rounds: int = 5) -> Report:
    """Measure all contenders at all paces, in turns."""
    samples: list[Sample] = []
    for pace in PACES:
        settings = MockSettings(
            latency=0.0,
            latency_jitter=0.0,
            completion_ratio=1.0,
            completion_spread=0.0,
            tokens_per_chunk=1,
            tokens_per_second=pace.speed,
        )
        with gateway(settings) as base_url:
            samples += [
                Sample(name, pace.name, *measured(_measure, name, base_url, pace.streams))
                for _ in range(rounds)
                for name in CONTENDERS
            ]
    return Report(
        name="streaming",
        parameters={
            "rounds": rounds,
            "chunks": CHUNKS,
            "least_seconds": LEAST_SECONDS,
            "paces": list(map(asdict, PACES)),
        },
        summary=["Microseconds of CPU a chunk:", _table(samples), "Times kimi_async:", _ratios(samples)],
        samples=[{**asdict(sample), "microseconds": sample.microseconds} for sample in samples],
    )


async def _measure(name: str, base_url: str, streams: int) -> tuple[int, float, float]:
    """Chunks, seconds of CPU and seconds: so many streams at once, and again, for long enough."""
    read = await CONTENDERS[name](base_url)

    async def together() -> None:
        if await asyncio.gather(*[read() for _ in range(streams)]) != [CHUNKS] * streams:
            raise RuntimeError(f"{name} did not get all chunks")

    await together()
    cpu, began, rounds = time.process_time(), time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < LEAST_SECONDS:
        await together()
        rounds += 1
    return rounds * streams * CHUNKS, time.process_time() - cpu, seconds


def _of(samples: list[Sample], name: str, pace: Pace) -> list[float]:
    return [sample.microseconds for sample in samples if (sample.contender, sample.pace) == (name, pace.name)]


def _table(samples: list[Sample]) -> Table:
    rows = [[name, *(spread(_of(samples, name, pace), 1) for pace in PACES)] for name in CONTENDERS]
    return Table(("contender", *(pace.name for pace in PACES)), rows)


def _ratios(samples: list[Sample]) -> Table:
    def ratio(name: str, pace: Pace) -> str:
        own, other = (statistics.median(_of(samples, who, pace)) for who in ("kimi_async", name))
        return f"{other / own:.1f} (kimi_async {own / other:.2f})"

    rows = [[name, *(ratio(name, pace) for pace in PACES)] for name in CONTENDERS if name != "kimi_async"]
    return Table(("contender", *(pace.name for pace in PACES)), rows)
