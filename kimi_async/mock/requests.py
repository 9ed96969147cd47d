"""What the gateway reads: a chat completion request and its cost, or the error that Kimi would answer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from kimi_async import models
from kimi_async.limits import Cost
from kimi_async.parameters import MAX_CHOICES, ROLES

from .replies import PROSE, Script, script
from .rules import MEDIA, InvalidRequest, check, media_urls, not_found, thinks

CountPrompt = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None, str], int]
"""Tokens of messages and tools as that model counts them, its chat template included.

Images and videos may be estimated upwards, as may what a template has beyond K2's. Without images and videos, and
for a model without a name, it is what the prompt has for certain.
"""

_UPLOADED = "ms://"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What matters of a valid request.

    Attributes:
        max_tokens: the model's default where the body has none.
        script: what it makes the model say.
        stream: whether the answer comes in chunks.
        include_usage: whether a last chunk has the usage of all choices.
        file_ids: uploaded files that its messages refer to.
    """

    model: str
    prompt_tokens: int
    max_tokens: int
    n: int
    script: Script = PROSE
    stream: bool = False
    include_usage: bool = False
    file_ids: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that the gateway charges."""
        return Cost(self.prompt_tokens, self.max_tokens, self.n).tokens


def parse_prompt(body: bytes) -> dict[str, Any]:
    """The body as JSON that has a model and messages.

    Raises:
        InvalidRequest: 400.
    """
    try:
        parsed = from_json(body)
    except ValueError as exc:
        raise InvalidRequest(f"Invalid request: failed to parse the body as JSON: {exc}") from exc
    if not isinstance(parsed, dict):
        raise InvalidRequest("Invalid request: the body must be a JSON object")
    if not isinstance(parsed.get("model"), str):
        raise InvalidRequest("Invalid request: model is required")
    messages = parsed.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("Invalid request: messages must be a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            roles = f"{', '.join(ROLES[:-1])} or {ROLES[-1]}"
            raise InvalidRequest(f"Invalid request: every message must be an object with role {roles}")
    return parsed


def parse_chat(body: bytes, count_prompt: CountPrompt, *, serve_retired: bool) -> ChatRequest:
    """A chat completion request, with its prompt counted.

    Raises:
        InvalidRequest: 400 for a body that makes no sense or does not fit the model, 404 for the model.
    """
    parsed = parse_prompt(body)
    name = parsed["model"]
    model = models.find(name)
    if model is None or (model.retired is not None and not serve_retired):
        raise not_found(f"Not found the model {name} or Permission denied")
    thinking = thinks(model, parsed)
    check(model, parsed, thinking=thinking)
    n = _whole(parsed, "n", most=MAX_CHOICES) or 1
    prompt_tokens = count_prompt(parsed["messages"], parsed.get("tools"), name)
    max_tokens = _whole(parsed, "max_completion_tokens") or _whole(parsed, "max_tokens")
    if max_tokens is None:
        max_tokens = models.default_max_tokens(name, prompt_tokens)
    if prompt_tokens + max_tokens > model.context:
        certain = count_prompt([_without_media(message) for message in parsed["messages"]], parsed.get("tools"), "")
        _check_context(model.context, certain, max_tokens)
    options = parsed.get("stream_options")
    return ChatRequest(
        name,
        prompt_tokens,
        max_tokens,
        n,
        script(parsed, thinking=thinking),
        stream=bool(parsed.get("stream")),
        include_usage=bool(isinstance(options, dict) and options.get("include_usage")),
        file_ids=tuple(_file_ids(parsed["messages"])),
    )


def _check_context(context: int, prompt_tokens: int, max_tokens: int) -> None:
    if prompt_tokens >= context:
        raise InvalidRequest("Input token length too long")
    if prompt_tokens + max_tokens > context:
        raise InvalidRequest(
            f"Invalid request: Your request exceeded model token limit: {context} "
            f"(requested: {prompt_tokens + max_tokens})"
        )


def _without_media(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [
        {name: value for name, value in part.items() if name not in MEDIA} if isinstance(part, dict) else part
        for part in content
    ]
    return {**message, "content": parts}


def _file_ids(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        for url in media_urls(message):
            if url.startswith(_UPLOADED):
                yield url.removeprefix(_UPLOADED)


def _whole(parsed: dict[str, Any], name: str, most: int | None = None) -> int | None:
    value = parsed.get(name)
    if value is None:
        return None
    # JSON's true is an int to Python.
    if type(value) is not int or value < 1 or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise InvalidRequest(f"Invalid request: {name} must be an integer of at least 1{upper}")
    return value
