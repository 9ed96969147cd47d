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
chat, assembly, stream          the wire; chunks put together; a streamed answer
parameters, exchange            what a request can carry; one request, tried until it is answered
completions, conversation       ``kimi.chat.completions``; turns that build on each other
functions, tools                Python functions as tools; the loop that runs them
endpoints, files, batches       the rest of the API
fanout, jsonl, client           many requests, few at a time; files of them; ``AsyncKimi``
httpx2, clients                 the same limits under other clients, such as the openai SDK
batch, cli, mock                files of prompts; the command line; a gateway to try it all against
==============================  ==========================================================================
"""

from .chat import ChatCompletion, ChatCompletionChunk
from .client import AsyncKimi
from .clients import limited_client
from .conversation import Conversation
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
    LedgerUnavailable,
    LimiterClosed,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
    RequestTooLarge,
    StreamBroken,
    ToolRoundsExceeded,
    WaitTooLong,
)
from .jsonl import BatchRequest, BatchResult
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
    "ChatCompletionChunk",
    "ConfigurationError",
    "Conversation",
    "Cost",
    "DailyBudgetExhausted",
    "EngineOverloadedError",
    "InternalServerError",
    "InvalidResponseError",
    "KimiError",
    "LedgerUnavailable",
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
    "StreamBroken",
    "TokenCounter",
    "ToolRoundsExceeded",
    "Usage",
    "WaitTooLong",
    "limited_client",
    "open_ledger",
]
