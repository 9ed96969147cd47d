"""token-throttle: one reservation of a request and its tokens in two token buckets of a minute each.

Its quotas belong to one family for all models, as Kimi's limits do; it has no quota for concurrency, so a semaphore
is around it. Timeouts and retries: those of `admitted`; as documented, the SDK's own two retries of 120 s each.

Told half the limits it would let no sliding minute hold too much, and take twice as long by construction: left out.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from openai import AsyncOpenAI
from token_throttle import MemoryBackendBuilder, PerModelConfig, Quota, RateLimiter, UsageQuotas

from .admitted import admitted
from .contract import TIMEOUT, Account, Ask, Request, all_at_once
from .openai_sdk import completed

FAMILY = "account"


async def connect(account: Account) -> Ask:
    """What is reserved is reported as used: Kimi gives nothing back. Each attempt has a reservation of its own."""
    limiter = _limiter(account)

    @asynccontextmanager
    async def admission(request: Request) -> AsyncIterator[None]:
        async with limiter.reserve(_usage(request.tokens), model=FAMILY) as reservation:
            yield
            reservation.set_actual_usage(_usage(request.tokens))

    return admitted(account, admission)


async def connect_as_documented(account: Account) -> Ask:
    """A reservation around the SDK's call; what the answer did not use is given back, on an error all tokens are."""
    limiter = _limiter(account)
    client = AsyncOpenAI(base_url=account.base_url, api_key=account.api_key, timeout=TIMEOUT)
    semaphore = asyncio.Semaphore(account.concurrency)

    async def ask(request: Request) -> bool:
        async with (
            semaphore,
            limiter.reserve(_usage(request.tokens), model=FAMILY, usage_on_error=_usage(0)) as reservation,
        ):
            reservation.set_actual_usage(_usage(await completed(client, request)))
        return True

    return ask


def _limiter(account: Account) -> RateLimiter:
    minute = int(account.minute)
    quotas = [
        Quota(metric="requests", limit=account.rpm, per_seconds=minute),
        Quota(metric="tokens", limit=account.tpm, per_seconds=minute),
    ]
    return RateLimiter(PerModelConfig(quotas=UsageQuotas(quotas), model_family=FAMILY), backend=MemoryBackendBuilder())


def _usage(tokens: int) -> dict[str, int]:
    return {"requests": 1, "tokens": tokens}


run = all_at_once(connect)
run_as_documented = all_at_once(connect_as_documented)
