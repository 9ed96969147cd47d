"""infermesh's `LMClient`, as its README has it: over LiteLLM, behind its own limiter.

It estimates prompts itself, and gives back what the answer did not use. Its own three retries, each admitted. An
attempt may take 120 s.
"""

import litellm  # noqa: F401 - else the client imports it for seconds when it is made
from infermesh import LMClient

from .contract import MODEL, TEMPERATURE, TIMEOUT, Account, Ask, Request, all_at_once
from .infermesh import rates


async def connect(account: Account) -> Ask:
    """One client."""
    rpm, tpm = rates(account)
    client = LMClient(
        model=f"openai/{MODEL}",
        api_base=account.base_url,
        api_key=account.api_key,
        max_parallel_requests=account.concurrency,
        rpm=rpm,
        tpm=tpm,
        max_request_burst=account.rpm,
        max_token_burst=account.tpm,
        timeout=TIMEOUT,
    )

    async def ask(request: Request) -> bool:
        result = await client.agenerate(request.messages, max_tokens=request.max_tokens, temperature=TEMPERATURE)
        return bool(result.output_text)

    return ask


run = all_at_once(connect)
