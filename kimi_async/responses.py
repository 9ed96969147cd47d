"""An answer that is an error: what it says, and the exception that it becomes."""

import math
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from pydantic import ValidationError

from .chat import WireModel
from .errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    EngineOverloadedError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
)
from .models import live_models
from .refusal import Refusal, parse_refusal

EXCERPT = 500
"""Characters of an unexpected answer that an error carries."""

_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitError,
}


class _Error(WireModel):
    message: str = ""
    type: str | None = None


class _Envelope(WireModel):
    error: _Error


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` asks for, as a number or as an HTTP date (RFC 9110, 10.2.3); None without one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def refusal_of(headers: Mapping[str, str], content: bytes) -> Refusal:
    """What the answer to a refused request says."""
    error = _read(content)
    return parse_refusal(error.message, type=error.type, retry_after=retry_after(headers))


def status_error(status: int, headers: Mapping[str, str], content: bytes, *, model: str) -> APIStatusError:
    """The exception for an answer whose status is not 200, with a hint where one helps."""
    error = _read(content)
    kind = _BY_STATUS.get(status, InternalServerError if status >= 500 else APIStatusError)
    if status in {403, 429}:
        refusal = parse_refusal(error.message, type=error.type)
        if refusal.kind == "quota":
            kind = QuotaExceededError
        elif refusal.kind == "overloaded" and status == 429:
            kind = EngineOverloadedError
    return kind(
        f"{status}: {error.message or '(no message)'}{_hint(kind, model)}",
        status_code=status,
        type=error.type,
        request_id=headers.get("msh-request-id"),
        retry_after=retry_after(headers),
        body=content.decode(errors="replace")[:EXCERPT],
    )


def _read(content: bytes) -> _Error:
    try:
        return _Envelope.model_validate_json(content).error
    except ValidationError:
        return _Error(message=content.decode(errors="replace").strip()[:EXCERPT])


def _hint(kind: type[APIStatusError], model: str) -> str:
    if kind is AuthenticationError:
        return " (keys of api.moonshot.cn and api.moonshot.ai are not interchangeable: check the base URL)"
    if kind is NotFoundError:
        return f" (asked for {model!r}; live models are {', '.join(live_models())})"
    if kind is QuotaExceededError:
        return " (only a recharge helps; this is not retried)"
    return ""
