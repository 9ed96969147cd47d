"""``AsyncOpenAI`` behind one ``AsyncLimiter`` for RPM and one for TPM, as people write it.

The SDK's own two retries, which pass neither limiter. An attempt may take 120 s.
"""

import asyncio

from aiolimiter import AsyncLimiter
from openai import AsyncOpenAI

from .contract import TIMEOUT, Account, Ask, Request, all_at_once
from .openai_sdk import answered


async def connect(account: Account) -> Ask:
    """The limiters are asked inside the semaphore, so that what they grant leaves at once."""
    client = AsyncOpenAI(base_url=account.base_url, api_key=account.api_key, timeout=TIMEOUT)
    requests = AsyncLimiter(account.rpm, account.minute)
    tokens = AsyncLimiter(account.tpm, account.minute)
    semaphore = asyncio.Semaphore(account.concurrency)

    async def ask(request: Request) -> bool:
        async with semaphore:
            await requests.acquire()
            await tokens.acquire(request.tokens)
            return await answered(client, request)

    return ask


run = all_at_once(connect)
