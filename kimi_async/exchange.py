"""One request, tried until it is answered."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from .errors import APIConnectionError, APITimeoutError, ConfigurationError, InvalidResponseError
from .events import EventHook, Retrying
from .limits import Cost
from .responses import EXCERPT, status_error
from .retry import RETRIED, retry_delay
from .transport import COST, MAX_WAIT

TIMEOUT = httpx.Timeout(connect=10.0, write=60.0, read=900.0, pool=None)
"""Seconds. Connecting is quick or hopeless; an answer that is not streamed may take as long as Kimi's gateway itself
waits for it, 900 s (platform.kimi.ai, troubleshooting). A slot has its own connection, so none is waited for."""

JSON = "application/json"

Answer = TypeVar("Answer")
Read = Callable[[httpx.Response], Awaitable[Answer]]
"""Makes something of an answer with status 200, and closes it; raises InvalidResponseError where it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to the API.

    Attributes:
        method: of HTTP.
        path: after the base URL, such as ``"/chat/completions"``.
        content: the body.
        content_type: of the body.
        params: the query.
        repeatable: whether it may be sent again when its answer was lost: not where it makes something.
        cost: what the limiter reserves for each attempt, where the request counts against the budgets.
        model: for the hint of a 404.
        timeout: of each attempt; None for the default.
        max_wait: seconds that it may wait, in line and between attempts together.
    """

    method: Literal["GET", "POST", "DELETE"] = "POST"
    path: str
    content: bytes = b""
    content_type: str = JSON
    params: dict[str, str] | None = None
    repeatable: bool = True
    cost: Cost | None = None
    model: str = ""
    timeout: float | httpx.Timeout | None = None
    max_wait: float | None = None


class Exchange:
    """Sends requests through a transport and reads their answers; what fails in passing is tried again.

    httpx's errors are translated here, and only here. The transport is called directly: a request to the API needs
    none of ``httpx.AsyncClient``'s cookies, redirects, hooks and authentication flows.

    Args:
        transport: where limiting happens.
        base_url: of the API.
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
        base_url: str,
        api_key: str | None,
        timeout: httpx.Timeout,
        max_attempts: int,
        on_event: EventHook,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sleep = sleep
        self._transport = transport
        self._base_url = base_url
        self._headers = httpx.Headers({"Host": _url(base_url).netloc.decode(), **_headers(api_key)})
        self._timeout = timeout
        self._max_attempts = max_attempts
        self._on_event = on_event

    async def send(self, call: Call, read: Read[Answer]) -> Answer:
        """What ``read`` makes of the answer to a request. Raises what ``kimi_async.errors`` has under KimiError."""
        clock = asyncio.get_running_loop().time
        deadline = math.inf if call.max_wait is None else clock() + call.max_wait
        timeout = self._timeout if call.timeout is None else timeouts(call.timeout)
        attempt = 1
        while True:
            patience = None if call.max_wait is None else max(deadline - clock(), 0.0)
            extensions: dict[str, object] = {"timeout": timeout.as_dict(), COST: call.cost, MAX_WAIT: patience}
            try:
                return await self._attempt(call, extensions, read)
            except RETRIED as exc:
                patience = None if call.max_wait is None else max(deadline - clock(), 0.0)
                delay = retry_delay(
                    exc, attempt, max_attempts=self._max_attempts, chance=random.random(), patience=patience
                )
                if delay is None or not call.repeatable:
                    raise
                self._on_event(Retrying(attempt, delay, type(exc).__name__, str(exc)))
            await self._sleep(delay)
            attempt += 1

    async def _attempt(self, call: Call, extensions: dict[str, object], read: Read[Answer]) -> Answer:
        request = self._request(call, extensions)
        try:
            response = await self._transport.handle_async_request(request)
            if response.status_code != 200:
                raise status_error(response.status_code, response.headers, await body_of(response), model=call.model)
            return await read(response)
        except httpx.TimeoutException as exc:
            raise APITimeoutError(f"no answer in time: {described(exc)}") from exc
        except httpx.RequestError as exc:
            raise APIConnectionError(f"no answer from {request.url.host}: {described(exc)}") from exc

    def _request(self, call: Call, extensions: dict[str, object]) -> httpx.Request:
        """Made from a stream, which leaves headers as they are; from content, it takes httpx three times as long."""
        request = httpx.Request(
            call.method,
            _url(self._base_url + call.path),
            headers=self._headers,
            params=call.params,
            stream=httpx.ByteStream(call.content),
            extensions=extensions,
        )
        request.read()  # whoever sends it may look at its content
        if call.method == "POST":
            request.headers["Content-Length"] = str(len(call.content))
        if call.content_type != JSON:
            request.headers["Content-Type"] = call.content_type
        return request


# Parsing a URL costs as much as the rest of making a request, and chat completions have but one.
_url = lru_cache(maxsize=64)(httpx.URL)


async def body_of(response: httpx.Response) -> bytes:
    """All of an answer, which is closed then."""
    try:
        if response.is_closed or "content-encoding" in response.headers:
            return await response.aread()
        assert isinstance(response.stream, httpx.AsyncByteStream)
        return b"".join([chunk async for chunk in response.stream])  # httpx would decode, cut and count it
    finally:
        await response.aclose()


Wire = TypeVar("Wire", bound=BaseModel)


def as_wire(content: bytes | str, kind: type[Wire], *, what: str) -> Wire:
    """JSON from the wire, validated; raises InvalidResponseError that calls it ``what``."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as exc:
        text = content if isinstance(content, str) else content.decode(errors="replace")
        raise InvalidResponseError(f"status 200, but no {what}: {text[:80]!r}", body=text[:EXCERPT]) from exc


def timeouts(read: float | httpx.Timeout) -> httpx.Timeout:
    """A number bounds the reads and leaves the other defaults as they are."""
    if isinstance(read, httpx.Timeout):
        return read
    if not read > 0:
        raise ConfigurationError(f"timeout={read!r}: must be above 0 seconds")
    return httpx.Timeout(connect=TIMEOUT.connect, write=TIMEOUT.write, read=read, pool=TIMEOUT.pool)


def described(exc: Exception) -> str:
    """An exception's name, and its text if it has one."""
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def _headers(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()
    if not key:
        raise ConfigurationError("no API key: pass api_key=, or set MOONSHOT_API_KEY")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigurationError("the API key holds characters that no HTTP header can carry; copy it again")
    return {
        "Authorization": f"Bearer {key}",
        "Content-Type": JSON,
        "Accept": "*/*",
        "User-Agent": "kimi-async",
    }
