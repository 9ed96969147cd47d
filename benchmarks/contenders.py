"""The clients that are compared, each behind one function that sends a prompt and says whether it was answered.

They are opened on the running loop and never closed: each lives as long as the process that measures it. Limits are
the account's; a contender uses those of them that it knows how to keep.
"""

import asyncio
from collections.abc import Awaitable, Callable

from kimi_async import AsyncKimi, KimiError, RateLimits

from .prompts import MODEL, Prompt

Ask = Callable[[Prompt], Awaitable[bool]]
Contender = Callable[[str, RateLimits], Awaitable[Ask]]

API_KEY = "sk-benchmark"
TIMEOUT = 120.0
ATTEMPTS = 10
"""Of plain httpx, which has no retries of its own."""


async def kimi_async(base_url: str, limits: RateLimits) -> Ask:
    """``AsyncKimi``: one call for each prompt, all at once."""
    kimi = AsyncKimi(api_key=API_KEY, base_url=base_url, limits=limits, on_event=lambda event: None)
    await kimi.counter.load()

    async def ask(prompt: Prompt) -> bool:
        try:
            await kimi.chat.completions.create(
                model=MODEL, messages=prompt.messages, max_tokens=prompt.max_tokens, temperature=0.3
            )
        except KimiError:
            return False
        return True

    return ask


async def httpx_default(base_url: str, limits: RateLimits) -> Ask:
    """Plain ``httpx.AsyncClient`` and a semaphore; after a 429 it sleeps for ``Retry-After`` and tries again."""
    return _httpx(base_url, limits, connections=100)


async def httpx_unlimited(base_url: str, limits: RateLimits) -> Ask:
    """The same without httpx's bound of 100 connections."""
    return _httpx(base_url, limits, connections=None)


def _httpx(base_url: str, limits: RateLimits, *, connections: int | None) -> Ask:
    import httpx  # noqa: PLC0415 - each contender imports its own, as a program that uses it would

    client = httpx.AsyncClient(
        base_url=base_url,
        headers={"Authorization": f"Bearer {API_KEY}"},
        timeout=TIMEOUT,
        limits=httpx.Limits(
            max_connections=connections, max_keepalive_connections=20 if connections else None, keepalive_expiry=5.0
        ),
    )
    semaphore = asyncio.Semaphore(limits.concurrency or 1)

    async def ask(prompt: Prompt) -> bool:
        body = {
            "model": MODEL,
            "messages": prompt.messages,
            "max_tokens": prompt.max_tokens,
            "temperature": 0.3,
        }
        async with semaphore:
            for _ in range(ATTEMPTS):
                response = await client.post("/chat/completions", json=body)
                if response.status_code != 429:
                    return bool(response.json()["choices"][0]["message"]["content"])
                await asyncio.sleep(float(response.headers["retry-after"]))
        return False

    return ask


async def openai_alone(base_url: str, limits: RateLimits) -> Ask:
    """``AsyncOpenAI`` and a semaphore: what most people write first. Its own two retries handle 429s."""
    import openai  # noqa: PLC0415 - half a second that only its own process pays

    client = openai.AsyncOpenAI(base_url=base_url, api_key=API_KEY, timeout=TIMEOUT)
    semaphore = asyncio.Semaphore(limits.concurrency or 1)

    async def ask(prompt: Prompt) -> bool:
        async with semaphore:
            try:
                await client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": prompt.text}],
                    max_tokens=prompt.max_tokens,
                    temperature=0.3,
                )
            except openai.APIError:
                return False
        return True

    return ask


async def openai_aiolimiter(base_url: str, limits: RateLimits) -> Ask:
    """``AsyncOpenAI`` behind one ``AsyncLimiter`` for RPM and one for TPM, as people write it."""
    from aiolimiter import AsyncLimiter  # noqa: PLC0415 - likewise

    requests = AsyncLimiter(limits.rpm or 1, limits.minute)
    tokens = AsyncLimiter(limits.tpm or 1, limits.minute)
    semaphore = asyncio.Semaphore(limits.concurrency or 1)
    send = await openai_alone(base_url, limits)

    async def ask(prompt: Prompt) -> bool:
        async with semaphore:
            await requests.acquire()
            await tokens.acquire(prompt.tokens)
            return await send(prompt)

    return ask


CONTENDERS: dict[str, Contender] = {
    "kimi_async": kimi_async,
    "httpx": httpx_default,
    "httpx, unlimited connections": httpx_unlimited,
    "AsyncOpenAI": openai_alone,
    "AsyncOpenAI + aiolimiter": openai_aiolimiter,
}
