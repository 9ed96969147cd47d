"""aiollm-gateway's `ProviderLimiter`: a token bucket for requests, then one for tokens.

Its limiter alone, since its providers are other people's APIs. Its adaptive mode stays off, as it is by default: it
halves the pace after each 429, meets fewer of them, and takes longer. The buckets are made anew, for they would take
a minute to be 60 s long. Timeouts and retries: those of `admitted`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llm_gateway.rate_limit import ProviderLimiter, TokenBucket

from .admitted import admitted
from .contract import Account, Ask, Request, all_at_once


async def connect(account: Account) -> Ask:
    """A request and its tokens, one after the other, for each attempt."""
    limiter = ProviderLimiter(account.rpm, account.tpm)
    limiter.requests = TokenBucket(account.rpm, account.rpm / account.minute)
    limiter.tokens = TokenBucket(account.tpm, account.tpm / account.minute)

    @asynccontextmanager
    async def admission(request: Request) -> AsyncIterator[None]:
        await limiter.acquire(1, request.tokens)
        yield

    return admitted(account, admission)


run = all_at_once(connect)
