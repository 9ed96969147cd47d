"""A ready client with the limiter under it, for the openai SDK and for whoever speaks HTTP himself.

::

    kimi = AsyncOpenAI(
        api_key=os.environ["MOONSHOT_API_KEY"],
        base_url="https://api.moonshot.cn/v1",
        http_client=limited_client(RateLimiter(RateLimits.tier(1))),
    )

Each attempt of the SDK is admitted as a request of its own. What its users see, with either family:

==============================  ====================================================================================
what happens                    what is raised
==============================  ====================================================================================
a 429 for RPM, TPM, concurrency nothing: the request keeps its place in line and is sent again, twenty times at most
a budget that the request can   `RequestTooLarge`, `DailyBudgetExhausted`, as they are, with their numbers, at once;
never have, or not today        nothing was sent
a wait beyond ``max_wait``      `WaitTooLong`, likewise
the limiter was closed          `LimiterClosed`, likewise
a proxy that is none            `ConfigurationError`, likewise
no connection, a broken answer  ``openai.APIConnectionError``, after the SDK's retries; httpx's is its ``__cause__``
no answer in time               ``openai.APITimeoutError``, likewise
429, engine overloaded          ``openai.RateLimitError``, after the SDK's retries
429, no balance                 ``openai.RateLimitError``, at once: its answer tells the SDK not to retry
403, no balance                 ``openai.PermissionDeniedError``, at once
another status                  the SDK's exception for it; it retries 408, 409 and 5xx
==============================  ====================================================================================

This package's own exceptions are `KimiError`, and no ``openai.OpenAIError``: the SDK neither retries nor wraps them,
since they are no errors of HTTP. Time in line counts for none of its timeouts; ``max_wait`` is what bounds it.

A stream that is left before its end holds its slot until it is closed: use the SDK's ``async with``, or its ``close``.
One that is merely dropped waits for Python's garbage collector.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, overload

import httpx

from .errors import ConfigurationError
from .exchange import TIMEOUT
from .limiter import RateLimiter
from .responses import refusal_of
from .tokens import TokenCounter
from .transport import MAX_WAIT, RateLimitTransport

if TYPE_CHECKING:
    import httpx2


@overload
def limited_client(
    limiter: RateLimiter,
    family: Literal["httpx"] = "httpx",
    *,
    max_wait: float | None = None,
    counter: TokenCounter | None = None,
) -> httpx.AsyncClient: ...


@overload
def limited_client(
    limiter: RateLimiter,
    family: Literal["httpx2"],
    *,
    max_wait: float | None = None,
    counter: TokenCounter | None = None,
) -> "httpx2.AsyncClient": ...


def limited_client(
    limiter: RateLimiter,
    family: Literal["httpx", "httpx2"] = "httpx",
    *,
    max_wait: float | None = None,
    counter: TokenCounter | None = None,
) -> "httpx.AsyncClient | httpx2.AsyncClient":
    """A client whose chat completions the limiter lets through as there is room.

    It waits for Kimi as long as `AsyncKimi` does, follows redirects as the SDK's own client does, and takes proxies
    from the environment. For anything else, build a client of your own over `RateLimitTransport`.

    Args:
        limiter: the account's; several clients may share one.
        family: ``"httpx"`` or ``"httpx2"``. The openai SDK takes either from its version 3 on, and only httpx before.
        max_wait: seconds that each attempt may wait in line; None for no bound. A request's own extension
            ``"kimi_async.max_wait"`` goes before it.
        counter: counts the prompts' tokens; by default one of its own.

    Raises:
        ConfigurationError: httpx2 is not installed, or there is no such family.
    """
    options: dict[str, Any] = {
        "timeout": (TIMEOUT.connect, TIMEOUT.read, TIMEOUT.write, TIMEOUT.pool),
        "follow_redirects": True,
        "event_hooks": {"request": [_bound(max_wait)], "response": [_forbid_futile_retries]},
    }
    if family == "httpx":
        return httpx.AsyncClient(transport=RateLimitTransport(limiter, counter=counter), **options)
    if family == "httpx2":
        return _httpx2_client(limiter, counter, options)
    raise ConfigurationError(f"there is no family {family!r}; it is 'httpx' or 'httpx2'")


def _httpx2_client(
    limiter: RateLimiter, counter: TokenCounter | None, options: dict[str, Any]
) -> "httpx2.AsyncClient":
    try:
        import httpx2  # noqa: PLC0415 - optional
    except ModuleNotFoundError as exc:
        raise ConfigurationError("family 'httpx2' needs httpx2, which openai 3 brings: pip install httpx2") from exc
    from .httpx2 import Httpx2RateLimitTransport  # noqa: PLC0415 - imports httpx2

    return httpx2.AsyncClient(transport=Httpx2RateLimitTransport(limiter, counter=counter), **options)


def _bound(max_wait: float | None) -> "Callable[[httpx.Request | httpx2.Request], Awaitable[None]]":
    async def bound(request: "httpx.Request | httpx2.Request") -> None:
        request.extensions.setdefault(MAX_WAIT, max_wait)

    return bound


async def _forbid_futile_retries(response: "httpx.Response | httpx2.Response") -> None:
    """Tell the SDK, in the header that it obeys, not to knock twice more at an empty account."""
    if response.status_code == 429 and refusal_of(response.headers, await response.aread()).kind == "quota":
        response.headers["x-should-retry"] = "false"
