"""Many streams, a third of them abandoned in all the ways there are: nothing leaks, nothing is printed or exceeded."""

import asyncio
import gc
import sys
import warnings
from contextlib import contextmanager
from random import Random

import httpx
import pytest

from kimi_async.client import AsyncKimi
from kimi_async.limits import RateLimits
from kimi_async.mock import MockSettings, running, spawn

from .mocked import count_characters
from .streamed import HELLO, quiet

STREAMS = 200
SLOTS = 20
LIMITS = RateLimits(concurrency=SLOTS, rpm=100_000, tpm=100_000_000)
SETTINGS = MockSettings(
    limits=LIMITS, latency=0.005, tokens_per_second=1_000, completion_ratio=1, completion_spread=0, tokens_per_chunk=2
)
TOKENS = 100
SECONDS = TOKENS / 1_000


async def read_all(kimi, dice):
    """The well-behaved majority."""
    stream = await begin(kimi)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert stream.exhausted
    return "read"


async def close(kimi, dice):
    """In the middle, and perhaps before the loop has turned once."""
    stream = await begin(kimi)
    await some(stream, dice)
    await stream.aclose()
    return "closed"


async def leave(kimi, dice):
    """The block of ``stream``, in the middle."""
    async with kimi.chat.completions.stream(messages=HELLO, max_tokens=TOKENS) as stream:
        await some(stream.chunks, dice)
    return "left"


async def drop(kimi, dice):
    """The iterator, with nobody to close it."""
    await some(await begin(kimi), dice)
    return "dropped"


async def stop(kimi, dice):
    """Reading, and keep the iterator for ever."""
    kept.append(await begin(kimi))
    await some(kept[-1], dice)
    return "stopped"


async def cancel(kimi, dice):
    """The consumer, wherever it is: in line, waiting for the first chunk or another, done."""
    task = asyncio.create_task(read_all(kimi, dice))
    await asyncio.sleep(dice.random() * (STREAMS / SLOTS) * SECONDS)
    task.cancel()
    await asyncio.wait([task])
    return "cancelled" if task.cancelled() else "read"


kept = []
ABANDON = [close, leave, drop, stop, cancel]


async def begin(kimi):
    """A stream."""
    return await kimi.chat.completions.create(messages=HELLO, max_tokens=TOKENS, stream=True)


async def some(stream, dice):
    """Read a part of it."""
    for _ in range(dice.randrange(TOKENS // 2)):
        await anext(stream)


@contextmanager
def everything_said():
    """What Python and asyncio would print: warnings, exceptions that nobody caught."""
    said = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: said.append(context))
    before, sys.unraisablehook = sys.unraisablehook, said.append
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
            gc.collect()
            said.extend(caught)
    finally:
        sys.unraisablehook = before


async def abandon_a_third(base_url, seed):
    """The statistics of the gateway after all of it, and how many streams ended in which way."""
    dice = Random(seed)
    uses = [read_all if number % 3 else dice.choice(ABANDON) for number in range(STREAMS)]
    dice.shuffle(uses)
    async with AsyncKimi(
        api_key="sk-x", base_url=base_url, model="moonshot-v1-8k", limits=LIMITS, on_event=quiet
    ) as kimi:
        kimi.counter._encode = list
        ends = await asyncio.gather(*[use(kimi, Random(f"{seed} {number}")) for number, use in enumerate(uses)])
        gc.collect()
        async with asyncio.timeout(5):
            while kimi.limiter.usage().concurrency.used:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        stats = await statistics(base_url)
    kept.clear()
    return stats, ends


async def statistics(base_url):
    """What the gateway says when it has noticed all that hung up."""
    async with httpx.AsyncClient() as client, asyncio.timeout(5):
        while True:
            stats = (await client.get(f"{base_url}/stats")).json()
            if not stats["in_flight"]:
                return stats
            await asyncio.sleep(0.01)


def check(stats, ends):
    """Nothing was exceeded, refused or lost."""
    assert 0.9 * SLOTS <= stats["peak_in_flight"] <= SLOTS
    assert stats["refused"]["concurrency"] == 0
    assert ends.count("read") >= STREAMS * 2 // 3
    assert len(set(ends)) == 1 + len(ABANDON)
    assert stats["hung_up"] > 0


@pytest.mark.real_time
@pytest.mark.parametrize("seed", [1, 2])
async def test_abandoned_streams_leave_nothing_behind(seed, capfd):
    """Every slot comes back, the gateway never holds more than its limit, and nothing is printed."""
    with everything_said() as said:
        async with running(SETTINGS, count_prompt=count_characters) as base_url:
            check(*await abandon_a_third(base_url, seed))
    assert said == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.real_time
async def test_the_same_with_a_gateway_that_learns_of_it_later():
    """A process of its own, which reads its sockets in an order of its own."""
    with everything_said() as said, spawn(SETTINGS) as base_url:
        check(*await abandon_a_third(base_url, 3))
    assert said == []
