"""A process whose memory is measured, and little else in it: ``python -m benchmarks.resident RESULT HOW ...``.

It has prompts answered in one of three ways, and leaves in the file RESULT, as JSON, what it had resident.

=========================  ==================================================================
``batch URL COUNT``        ``kimi.batch``, from a generator
``gather URL COUNT NAME``  the client of a contender: a task for each prompt, and a semaphore
``command ARGUMENTS``      ``kimi-async ARGUMENTS``
=========================  ==================================================================
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.contenders import connect
from benchmarks.contenders.contract import API_KEY, MODEL, Account, Request

IN_FLIGHT = 100
UNLIMITED = 10**12
MAX_TOKENS = 16
WARM_UP = 100
"""Prompts that are answered before the memory that is there already is looked at."""

STATUS = Path("/proc/self/status")

Answered = Callable[[range], Awaitable[int]]
"""Has prompts of these numbers answered, and tells how many were."""


def prompt(number: int) -> str:
    """A short one."""
    return f"第 {number} 题：用一句话介绍月亮。"


def peak() -> int:
    """The most bytes so far. Linux's ``ru_maxrss`` begins with that of the process which started this one."""
    return _of_status("VmHWM") or _most()


def now() -> int:
    """Bytes; where the system does not tell, the most so far."""
    return _of_status("VmRSS") or _most()


def _of_status(name: str) -> int | None:
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _most() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _batch(base_url: str) -> Answered:
    from kimi_async import AsyncKimi, BatchRequest, RateLimits  # noqa: PLC0415 - no other way of these is to pay for it

    limits = RateLimits(concurrency=IN_FLIGHT, rpm=UNLIMITED, tpm=UNLIMITED)
    kimi = AsyncKimi(api_key=API_KEY, base_url=base_url, model=MODEL, limits=limits, on_event=lambda event: None)

    async def answered(numbers: range) -> int:
        requests = (
            BatchRequest(
                custom_id=str(number),
                body={"messages": [{"role": "user", "content": prompt(number)}], "max_tokens": MAX_TOKENS},
            )
            for number in numbers
        )
        count = 0
        async for result in kimi.batch(requests):
            count += result.error is None
        return count

    return answered


async def _gather(base_url: str, name: str) -> Answered:
    ask = await connect(name, Account(base_url=base_url, concurrency=IN_FLIGHT, rpm=UNLIMITED, tpm=UNLIMITED))

    async def answered(numbers: range) -> int:
        return sum(await asyncio.gather(*(ask(Request(prompt(number), 0, MAX_TOKENS)) for number in numbers)))

    return answered


async def _measured(base_url: str, count: int, name: str | None) -> dict[str, float]:
    answered = await _gather(base_url, name) if name else _batch(base_url)
    await answered(range(WARM_UP))
    before, began = now(), time.perf_counter()
    number = await answered(range(count))
    return {"seconds": time.perf_counter() - began, "answered": number, "before": before}


def main() -> None:
    """See the module."""
    result, how, *arguments = sys.argv[1:]
    began = time.perf_counter()
    found: dict[str, float] = {}
    try:
        if how == "command":
            from kimi_async.cli import main as command  # noqa: PLC0415 - likewise

            command(arguments)
        else:
            base_url, count, *name = arguments
            found = asyncio.run(_measured(base_url, int(count), name[0] if name else None))
    finally:
        found = {"seconds": time.perf_counter() - began} | found | {"peak": peak()}
        Path(result).write_text(json.dumps(found), encoding="ascii")


if __name__ == "__main__":
    main()
