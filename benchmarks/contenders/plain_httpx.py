"""``httpx.AsyncClient`` and a semaphore: what one writes by hand.

After a 429, a 5xx or a broken connection it sleeps for ``Retry-After``, else for a second, and tries again: ten
attempts in all. An attempt may take 120 s.
"""

import asyncio

import httpx

from .contract import MODEL, TEMPERATURE, TIMEOUT, Account, Ask, Request, all_at_once

ATTEMPTS = 10
PAUSE = "1"
"""Seconds, where the gateway advises none."""


async def connect(account: Account) -> Ask:
    """With httpx's own bounds: 100 connections, 20 of them kept."""
    return _connect(account, httpx.Limits(max_connections=100, max_keepalive_connections=20))


async def connect_unlimited(account: Account) -> Ask:
    """As many connections as the semaphore lets in."""
    return _connect(account, httpx.Limits())


def _connect(account: Account, limits: httpx.Limits) -> Ask:
    headers = {"Authorization": f"Bearer {account.api_key}"}
    client = httpx.AsyncClient(base_url=account.base_url, headers=headers, timeout=TIMEOUT, limits=limits)
    semaphore = asyncio.Semaphore(account.concurrency)

    async def attempt(body: dict[str, object]) -> httpx.Response | None:
        try:
            return await client.post("/chat/completions", json=body)
        except httpx.TransportError:
            return None

    async def ask(request: Request) -> bool:
        body = {
            "model": MODEL,
            "messages": request.messages,
            "max_tokens": request.max_tokens,
            "temperature": TEMPERATURE,
        }
        async with semaphore:
            for _ in range(ATTEMPTS):
                response = await attempt(body)
                if response is not None and response.status_code != 429 and response.status_code < 500:
                    return bool(response.raise_for_status().json()["choices"][0]["message"]["content"])
                await asyncio.sleep(float(response.headers.get("retry-after", PAUSE) if response else PAUSE))
        return False

    return ask


run = all_at_once(connect)
run_unlimited = all_at_once(connect_unlimited)
