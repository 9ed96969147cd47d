"""LiteLLM's Router, one deployment: usage-based routing, which keeps RPM and TPM by the clock's minute.

It refuses where others wait, and counts tokens only when they are used; eight retries are what makes it wait; as
documented, its default, two. An attempt may take 120 s.
"""

import asyncio
import logging
import time
from collections.abc import Sequence

import litellm
from litellm import Router

from .contract import MODEL, TEMPERATURE, TIMEOUT, Account, Ask, Progress, Request, ask_all

RETRIES = 8


async def connect(account: Account) -> Ask:
    """Enough retries to wait for the next minutes."""
    return _connect(account, RETRIES)


async def connect_as_documented(account: Account) -> Ask:
    """Its default retries."""
    return _connect(account, None)


def _connect(account: Account, retries: int | None) -> Ask:
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    logging.getLogger("LiteLLM Router").setLevel(logging.ERROR)
    deployment = {
        "model": f"openai/{MODEL}",
        "api_base": account.base_url,
        "api_key": account.api_key,
        "rpm": account.rpm,
        "tpm": account.tpm,
        "max_parallel_requests": account.concurrency,
    }
    router = Router(
        model_list=[{"model_name": MODEL, "litellm_params": deployment}],
        routing_strategy="usage-based-routing-v2",
        num_retries=retries,
        timeout=TIMEOUT,
    )

    async def ask(request: Request) -> bool:
        await router.acompletion(
            model=MODEL, messages=request.messages, max_tokens=request.max_tokens, temperature=TEMPERATURE
        )
        return True

    return ask


async def run(account: Account, requests: Sequence[Request], progress: Progress) -> None:
    """With enough retries."""
    await _from_the_next_minute(await connect(account), requests, progress)


async def run_as_documented(account: Account, requests: Sequence[Request], progress: Progress) -> None:
    """With its default retries."""
    await _from_the_next_minute(await connect_as_documented(account), requests, progress)


async def _from_the_next_minute(ask: Ask, requests: Sequence[Request], progress: Progress) -> None:
    """Of the clock, so that all runs meet its counters alike."""
    progress.begin()
    await asyncio.sleep(-time.time() % 60.0)
    await ask_all(ask, requests, progress)
