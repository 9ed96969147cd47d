"""Where limiting happens: an httpx transport that reserves, sends and ends, around any other transport.

Every attempt passes here, retries included, whoever makes it: ``AsyncKimi``, or any client that takes a transport.
"""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Self

import httpx

from .connections import ConnectionStack, tell_when_closed
from .errors import ConfigurationError
from .http11 import Trace
from .limiter import RateLimiter
from .limits import Cost
from .reservation import Reservation
from .responses import refusal_of
from .tokens import TokenCounter

COST = "kimi_async.cost"
"""Request extension: the request's ``Cost``, where its sender knows it already."""

MAX_WAIT = "kimi_async.max_wait"
"""Request extension: seconds that the request may wait in line, in all."""

MAX_REFUSALS = 20
"""Refusals of one request after which its 429 is passed on: by then pauses have grown to whole windows."""

HANG_UP = 0.1
"""Seconds that the slot of a request stays taken after its connection was closed before the answer had ended. The
gateway learns of it a one-way delay later, and so would it of the next request in that slot, which must not be first:
this is how much the two delays may differ."""

_FRAMING = {b"content-length", b"transfer-encoding"}
_HUNG_UP = (asyncio.CancelledError, httpx.TimeoutException)
_NEVER_SENT = (ConfigurationError, httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class RateLimitTransport(httpx.AsyncBaseTransport):
    """Lets chat completions through as the limiter admits them; other requests pass untouched.

    A request whose body has neither ``max_tokens`` nor ``max_completion_tokens`` is sent with the model's default
    made explicit, so that both sides reserve the same. One that the gateway refuses for a budget goes back to its
    place in line and is sent again; other answers are handed on as they are.

    Args:
        limiter: the account's.
        inner: what sends the requests; by default a `ConnectionStack`.
        counter: counts the tokens of requests that come without a cost.

    Raises:
        RequestTooLarge, WaitTooLong, DailyBudgetExhausted: from sending, as ``RateLimiter.acquire`` does.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        inner: httpx.AsyncBaseTransport | None = None,
        *,
        counter: TokenCounter | None = None,
    ) -> None:
        self.limiter = limiter
        self.counter = counter or TokenCounter()
        self._inner = inner or ConnectionStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hung_up: dict[Reservation, bool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Wait for room, send, and give the slot back when the answer has been read or closed."""
        if request.method != "POST" or not request.url.path.endswith("/chat/completions"):
            return await self._inner.handle_async_request(request)
        self._enter_loop()
        cost = request.extensions.get(COST)
        if cost is None:
            request, cost = await self._priced(request)
        return await self._send_until_admitted(request, cost, request.extensions.get(MAX_WAIT))

    async def _send_until_admitted(self, request: httpx.Request, cost: Cost, max_wait: float | None) -> httpx.Response:
        clock = asyncio.get_running_loop().time
        deadline = None if max_wait is None else clock() + max_wait
        trace: Trace | None = request.extensions.get("trace")
        place: int | None = None
        refusals = 0
        while True:
            left = None if deadline is None else max(deadline - clock(), 0.0)
            reservation = await self.limiter.acquire(cost, max_wait=left, place=place)
            response = await self._send(request, reservation, trace)
            if response.status_code != 429:
                self._end_with(response, reservation)
                return response
            refusal = refusal_of(response.headers, await self._read(response, reservation))
            if refusal.budget is None:
                reservation.end()
                return response
            reservation.refused(refusal)
            place = reservation.place
            refusals += 1
            if refusals == MAX_REFUSALS:
                return response

    async def _send(self, request: httpx.Request, reservation: Reservation, trace: Trace | None) -> httpx.Response:
        request.extensions = dict(request.extensions)
        departure = _Departure(reservation, request.extensions, trace)
        try:
            return await self._inner.handle_async_request(request)
        except BaseException as exc:
            if departure.unsent(exc):
                reservation.cancel()
            elif isinstance(exc, _HUNG_UP):
                self._hang_up(reservation)
            else:
                reservation.end(answered=False)
            raise

    def _end_with(self, response: httpx.Response, reservation: Reservation) -> None:
        if response.is_closed:  # a transport that has read the answer itself, such as httpx.MockTransport
            reservation.end()
            return
        tell_when_closed(
            response, lambda ended: reservation.end() if ended else self._hang_up(reservation, answered=True)
        )

    async def _read(self, response: httpx.Response, reservation: Reservation) -> bytes:
        try:
            return await response.aread()
        except BaseException:
            self._hang_up(reservation)
            await response.aclose()
            raise

    def _hang_up(self, reservation: Reservation, *, answered: bool = False) -> None:
        """End it when the gateway can have noticed."""
        if reservation.state == "pending":
            reservation.sent()
        self._hung_up[reservation] = answered
        asyncio.get_running_loop().call_later(HANG_UP, self._noticed, reservation)

    def _noticed(self, reservation: Reservation) -> None:
        answered = self._hung_up.pop(reservation, None)
        if answered is not None:
            reservation.end(answered=answered)

    def _enter_loop(self) -> None:
        """Timers of a loop that has ended never fire."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            for reservation in tuple(self._hung_up):
                self._noticed(reservation)

    async def _priced(self, request: httpx.Request) -> tuple[httpx.Request, Cost]:
        """What a foreign client's request costs, and the request with its ``max_tokens`` explicit."""
        try:
            body = json.loads(await request.aread())
        except ValueError:
            body = None
        try:
            cost = await self.counter.cost(body) if isinstance(body, dict) else None
        except ConfigurationError:
            cost = None
        if cost is None:
            return request, Cost(0)  # Kimi will answer 400
        if body.get("max_tokens") is not None or body.get("max_completion_tokens") is not None:
            return request, cost
        content = json.dumps({**body, "max_tokens": cost.max_tokens}).encode()
        headers = [(name, value) for name, value in request.headers.raw if name.lower() not in _FRAMING]
        explicit = httpx.Request(
            request.method, request.url, headers=headers, content=content, extensions=request.extensions
        )
        return explicit, cost

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()
        for reservation in tuple(self._hung_up):
            self._noticed(reservation)


class _Departure:
    """Watches one request leave, through httpcore's trace extension.

    The stamp that the budgets count from is set when the request's last byte was written. httpcore's events are
    named ``http11.…`` or ``http2.…`` (https://www.encode.io/httpcore/extensions/#trace). They are looked up in the
    request's extensions one by one, and each costs a few microseconds: once the request has left, this steps aside.
    """

    __slots__ = ("_began", "_connecting", "_extensions", "_next", "_reservation")

    def __init__(
        self, reservation: Reservation, extensions: MutableMapping[str, object], following: Trace | None
    ) -> None:
        self._reservation = reservation
        self._extensions = extensions
        self._next = following
        extensions["trace"] = self.trace
        self._connecting = False
        self._began = False

    async def trace(self, event: str, info: dict[str, object]) -> None:
        if event.endswith("send_request_body.complete"):
            if self._began and self._reservation.state == "pending":
                self._reservation.sent()
                self._extensions["trace"] = self._next
        elif event.endswith("send_request_headers.started"):
            # A proxy is asked for a tunnel first, with a request of its own.
            self._began = getattr(info.get("request"), "method", None) != b"CONNECT"
        elif event == "connection.connect_tcp.started":
            self._connecting = True
        if self._next is not None:
            await self._next(event, info)

    def unsent(self, exc: BaseException) -> bool:
        """Whether the request certainly never left, given what became of it."""
        left = self._began or not (self._connecting or isinstance(exc, _NEVER_SENT))
        return not left and self._reservation.state == "pending"
