"""The same limiting for clients of httpx2, the fork of httpx that version 3 of the openai SDK uses.

A request is made anew with httpx's types and passes the one `RateLimitTransport` that there is; its answer, and
whatever is raised, comes back with httpx2's. Where the connections are httpx2's too, that happens once more, the
other way round.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Self

import httpx
import httpx2

from .limiter import RateLimiter
from .tokens import TokenCounter
from .transport import RateLimitTransport


class Httpx2RateLimitTransport(httpx2.AsyncBaseTransport):
    """`RateLimitTransport` for an ``httpx2.AsyncClient``: same arguments, same promises, same extensions.

    Args:
        limiter: the account's.
        inner: what sends the requests; by default a `ConnectionStack`.
        counter: counts the tokens of requests that come without a cost.

    Raises:
        RequestTooLarge, WaitTooLong, DailyBudgetExhausted: from sending, as ``RateLimiter.acquire`` does.
        httpx2.TransportError: where `RateLimitTransport` raises httpx's error of the same name.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        inner: httpx2.AsyncBaseTransport | None = None,
        *,
        counter: TokenCounter | None = None,
    ) -> None:
        self._limited = RateLimitTransport(limiter, None if inner is None else _Inner(inner), counter=counter)
        self.limiter = limiter
        self.counter = self._limited.counter

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Wait for room, send, and give the slot back when the answer has been read or closed."""
        response: httpx2.Response = await _translate(request, _HTTPX, self._limited, _HTTPX2)
        return response

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._limited.aclose()


class _Inner(httpx.AsyncBaseTransport):
    """A transport of httpx2 under one of httpx."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = await _translate(request, _HTTPX2, self._transport, _HTTPX)
        return response

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Body:
    """A body of the one library with the errors of the other."""

    def __init__(self, body: Any, there: "_Library", here: "_Library") -> None:
        self._body = body
        self._there = there
        self._here = here

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._body:
                yield chunk
        except self._there.error as exc:
            raise _renamed(exc, self._here) from exc

    async def aclose(self) -> None:
        try:
            await self._body.aclose()
        except self._there.error as exc:
            raise _renamed(exc, self._here) from exc


class _HttpxBody(_Body, httpx.AsyncByteStream):
    pass


class _Httpx2Body(_Body, httpx2.AsyncByteStream):
    pass


@dataclass(frozen=True, slots=True)
class _Library:
    """httpx or httpx2. They have the same names for all that is used here."""

    names: ModuleType
    error: type[Exception]
    body: type[_Body]
    url: Callable[[str], object]


# A client has a handful of URLs, and parsing one costs more than all the rest of a request.
_HTTPX = _Library(httpx, httpx.RequestError, _HttpxBody, lru_cache(maxsize=64)(httpx.URL))
_HTTPX2 = _Library(httpx2, httpx2.RequestError, _Httpx2Body, lru_cache(maxsize=64)(httpx2.URL))


async def _translate(request: Any, there: _Library, transport: Any, here: _Library) -> Any:
    """Send a request of ``here`` through a transport of ``there``; an answer of ``here``."""
    sent = there.names.Request(
        request.method,
        there.url(str(request.url)),
        headers=request.headers.raw,
        stream=_body(request.stream, here, there),
        extensions=request.extensions,
    )
    try:
        response = await transport.handle_async_request(sent)
    except there.error as exc:
        raise _renamed(exc, here) from exc
    headers = response.headers.raw
    if response.is_closed:  # read already, and decoded
        headers = [(name, value) for name, value in headers if name.lower() != b"content-encoding"]
        body = {"content": response.content}
    else:
        body = {"stream": _body(response.stream, there, here)}
    return here.names.Response(response.status_code, headers=headers, extensions=response.extensions, **body)


def _body(stream: Any, there: _Library, here: _Library) -> Any:
    """A body of ``there`` for ``here``."""
    if type(stream) is there.names.ByteStream:
        return here.names.ByteStream(b"".join(stream))
    return here.body(stream, there, here)


def _renamed(error: Exception, library: _Library) -> Exception:
    """The library's error of the same name, or of the nearest base that it has."""
    name = next(kind.__name__ for kind in type(error).__mro__ if hasattr(library.names, kind.__name__))
    renamed: Exception = getattr(library.names, name)(str(error))
    return renamed
