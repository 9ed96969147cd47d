"""What a chunk of a streamed answer costs the client's processor."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

from benchmarks.contenders.contract import API_KEY, MODEL, TIMEOUT
from benchmarks.processes import gateway, measured
from benchmarks.results import Figure, Observation, Plan, Remark, Scenario
from benchmarks.trial import observed
from kimi_async import AsyncKimi, RateLimits
from kimi_async.mock import MockSettings

TOKENS = 500
CHUNKS = TOKENS + 2
"""The first has the role, the last the usage. The model does not think: each chunk between them is a piece of text."""

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


@dataclass(frozen=True, slots=True)
class Reader:
    """One way to read streams; it takes part where ``of`` does."""

    open: Callable[[str], Awaitable[Read]]
    of: str


READERS = {
    "kimi_async": Reader(kimi_chunks, "kimi_async"),
    "kimi_async, stream() and its texts": Reader(kimi_texts, "kimi_async"),
    "AsyncOpenAI": Reader(openai_chunks, "AsyncOpenAI"),
    "httpx, httpx-sse, json": Reader(bare_httpx, "httpx"),
}

SCENARIO = Scenario(
    name="streaming",
    title="What a chunk of a stream costs the client's processor",
    about=f"""\
CPU microseconds (user and system) that one chunk of a streamed answer costs the client's process, and chunks a second:
answers of {CHUNKS} chunks, one token each, read to their end; the request itself is in it. Chunks become typed
objects, but for the last contender, which is what one would write by hand and makes dicts. `kimi_async` reads ahead in
a task of its own, so that a slow consumer never holds a slot for longer than Kimi needs; nobody else does.

Written as fast as the gateway can, many chunks come with one read of the socket, and what is measured is the parsing.
At 250 a second most of them come alone: waking up, and code and data that are no longer in the processor's cache, cost
everybody several times as much as the parsing does.""",
    figures=(
        Figure("cpu", "CPU, microseconds a chunk", 1, guarded=True),
        Figure("rate", "Chunks a second, where the client is what limits them", 0, "more"),
    ),
    remarks=(
        Remark(
            "*",
            "*as fast as it comes",
            "What one writes by hand makes dicts, checks nothing and puts nothing together; making no typed chunk "
            "would change it.",
        ),
        Remark(
            "*",
            "*a second each",
            "Most of a chunk that comes alone is waking up and reading the socket, the same for everybody; what is "
            "written by hand makes a dict of it in the task that reads, where kimi_async makes a typed chunk and "
            "hands it from the task that reads ahead to the consumer. Not reading ahead would change it, and would "
            "let a slow consumer hold its slot.",
        ),
    ),
)


def parameters(plan: Plan) -> dict[str, object]:
    """Sizes and paces."""
    return {"chunks": CHUNKS, "least_seconds": LEAST_SECONDS, "paces": list(map(asdict, PACES))}


def measure(plan: Plan) -> Iterator[Observation]:
    """All contenders at all paces, in turns; a quick plan knows the first pace, and no variant of ours."""
    names = [name for name, reader in READERS.items() if reader.of in plan.contenders]
    if plan.quick:
        names = [name for name in names if name in plan.contenders]
    for repetition in range(plan.repetitions):
        for pace in PACES[:1] if plan.quick else PACES:
            with gateway(_settings(pace)) as base_url:
                for name in names:
                    yield from observed(pace.name, name, repetition, partial(measured, _values, name, base_url, pace))


def _settings(pace: Pace) -> MockSettings:
    return MockSettings(
        latency=0.0,
        latency_jitter=0.0,
        completion_ratio=1.0,
        completion_spread=0.0,
        tokens_per_chunk=1,
        tokens_per_second=pace.speed,
    )


async def _values(name: str, base_url: str, pace: Pace) -> dict[str, float]:
    """The figures: so many streams at once, and again, for long enough."""
    read = await READERS[name].open(base_url)

    async def together() -> None:
        if await asyncio.gather(*[read() for _ in range(pace.streams)]) != [CHUNKS] * pace.streams:
            raise RuntimeError(f"{name} did not get all chunks")

    await together()
    cpu, began, rounds = time.process_time(), time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < LEAST_SECONDS:
        await together()
        rounds += 1
    chunks = rounds * pace.streams * CHUNKS
    values = {"cpu": 1e6 * (time.process_time() - cpu) / chunks}
    return values if pace.speed else values | {"rate": chunks / seconds}
