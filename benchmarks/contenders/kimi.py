"""``AsyncKimi``: one call for each prompt, all at once.

Timeout and retries: its own. A 429 that it is not to blame for goes back to the front of the line.
"""

from kimi_async import AsyncKimi, KimiError, RateLimits

from .contract import MODEL, TEMPERATURE, Account, Ask, Request, all_at_once


async def connect(account: Account) -> Ask:
    """A client that knows the account's limits, its vocabulary loaded."""
    limits = RateLimits(concurrency=account.concurrency, rpm=account.rpm, tpm=account.tpm, minute=account.minute)
    kimi = AsyncKimi(api_key=account.api_key, base_url=account.base_url, limits=limits, on_event=lambda event: None)
    await kimi.counter.load()

    async def ask(request: Request) -> bool:
        try:
            await kimi.chat.completions.create(
                model=MODEL, messages=request.messages, max_tokens=request.max_tokens, temperature=TEMPERATURE
            )
        except KimiError:
            return False
        return True

    return ask


run = all_at_once(connect)
