"""An async client for Kimi's chat completions that never exceeds the limits of the account.

::

    from kimi_async import AsyncKimi, RateLimits

    async with AsyncKimi(model="kimi-k2.6", limits=RateLimits.tier(1)) as kimi:
        print(await kimi.ask("用一句话介绍月亮"))

==============================  ==========================================================================
limits, errors, events          what an account may do; what can go wrong; what is told on the way
window, budgets                 the sliding log; the rule of admission and its proof. Pure arithmetic
ledger, reservation             where costs are recorded; one cost held, from admission to its one ending
line, pace, limiter             who is next; smoothing; ``RateLimiter``
refusal, responses, retry       what a 429 says; which exception an answer becomes; what is tried again
vocabulary, tokens, models      Kimi's tokens, exactly; what each model can do and costs
network, connections, transport sockets; the connection pool; ``RateLimitTransport``, where limiting happens
chat, exchange, fanout, client  the wire; one request; many, few at a time; ``AsyncKimi``
batch, cli, mock                files of prompts; the command line; a gateway to try it all against
==============================  ==========================================================================
"""

from .chat import BatchRequest, BatchResult, ChatCompletion
from .client import AsyncKimi
from .errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    DailyBudgetExhausted,
    EngineOverloadedError,
    InternalServerError,
    InvalidResponseError,
    KimiError,
    LimiterClosed,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
    RequestTooLarge,
    WaitTooLong,
)
from .ledger import open_ledger
from .limiter import RateLimiter
from .limits import Cost, RateLimits, Usage
from .reservation import Reservation
from .tokens import TokenCounter
from .transport import RateLimitTransport

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncKimi",
    "AuthenticationError",
    "BadRequestError",
    "BatchRequest",
    "BatchResult",
    "ChatCompletion",
    "ConfigurationError",
    "Cost",
    "DailyBudgetExhausted",
    "EngineOverloadedError",
    "InternalServerError",
    "InvalidResponseError",
    "KimiError",
    "LimiterClosed",
    "NotFoundError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "RateLimitError",
    "RateLimitTransport",
    "RateLimiter",
    "RateLimits",
    "RequestTooLarge",
    "Reservation",
    "TokenCounter",
    "Usage",
    "WaitTooLong",
    "open_ledger",
]
