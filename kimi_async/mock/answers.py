"""What the gateway writes: Kimi's envelopes, its exact words, and the bytes of a completion.

Texts are those seen in the wild in 2025 and 2026 (MoonshotAI/kimi-cli issues 1599 and 2318, MoonshotAI/Kimi-K2
issue 34), not the templates of the error page, whose word order differs. The account in them is invented.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from pydantic_core import to_json

from kimi_async import models

from .account import Refusal
from .fate import Fate
from .replies import Reply, ToolCall
from .requests import ChatRequest
from .rules import InvalidRequest

_ACCOUNT = "org-00000000000000000000000000000000<ak-mock0000000000000000>"
_MSH_HEADERS = (
    (b"msh-uid", b"mock000000000000"),
    (b"msh-gid", b"mock-tier"),
    (b"msh-org-id", b"org-00000000000000000000000000000000"),
    (b"msh-project-id", b"proj-00000000000000000000000000000000"),
    (b"msh-trace-mode", b"on"),
)
Headers = tuple[tuple[bytes, bytes], ...]
_JSON = (b"content-type", b"application/json; charset=utf-8")

_CACHE_CHUNK = 256
"""Tokens; Kimi caches longer prefixes in whole chunks of this many (platform.kimi.ai/docs)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, ready to be sent.

    Attributes:
        cut: bytes of the body after which the connection is closed; None sends all of it.
    """

    status: int
    body: bytes
    headers: Headers = (_JSON,)
    cut: int | None = None

    def signed(self, request_id: bytes) -> list[tuple[bytes, bytes]]:
        """All headers, its length among them."""
        return [*signed(self.headers, request_id), (b"content-length", b"%d" % len(self.body))]


class Usage(NamedTuple):
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def of_one(self, completion_tokens: int) -> "Usage":
        """That of one choice among several: the prompt is everyone's."""
        return Usage(self.prompt_tokens, completion_tokens, self.cached_tokens)

    def content(self) -> dict[str, int]:
        """As it stands in an answer."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "cached_tokens": self.cached_tokens,
        }


def signed(headers: Headers, request_id: bytes) -> list[tuple[bytes, bytes]]:
    """Those headers, Kimi's own, and the id of the request."""
    return [*headers, (b"msh-request-id", request_id), (b"x-msh-trace-id", request_id), *_MSH_HEADERS]


def json_answer(content: object) -> Answer:
    """Status 200 with ``content`` as JSON."""
    return Answer(200, to_json(content))


def envelope(kind: str, message: str) -> dict[str, object]:
    """An error as JSON."""
    return {"error": {"message": message, "type": kind}}


def invalid(exc: InvalidRequest) -> Answer:
    """The error that a request has earned."""
    return error(exc.status, exc.kind, str(exc))


def error(status: int, kind: str, message: str, *, retry_after: int | None = None) -> Answer:
    """Kimi's error envelope: a message and a type, nothing else."""
    body = to_json(envelope(kind, message))
    headers = (_JSON,) if retry_after is None else (_JSON, (b"retry-after", b"%d" % retry_after))
    return Answer(status, body, headers)


def refused(refusal: Refusal) -> Answer:
    """The 429 that names the limit."""
    again = f"please try again after {refusal.retry_after} seconds"
    texts = {
        "concurrency": f"max organization concurrency: {refusal.limit}, {again}",
        "rpm": f"organization max RPM: {refusal.limit}, {again}",
        "tpm": f"organization TPM rate limit, current: {refusal.current}, limit: {refusal.limit}",
        "tpd": f"organization TPD rate limit, current: {refusal.current}, limit: {refusal.limit}",
    }
    message = f"Your account {_ACCOUNT} request reached {texts[refusal.budget]}"
    return error(429, "rate_limit_reached_error", message, retry_after=refusal.retry_after)


OVERLOADED = error(429, "engine_overloaded_error", "The engine is currently overloaded, please try again later")
"""Without ``Retry-After``, as captured in March 2026."""


def broken(throw: float) -> Answer:
    """A proxy's HTML page with status 500, 503 or 504, by a throw in [0, 1)."""
    status, reason = (
        (500, "Internal Server Error"),
        (503, "Service Temporarily Unavailable"),
        (504, "Gateway Time-out"),
    )[int(throw * 3)]
    page = (
        f"<html>\r\n<head><title>{status} {reason}</title></head>\r\n<body>\r\n"
        f"<center><h1>{status} {reason}</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    )
    return Answer(status, page.encode(), ((b"content-type", b"text/html"),))


def garbled(answer: Answer, throw: float) -> Answer:
    """The same answer, cut off somewhere or replaced by something that is no JSON, by a throw in [0, 1)."""
    if throw < 0.5:
        return Answer(answer.status, answer.body[: int(throw * 2 * len(answer.body))], answer.headers)
    return Answer(answer.status, b"<html>upstream connect error</html>", answer.headers)


def truncated(answer: Answer, throw: float) -> Answer:
    """The same answer, its connection closed in the middle of the body, by a throw in [0, 1)."""
    return replace(answer, cut=1 + int(throw * (len(answer.body) - 1)))


def usage(request: ChatRequest, fate: Fate, replies: Iterable[Reply]) -> Usage:
    """What is billed: the prompt once, all choices, and how much of the prompt was known."""
    caches = fate.repeated and request.prompt_tokens > _CACHE_CHUNK
    cached = request.prompt_tokens // _CACHE_CHUNK * _CACHE_CHUNK if caches else 0
    return Usage(request.prompt_tokens, sum([reply.tokens for reply in replies]), cached)


def completion(request: ChatRequest, fate: Fate, replies: Iterable[Reply], used: Usage) -> dict[str, object]:
    """A chat completion as in Kimi's API reference, ``cached_tokens`` included."""
    return {
        "id": f"chatcmpl-{fate.identity}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [
            {"index": index, "message": _message(reply), "finish_reason": reply.finish_reason}
            for index, reply in enumerate(replies)
        ],
        "usage": used.content(),
    }


def _message(reply: Reply) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": reply.content}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [_call(number, call) for number, call in enumerate(reply.tool_calls)]
    return message


def _call(number: int, call: ToolCall) -> dict[str, object]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": number, "id": call.identity, "type": call.kind, "function": function}


def model_list() -> Answer:
    """``GET /v1/models``. All live models take images and videos (Kimi's model list, September 2026)."""
    names = models.live_models()
    found = [model for name in names if (model := models.find(name)) is not None]
    return json_answer(
        {
            "object": "list",
            "data": [
                {
                    "id": model.name,
                    "object": "model",
                    "created": 1_760_000_000,
                    "owned_by": "moonshot",
                    "context_length": model.context,
                    "supports_image_in": True,
                    "supports_video_in": True,
                    "supports_reasoning": model.thinking != "never",
                }
                for model in found
            ],
        }
    )


BALANCE = json_answer(
    {
        "code": 0,
        "data": {"available_balance": 49.58894, "voucher_balance": 46.58893, "cash_balance": 3.00001},
        "scode": "0x0",
        "status": True,
    }
)
"""The example of Kimi's balance page."""
