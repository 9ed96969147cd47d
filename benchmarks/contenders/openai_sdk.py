"""``AsyncOpenAI`` and a semaphore: what most people write first.

The SDK's own retries of 429s, 5xx and broken connections, ``Retry-After`` or else half a second to eight apart: ten
attempts in all; as documented, its default, three. An attempt may take 120 s.
"""

import asyncio

from openai import DEFAULT_MAX_RETRIES, APIError, AsyncOpenAI

from .contract import MODEL, TEMPERATURE, TIMEOUT, Account, Ask, Request, all_at_once

RETRIES = 9


async def connect(account: Account) -> Ask:
    """As many attempts as `plain_httpx` has."""
    return _connect(account, RETRIES)


async def connect_as_documented(account: Account) -> Ask:
    """Two retries."""
    return _connect(account, DEFAULT_MAX_RETRIES)


def _connect(account: Account, retries: int) -> Ask:
    """A client, and a semaphore of the account's concurrency."""
    client = AsyncOpenAI(base_url=account.base_url, api_key=account.api_key, timeout=TIMEOUT, max_retries=retries)
    semaphore = asyncio.Semaphore(account.concurrency)

    async def ask(request: Request) -> bool:
        async with semaphore:
            return await _answered(client, request)

    return ask


async def _answered(client: AsyncOpenAI, request: Request) -> bool:
    """Whether a call brought an answer; else the client's retries are over."""
    try:
        await completed(client, request)
    except APIError:
        return False
    return True


async def completed(client: AsyncOpenAI, request: Request) -> int:
    """Tokens that the answer says were used: the prompt's, and those generated."""
    completion = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": request.text}],
        max_tokens=request.max_tokens,
        temperature=TEMPERATURE,
    )
    return completion.usage.total_tokens if completion.usage else request.tokens


run = all_at_once(connect)
run_as_documented = all_at_once(connect_as_documented)
