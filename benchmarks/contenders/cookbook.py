"""The parallel processor of OpenAI's cookbook, written anew from its description: the most copied design there is.

One loop looks every millisecond whether the request at the head fits in two counters, full at first and refilled
evenly; what fits leaves as a task of its own. Five attempts, each charged; after a 429 nothing leaves for a quarter of
a minute. An attempt may take 120 s.

As published, after its pull request 1254, it knows a 429 by the words "rate limit", which Kimi says of tokens and not
of requests or concurrency, and opens aiohttp's default of 100 connections. Its forks repair both: it knows a 429 by
the status, and has no more connections than the account has slots.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence

import aiohttp

from .contract import MODEL, TEMPERATURE, TIMEOUT, Account, Progress, Request

ATTEMPTS = 5
TICK = 0.001
CONNECTIONS = 100
"""Aiohttp's default."""


async def run(account: Account, requests: Sequence[Request], progress: Progress) -> None:
    """With the repairs."""
    await _run(account, requests, progress, repaired=True)


async def run_as_published(account: Account, requests: Sequence[Request], progress: Progress) -> None:
    """Without them."""
    await _run(account, requests, progress, repaired=False)


async def _run(account: Account, requests: Sequence[Request], progress: Progress, *, repaired: bool) -> None:
    """A file of requests, in its order."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=account.concurrency if repaired else CONNECTIONS),
        headers={"Authorization": f"Bearer {account.api_key}"},
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
    ) as session:
        progress.begin()
        await _Processor(account, requests, progress, session, repaired=repaired).run()


class _Processor:
    def __init__(
        self,
        account: Account,
        requests: Sequence[Request],
        progress: Progress,
        session: aiohttp.ClientSession,
        *,
        repaired: bool,
    ) -> None:
        self._account = account
        self._requests = requests
        self._progress = progress
        self._session = session
        self._repaired = repaired
        self._waiting = deque(range(len(requests)))
        self._retries: deque[int] = deque()
        self._attempts = [0] * len(requests)
        self._unfinished = len(requests)
        self._capacity = _Capacity(account)
        self._refused_at = float("-inf")

    async def run(self) -> None:
        """Until every request is answered or given up."""
        async with asyncio.TaskGroup() as tasks:
            head = None
            while self._unfinished:
                if head is None:
                    head = self._next()
                if head is not None and self._capacity.takes(self._requests[head].tokens):
                    tasks.create_task(self._send(head))
                    head = None
                await asyncio.sleep(TICK)
                pause = self._refused_at + self._account.minute / 4 - time.monotonic()
                if pause > 0:
                    await asyncio.sleep(pause)

    def _next(self) -> int | None:
        """Those who try again go first; a request that no counter will ever hold is given up."""
        for queue in (self._retries, self._waiting):
            if queue:
                index = queue.popleft()
                if self._requests[index].tokens <= self._account.tpm:
                    return index
                self._finished(index, "too large")
        return None

    async def _send(self, index: int) -> None:
        self._attempts[index] += 1
        error = await self._attempt(self._requests[index])
        if error and self._attempts[index] < ATTEMPTS:
            self._retries.append(index)
        else:
            self._finished(index, error)

    async def _attempt(self, request: Request) -> str | None:
        """What went wrong."""
        body = {
            "model": MODEL,
            "messages": request.messages,
            "max_tokens": request.max_tokens,
            "temperature": TEMPERATURE,
        }
        try:
            async with self._session.post(f"{self._account.base_url}/chat/completions", json=body) as response:
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            return repr(exc)
        if "error" not in answer:
            return None
        error = answer["error"]
        limited = response.status == 429 if self._repaired else "rate limit" in error["message"].lower()
        if limited:
            self._refused_at = time.monotonic()
        return str(error)

    def _finished(self, index: int, error: str | None) -> None:
        self._progress.finished(index, error)
        self._unfinished -= 1


class _Capacity:
    """Requests and tokens that may leave."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._requests = float(account.rpm)
        self._tokens = float(account.tpm)
        self._filled = time.monotonic()

    def takes(self, tokens: int) -> bool:
        """Take a request and its tokens, if there is room for both."""
        now = time.monotonic()
        minutes, self._filled = (now - self._filled) / self._account.minute, now
        self._requests = min(self._requests + minutes * self._account.rpm, self._account.rpm)
        self._tokens = min(self._tokens + minutes * self._account.tpm, self._account.tpm)
        fits = self._requests >= 1 and self._tokens >= tokens
        if fits:
            self._requests -= 1
            self._tokens -= tokens
        return fits
