"""Everything that can go wrong, as a tree.

::

    KimiError
    ├── ConfigurationError          the caller's settings or arguments
    ├── RequestTooLarge             no wait can make it fit a budget or the model
    ├── WaitTooLong                 it would fit, but after the caller's deadline
    ├── DailyBudgetExhausted        TPD is spent; resume when the day has moved on
    ├── LedgerUnavailable           the books that processes share cannot be reached
    ├── LimiterClosed               the limiter was closed while the request was in line; it was not sent
    ├── APIConnectionError          no answer: refused, dropped, unreadable
    │   ├── APITimeoutError         no answer in time
    │   └── StreamBroken            a streamed answer broke off; it has what had arrived
    ├── InvalidResponseError        an answer with status 200 that is not what was asked for
    ├── ToolRoundsExceeded          the model went on calling tools
    └── APIStatusError              an answer with an error status
        ├── BadRequestError         400
        ├── AuthenticationError     401
        ├── PermissionDeniedError   403
        ├── NotFoundError           404
        ├── RateLimitError          429, one of the account's budgets
        │   └── EngineOverloadedError   429, Kimi's cluster is busy; no budget of yours
        ├── QuotaExceededError      429 or 403, no balance: recharge, never retry
        └── InternalServerError     5xx

Names and statuses are the openai SDK's where it has them. Errors carry their numbers as attributes; none of
them ever holds the API key or a request header.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict, Unpack

from .chat import ChatCompletion


class KimiError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes:
        messages: where a loop of tool calls failed, the conversation so far; None elsewhere.
    """

    messages: Sequence[Mapping[str, object]] | None = None


class ConfigurationError(KimiError):
    """Settings or arguments that cannot work; the text says which, and what would."""


class RequestTooLarge(KimiError):
    """A request that no wait can make fit.

    Attributes:
        needed: what the request takes of it, in tokens.
        limit: what there is.
        budget: ``"tpm"``, ``"tpd"``, or ``"context"`` for the model's context length.
    """

    def __init__(self, message: str, *, needed: int, limit: int, budget: Literal["tpm", "tpd", "context"]) -> None:
        super().__init__(message)
        self.needed = needed
        self.limit = limit
        self.budget = budget


class WaitTooLong(KimiError):
    """The request would have to wait past the caller's ``max_wait``; it was not sent.

    Attributes:
        wait: seconds it would have to wait, a lower bound where other requests must end first.
        max_wait: seconds the caller allowed.
        budget: what it would wait for.
    """

    def __init__(self, message: str, *, wait: float, max_wait: float, budget: str) -> None:
        super().__init__(message)
        self.wait = wait
        self.max_wait = max_wait
        self.budget = budget


class DailyBudgetExhausted(KimiError):
    """The tokens of the day are spent.

    Attributes:
        resets_in: seconds until this request would fit.
    """

    def __init__(self, message: str, *, resets_in: float) -> None:
        super().__init__(message)
        self.resets_in = resets_in


class LedgerUnavailable(KimiError):
    """The ledger cannot be read or written; the request was not sent, for nobody knows whether there is room."""


class LimiterClosed(KimiError):
    """The limiter was closed before the request was sent."""


class APIConnectionError(KimiError):
    """No answer came: the connection failed, was dropped, or broke HTTP."""


class APITimeoutError(APIConnectionError):
    """No answer came in time."""


class StreamBroken(APIConnectionError):
    """A streamed answer broke off after its first chunk. It is not tried again: it was paid for.

    Its cause says how; it has none where the reader itself closed the stream, or was cancelled.

    Attributes:
        partial: what had arrived, put together; its ``finish_reason`` is None where a choice was not finished.
    """

    def __init__(self, message: str, *, partial: ChatCompletion) -> None:
        super().__init__(message)
        self.partial = partial


class ToolRoundsExceeded(KimiError):
    """The model called tools again in the last round that it was given.

    Attributes:
        rounds: how many it was given.
        messages: the conversation up to the results of the last round; the calls after it were not run.
    """

    def __init__(self, message: str, *, rounds: int, messages: Sequence[Mapping[str, object]]) -> None:
        super().__init__(message)
        self.rounds = rounds
        self.messages = messages


class InvalidResponseError(KimiError):
    """Status 200, but not what was asked for: no JSON of a chat completion, or not of the format wanted.

    Attributes:
        body: the first 500 characters of what came instead.
    """

    def __init__(self, message: str, *, body: str) -> None:
        super().__init__(message)
        self.body = body


class APIStatusError(KimiError):
    """Kimi answered with an error status.

    Attributes:
        status_code: the HTTP status.
        type: ``error.type`` of Kimi's envelope, such as ``"rate_limit_reached_error"``; None where absent.
        request_id: ``Msh-Request-Id`` of the answer, for Kimi's support; None where absent.
        retry_after: seconds the server asked to wait; None where it did not.
        body: the first 500 characters of the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        type: str | None = None,  # noqa: A002 - the wire's own name
        request_id: str | None = None,
        retry_after: float | None = None,
        body: str = "",
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.type = type
        self.request_id = request_id
        self.retry_after = retry_after
        self.body = body


class _Answer(TypedDict):
    """What `APIStatusError` is made of."""

    status_code: int
    type: NotRequired[str | None]
    request_id: NotRequired[str | None]
    retry_after: NotRequired[float | None]
    body: NotRequired[str]


class BadRequestError(APIStatusError):
    """400: the request is wrong, or its content was refused.

    Attributes:
        limit: the model's context length in tokens, if the request exceeded it; None where the answer does not say.
        requested: the tokens that it asked for, prompt and ``max_tokens``; likewise.
    """

    def __init__(
        self, message: str, *, limit: int | None = None, requested: int | None = None, **answer: Unpack[_Answer]
    ) -> None:
        super().__init__(message, **answer)
        self.limit = limit
        self.requested = requested


class AuthenticationError(APIStatusError):
    """401: the key is wrong, or belongs to Kimi's other site."""


class PermissionDeniedError(APIStatusError):
    """403: the key may not do this."""


class NotFoundError(APIStatusError):
    """404: no such endpoint, or a model that is unknown, retired or not yours."""


class RateLimitError(APIStatusError):
    """429: a budget of the account, refused more often than the limiter may try again.

    ``retry_after`` is the text's where no header has it. All of these are None where the answer does not say.

    Attributes:
        budget: ``"concurrency"``, ``"rpm"``, ``"tpm"`` or ``"tpd"``.
        scope: whose it is, in Kimi's words: ``"organization"``, ``"project"``, ``"user+model"``.
        limit: the budget as the gateway states it.
        current: tokens in the gateway's window, the refused request's own included.
    """

    def __init__(
        self,
        message: str,
        *,
        budget: str | None = None,
        scope: str | None = None,
        limit: int | None = None,
        current: int | None = None,
        **answer: Unpack[_Answer],
    ) -> None:
        super().__init__(message, **answer)
        self.budget = budget
        self.scope = scope
        self.limit = limit
        self.current = current


class EngineOverloadedError(RateLimitError):
    """429: Kimi's cluster is busy. No budget of the account is involved."""


class QuotaExceededError(APIStatusError):
    """429 or 403: the account has no balance. Nothing but a recharge helps."""


class InternalServerError(APIStatusError):
    """5xx: Kimi's side failed."""
