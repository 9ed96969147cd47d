"""Streamed answers for tests: chunks like Kimi's, as server-sent events, from a scripted gateway."""

import asyncio
import gc
import json

from kimi_async.client import AsyncKimi
from kimi_async.errors import StreamBroken
from kimi_async.limits import RateLimits
from kimi_async.transport import HANG_UP

from .scripted import Body, Scripted, Step

SSE = {"Content-Type": "text/event-stream; charset=utf-8", "Msh-Request-Id": "req-1"}
DONE = b"data: [DONE]\n\n"
HELLO = [{"role": "user", "content": "hello"}]
USAGE = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}
WIDE = RateLimits(concurrency=100, rpm=100_000, tpm=100_000_000)


def quiet(event):
    """A hook for tests that do not ask."""


def chunk(*choices, **fields):
    """A chunk of these choices."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "kimi-k2.6"}
    return {**head, "choices": list(choices), **fields}


def piece(content=None, *, index=0, finish_reason=None, **fields):
    """One choice of a chunk."""
    delta = {} if content is None else {"content": content}
    delta |= {name: fields.pop(name) for name in ("role", "reasoning_content", "tool_calls") if name in fields}
    return {"index": index, "delta": delta, "finish_reason": finish_reason, **fields}


def event(data):
    """As it goes over the wire."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def said(*texts, usage=USAGE):
    """The events of an answer of these texts: a role, a chunk for each, an end with its usage, ``[DONE]``."""
    chunks = [piece("", role="assistant"), *map(piece, texts), piece(finish_reason="stop", usage=usage)]
    return [*(event(chunk(one)) for one in chunks), DONE]


def streams(*pieces, seconds=0.0, fails=None, headers=SSE, **step):
    """A streamed answer: bytes, as many seconds apart."""
    return Step(content=Body(*pieces, seconds=seconds, fails=fails), headers=headers, **step)


def client(*steps, **options):
    """A client of a scripted gateway, for which a character is a token."""
    inner = Scripted(*(steps or [streams(*said("hello"))]))
    options = {"api_key": "sk-SECRET", "model": "kimi-k2.6", "limits": WIDE, "on_event": quiet, **options}
    kimi = AsyncKimi(transport=inner, **options)
    kimi.counter._encode = list
    return kimi, inner


async def opened(kimi, **options):
    """A stream, of which the first chunk has come."""
    return await kimi.chat.completions.create(messages=HELLO, stream=True, **options)


async def texts(stream):
    """The texts of a stream read to its end."""
    return [chunk.text async for chunk in stream]


async def read(stream):
    """The chunks of a stream, and what it breaks with or None."""
    got = []
    try:
        async for one in stream:
            got.append(one)  # noqa: PERF401 - a comprehension would lose them
    except StreamBroken as exc:
        return got, exc
    return got, None


def slots(kimi):
    """Slots in use."""
    gc.collect()
    return kimi.limiter.usage().concurrency.used


async def slots_later(kimi):
    """The same when the gateway has had its moment to learn of a hang-up."""
    await asyncio.sleep(1.01 * HANG_UP)
    return slots(kimi)
