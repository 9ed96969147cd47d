"""``AsyncOpenAI`` behind one ``AsyncLimiter`` for RPM and one for TPM, as people write it.

Every attempt passes both, the SDK's own retries being off. Timeouts and retries: those of `admitted`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiolimiter import AsyncLimiter

from .admitted import admitted
from .contract import Account, Ask, Request, all_at_once


async def connect(account: Account) -> Ask:
    """The limiters are asked inside the semaphore, so that what they grant leaves at once."""
    requests = AsyncLimiter(account.rpm, account.minute)
    tokens = AsyncLimiter(account.tpm, account.minute)

    @asynccontextmanager
    async def admission(request: Request) -> AsyncIterator[None]:
        await requests.acquire()
        await tokens.acquire(request.tokens)
        yield

    return admitted(account, admission)


run = all_at_once(connect)
