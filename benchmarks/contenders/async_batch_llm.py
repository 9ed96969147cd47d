"""async-batch-llm: a batch in which buckets of a minute for requests and tokens are served first come, first served.

Its strategy calls ``AsyncOpenAI``, whose retries are off so that it sees every 429. Its own retries: three attempts,
and twenty after 429s, which pause everything; the pause is a quarter of a minute, where its default is five. An
attempt may take 120 s.

Full buckets let twice the limits into a sliding minute. With low bursts they hold a twelfth of a minute, under limits
lowered by as much, and by the largest request.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from async_batch_llm import (
    CallableStrategy,
    CallOutcome,
    ProcessorConfig,
    RateLimitConfig,
    TokenEstimate,
    process_prompts,
)
from async_batch_llm.classifiers import OpenAIErrorClassifier
from openai import AsyncOpenAI

from .contract import TIMEOUT, Account, Progress, Request
from .openai_sdk import completed

BURST = 1 / 12
"""Of a minute."""


async def run(account: Account, requests: Sequence[Request], progress: Progress) -> None:
    """No usage is reported, so a reservation is kept whole: Kimi gives nothing back."""
    await _run(account, requests, progress, _Quota.whole(account))


async def run_low_burst(account: Account, requests: Sequence[Request], progress: Progress) -> None:
    """Likewise; no sliding minute holds more than the limits."""
    await _run(account, requests, progress, _Quota.low_burst(account, requests))


async def run_as_documented(account: Account, requests: Sequence[Request], progress: Progress) -> None:
    """Usage is reported, and what was not used goes back to the bucket."""
    await _run(account, requests, progress, _Quota.whole(account), refunds=True)


@dataclass(frozen=True, slots=True)
class _Quota:
    """What it is told.

    Attributes:
        rpm: requests that its buckets are refilled with in a minute.
        tpm: tokens, likewise.
        burst: what full buckets hold, in seconds of refilling.
    """

    rpm: float
    tpm: float
    burst: float

    @classmethod
    def whole(cls, account: Account) -> "_Quota":
        return cls(account.rpm, account.tpm, account.minute)

    @classmethod
    def low_burst(cls, account: Account, requests: Sequence[Request]) -> "_Quota":
        largest = max((request.tokens for request in requests if request.tokens <= account.tpm), default=0)
        tpm = min(account.tpm / (1 + BURST), account.tpm - largest)
        return cls(account.rpm / (1 + BURST), max(1.0, tpm), account.minute * BURST)


async def _run(
    account: Account, requests: Sequence[Request], progress: Progress, quota: _Quota, *, refunds: bool = False
) -> None:
    client = AsyncOpenAI(base_url=account.base_url, api_key=account.api_key, timeout=TIMEOUT, max_retries=0)

    async def invoke(prompt: str, *, attempt: int, timeout: float | None, state: object) -> CallOutcome:
        used = await completed(client, requests[int(prompt)])
        progress.finished(int(prompt))
        return CallOutcome(output=prompt, token_usage={"total_tokens": used} if refunds else {})

    def estimate(prompt: str, *, strategy: object, attempt: int, state: object) -> TokenEstimate:
        request = requests[int(prompt)]
        return TokenEstimate(request.prompt_tokens, request.max_tokens)

    strategy = CallableStrategy(invoke, error_classifier=OpenAIErrorClassifier(), max_concurrency=account.concurrency)
    prompts = [(str(index), str(index)) for index in range(len(requests))]
    config = _config(account, quota, estimate)
    progress.begin()
    batch = await process_prompts(strategy, prompts, config=config)
    for item in batch.results:
        if not item.success:
            progress.finished(int(item.item_id), f"{item.error}"[:300])


def _config(account: Account, quota: _Quota, estimate: object) -> ProcessorConfig:
    """Its minute is 60 s: with the limits of 60 s and the burst of our minute, its buckets are exactly ours."""
    scale = 60.0 / account.minute
    pauses = RateLimitConfig(
        cooldown_seconds=15.0 / scale,
        max_cooldown_seconds=300.0 / scale,
        slow_start_initial_delay=2.0 / scale,
        slow_start_final_delay=0.1 / scale,
    )
    return ProcessorConfig(
        concurrency=account.concurrency,
        max_requests_per_minute=quota.rpm * scale,
        max_tokens_per_minute=round(quota.tpm * scale),
        token_estimator=estimate,
        quota_burst_seconds=quota.burst,
        rate_limit=pauses,
        attempt_timeout=TIMEOUT,
    )
