"""An answer that is an error: what it says, and the exception that it becomes."""

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from html import unescape
from typing import Any

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
from .refusal import SUBSCRIPTION, Refusal, parse_refusal

EXCERPT = 500
"""Characters of an unexpected answer that an error carries."""

_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitError,
}


_TOO_LONG = re.compile(r"exceeded model token limit ?: ?(\d+)(?: \(requested: (\d+)\))?")
_PAGE = re.compile(r"<(?:!doctype html|html)\b", re.IGNORECASE)
_TITLE = re.compile(r"<title>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


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
    """The exception for an answer whose status is not 200, with its numbers, and a hint where one helps."""
    error = _read(content)
    refusal = parse_refusal(error.message, type=error.type, retry_after=retry_after(headers))
    kind = _kind(status, refusal)
    return kind(
        f"{status}: {error.message or '(no message)'}{_hint(kind, status, error, model)}",
        status_code=status,
        type=error.type,
        request_id=headers.get("msh-request-id"),
        retry_after=refusal.retry_after if kind is RateLimitError else retry_after(headers),
        body=content.decode(errors="replace")[:EXCERPT],
        **_numbers(kind, error, refusal),
    )


def _read(content: bytes) -> _Error:
    try:
        return _Envelope.model_validate_json(content).error
    except ValidationError:
        text = content.decode(errors="replace").strip()
    if _PAGE.match(text):
        title = _TITLE.search(text)
        words = unescape(title[1] if title else _TAG.sub(" ", text)).split()
        text = f"{' '.join(words)} (a page of HTML)"
    return _Error(message=text[:EXCERPT])


def _kind(status: int, refusal: Refusal) -> type[APIStatusError]:
    if status in {403, 429} and refusal.kind == "quota":
        return QuotaExceededError
    if status == 429 and refusal.kind == "overloaded":
        return EngineOverloadedError
    return _BY_STATUS.get(status, InternalServerError if status >= 500 else APIStatusError)


def _numbers(kind: type[APIStatusError], error: _Error, refusal: Refusal) -> dict[str, Any]:
    if kind is RateLimitError:
        return {name: getattr(refusal, name) for name in ("budget", "scope", "limit", "current")}
    if kind is BadRequestError and (match := _TOO_LONG.search(error.message)):
        return {"limit": int(match[1]), "requested": int(match[2]) if match[2] else None}
    return {}


def _hint(kind: type[APIStatusError], status: int, error: _Error, model: str) -> str:
    if kind is AuthenticationError:
        return " (keys of api.moonshot.cn and api.moonshot.ai are not interchangeable: check the base URL)"
    if kind is NotFoundError and model:
        return f" (asked for {model!r}; live models are {', '.join(live_models())})"
    if kind is QuotaExceededError and error.type != SUBSCRIPTION:
        return " (only a recharge helps; this is not retried)"
    if status == 504:
        return " (the gateway waits 900 s for a whole answer: ask for a shorter one, or stream it)"
    return ""
