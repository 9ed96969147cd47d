"""lm-deluge: its client, its own HTTP over aiohttp, buckets of a minute for requests and tokens.

It estimates prompts, four letters a token; it can be told their exact counts instead. Ten attempts, as documented its
default of five, each charged; a 429 pauses all of them for ``Retry-After``, else for a sixth of a minute. An attempt
may take 120 s.
"""

import os
import time
from collections.abc import Callable

import aiohttp
import lm_deluge.client
import lm_deluge.tracker
from lm_deluge import LLMClient, SamplingParams
from lm_deluge.models import register_model
from lm_deluge.prompt import Conversation
from lm_deluge.tracker import StatusTracker

from .contract import MODEL, TEMPERATURE, TIMEOUT, Account, Ask, Request, all_at_once

KEY = "KIMI_BENCHMARK_KEY"
"""The variable of the environment in which it looks for the key."""

ATTEMPTS = 10


async def connect(account: Account) -> Ask:
    """Told the exact counts; as many attempts as others have."""
    return await _connect(account, _Counted.of, max_attempts=ATTEMPTS)


async def connect_as_documented(account: Account) -> Ask:
    """With its own estimates and its own number of attempts."""
    return await _connect(account, lambda request: Conversation().user(request.text))


async def _connect(account: Account, prompt: Callable[[Request], Conversation], **settings: int) -> Ask:
    """One client for all sizes of answers: a size is the client's, not the prompt's, so it is set before each."""
    os.environ[KEY] = account.api_key
    register_model(id=MODEL, name=MODEL, api_base=account.base_url, api_key_env_var=KEY, api_spec="openai")
    client = LLMClient(
        MODEL,
        max_requests_per_minute=account.rpm,
        max_tokens_per_minute=account.tpm,
        max_concurrent_requests=account.concurrency,
        request_timeout=int(TIMEOUT),
        **settings,
    )
    _take_minutes_of(account.minute)
    client.open(total=0, show_progress=False)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=account.concurrency))

    async def ask(request: Request) -> bool:
        client.sampling_params = [SamplingParams(temperature=TEMPERATURE, max_new_tokens=request.max_tokens)]
        response = await client.wait_for(client.start_nowait(prompt(request), http_session=session))
        if response.is_error:
            raise RuntimeError(response.error_message)
        return True

    return ask


class _Counted(Conversation):  # type: ignore[misc]  # its package is elsewhere
    """A prompt whose tokens are known."""

    prompt_tokens: int

    @classmethod
    def of(cls, request: Request) -> "_Counted":
        prompt = cls(Conversation().user(request.text).messages)
        prompt.prompt_tokens = request.prompt_tokens
        return prompt

    def count_tokens(self, max_new_tokens: int = 0, img_tokens: int = 85) -> int:
        """What the request is charged, in place of an estimate."""
        return self.prompt_tokens + max_new_tokens


def _take_minutes_of(seconds: float) -> None:
    """Its minute is 60 s, in three places; where ours is another, time passes for its buckets as much faster."""
    if seconds == 60.0:
        return
    refill, wait = StatusTracker.update_capacity, lm_deluge.client._compute_wait  # noqa: SLF001 - no setting for it

    def update_capacity(tracker: StatusTracker) -> None:
        now = time.time()
        tracker.last_update_time = now - (now - tracker.last_update_time) * 60.0 / seconds
        refill(tracker)

    def compute_wait(tracker: StatusTracker, tokens: int) -> float:
        real: float = wait(tracker, tokens) * seconds / 60.0
        return max(0.001, real)

    StatusTracker.update_capacity = update_capacity
    lm_deluge.client._compute_wait = compute_wait  # noqa: SLF001 - likewise
    lm_deluge.tracker.DEFAULT_COOLDOWN_SECONDS *= seconds / 60.0


run = all_at_once(connect)
run_as_documented = all_at_once(connect_as_documented)
