"""One request, tried until it is answered."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable

import httpx
from pydantic import ValidationError

from .chat import ChatCompletion
from .errors import APIConnectionError, APITimeoutError, ConfigurationError, InvalidResponseError
from .events import EventHook, Retrying
from .limits import Cost
from .responses import EXCERPT, status_error
from .retry import RETRIED, retry_delay
from .transport import COST, MAX_WAIT

TIMEOUT = httpx.Timeout(connect=10.0, write=60.0, read=900.0, pool=None)
"""Seconds. Connecting is quick or hopeless; an answer that is not streamed may take as long as Kimi's gateway itself
waits for it, 900 s (platform.kimi.ai, troubleshooting). A slot has its own connection, so none is waited for."""


class Exchange:
    """Sends chat requests through a transport and reads their answers; what fails in passing is tried again.

    httpx's errors are translated here, and only here. The transport is called directly: a chat request needs none of
    ``httpx.AsyncClient``'s cookies, redirects, hooks and authentication flows.

    Args:
        transport: where limiting happens.
        url: of the endpoint.
        api_key: goes into the header and nowhere else.
        timeout: for requests that bring none.
        max_attempts: of one request; refusals for a budget, which the transport handles, do not count.
        on_event: receives `Retrying` before each wait.
        sleep: waits between two attempts; the limiter's ends when that is closed.

    Raises:
        ConfigurationError: no API key, or one that no header can carry.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        *,
        url: str,
        api_key: str | None,
        timeout: httpx.Timeout,
        max_attempts: int,
        on_event: EventHook,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sleep = sleep
        self._transport = transport
        self._url = httpx.URL(url)
        self._headers = httpx.Headers(_headers(api_key))
        self._timeout = timeout
        self._max_attempts = max_attempts
        self._on_event = on_event

    async def complete(
        self,
        content: bytes,
        *,
        cost: Cost,
        model: str,
        timeout: float | httpx.Timeout | None,
        max_wait: float | None,
    ) -> ChatCompletion:
        """The answer to a request.

        Args:
            content: its JSON.
            cost: what the limiter reserves for each attempt.
            model: for the hint of a 404.
            timeout: of each attempt; None for the default.
            max_wait: seconds that it may wait, in line and between attempts together.
        """
        clock = asyncio.get_running_loop().time
        deadline = math.inf if max_wait is None else clock() + max_wait
        chosen = self._timeout if timeout is None else timeouts(timeout)
        attempt = 1
        while True:
            patience = None if max_wait is None else max(deadline - clock(), 0.0)
            extensions = {"timeout": chosen.as_dict(), COST: cost, MAX_WAIT: patience}
            try:
                return await self._attempt(content, model, extensions)
            except RETRIED as exc:
                patience = None if max_wait is None else max(deadline - clock(), 0.0)
                delay = retry_delay(
                    exc, attempt, max_attempts=self._max_attempts, chance=random.random(), patience=patience
                )
                if delay is None:
                    raise
                self._on_event(Retrying(attempt, delay, type(exc).__name__, str(exc)))
            await self._sleep(delay)
            attempt += 1

    async def _attempt(self, content: bytes, model: str, extensions: dict[str, object]) -> ChatCompletion:
        request = httpx.Request(
            "POST",
            self._url,
            headers=self._headers,
            content=content,
            extensions=extensions,
        )
        try:
            response = await self._transport.handle_async_request(request)
            answer = await _read(response)
        except httpx.TimeoutException as exc:
            raise APITimeoutError(f"no answer in time: {_described(exc)}") from exc
        except httpx.RequestError as exc:
            raise APIConnectionError(f"no answer from {request.url.host}: {_described(exc)}") from exc
        if response.status_code != 200:
            raise status_error(response.status_code, response.headers, answer, model=model)
        try:
            completion = ChatCompletion.model_validate_json(answer)
        except ValidationError as exc:
            text = answer.decode(errors="replace")[:EXCERPT]
            raise InvalidResponseError(f"status 200, but no chat completion: {text[:80]!r}", body=text) from exc
        completion._request_id = response.headers.get("msh-request-id")  # noqa: SLF001 - set once, here
        return completion


def timeouts(read: float | httpx.Timeout) -> httpx.Timeout:
    """A number bounds the reads and leaves the other defaults as they are."""
    if isinstance(read, httpx.Timeout):
        return read
    return httpx.Timeout(connect=TIMEOUT.connect, write=TIMEOUT.write, read=read, pool=TIMEOUT.pool)


async def _read(response: httpx.Response) -> bytes:
    try:
        return await response.aread()
    finally:
        await response.aclose()


def _described(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def _headers(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()
    if not key:
        raise ConfigurationError("no API key: pass api_key=, or set MOONSHOT_API_KEY")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigurationError("the API key holds characters that no HTTP header can carry; copy it again")
    return {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": "kimi-async",
    }
