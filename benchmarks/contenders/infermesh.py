"""infermesh's `RateLimiter` alone: token buckets for requests and tokens, the smallest request first.

Timeouts and retries: those of `admitted`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from infermesh import RateLimiter

from .admitted import admitted
from .contract import Account, Ask, Request, all_at_once


async def connect(account: Account) -> Ask:
    """All that was reserved is reported as used: Kimi gives nothing back."""
    rpm, tpm = rates(account)
    limiter = RateLimiter(rpm, tpm, max_request_burst=account.rpm, max_token_burst=account.tpm)

    @asynccontextmanager
    async def admission(request: Request) -> AsyncIterator[None]:
        handle = await limiter.acquire(request.tokens)
        try:
            yield
        finally:
            await limiter.adjust(handle, actual_tokens=request.tokens)

    return admitted(account, admission)


def rates(account: Account) -> tuple[int, int]:
    """RPM and TPM for a minute of 60 s; with bursts of the account's limits, the buckets are those of its minute."""
    return round(account.rpm * 60 / account.minute), round(account.tpm * 60 / account.minute)


run = all_at_once(connect)
