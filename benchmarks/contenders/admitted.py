"""``AsyncOpenAI`` behind somebody else's limiter, which admits every attempt.

The SDK's own retries are off, since they would pass the limiter by. A 429, a 5xx or a broken connection is tried
again after ``Retry-After``, else after half a second, doubling to eight: ten attempts in all, of 120 s each.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from .contract import TIMEOUT, Account, Ask, Request
from .openai_sdk import completed

ATTEMPTS = 10

Admission = Callable[[Request], AbstractAsyncContextManager[None]]
"""Entered when an attempt may leave; what the attempt raises passes through it."""


def admitted(account: Account, admission: Admission) -> Ask:
    """A client whose attempts are admitted inside a semaphore of the account's concurrency."""
    client = AsyncOpenAI(base_url=account.base_url, api_key=account.api_key, timeout=TIMEOUT, max_retries=0)
    semaphore = asyncio.Semaphore(account.concurrency)

    async def ask(request: Request) -> bool:
        for attempt in range(ATTEMPTS):
            try:
                async with semaphore, admission(request):
                    await completed(client, request)
            except (APIStatusError, APIConnectionError) as exc:
                await asyncio.sleep(_pause(exc, attempt))
            else:
                return True
        return False

    return ask


def _pause(exc: APIStatusError | APIConnectionError, attempt: int) -> float:
    """Seconds until the next attempt.

    Raises:
        APIStatusError: another attempt would fare no better.
    """
    advice = None
    if isinstance(exc, APIStatusError):
        if exc.status_code != 429 and exc.status_code < 500:
            raise exc
        advice = exc.response.headers.get("retry-after")
    return float(advice) if advice else min(0.5 * 2**attempt, 8.0)
