"""The wire: what Kimi answers, whole or in chunks, as pydantic models that keep unknown fields."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

MessageInput = Mapping[str, object] | BaseModel
"""A message of a request: a dict such as ``{"role": "user", "content": "..."}``, or one that Kimi answered."""


Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
Number = Annotated[int, BeforeValidator(lambda value: 0 if value is None else value)]
Item = TypeVar("Item")
Some = Annotated[list[Item], BeforeValidator(lambda value: [] if value is None else value)]
Object = BeforeValidator(lambda value: {} if value is None else value)
"""Null counts as absent: an answer that was paid for is not thrown away over a field that nobody needs."""


class WireModel(BaseModel):
    """A value from the wire; fields that are not declared are kept."""

    model_config = ConfigDict(extra="allow")


class CompletionUsage(WireModel):
    """Tokens used and billed; ``completion_tokens`` holds those spent on reasoning."""

    prompt_tokens: Number = 0
    completion_tokens: Number = 0
    total_tokens: Number = 0
    cached_tokens: int | None = None
    prompt_tokens_details: dict[str, object] | None = None

    @model_validator(mode="after")
    def _read_details(self) -> Self:
        """Newer answers have ``cached_tokens`` only in the details."""
        if self.cached_tokens is None and self.prompt_tokens_details:
            cached = self.prompt_tokens_details.get("cached_tokens")
            if isinstance(cached, int):
                self.cached_tokens = cached
        return self


class FunctionCall(WireModel):
    """A function that the model wants called; ``arguments`` is JSON, not always valid."""

    name: Text = ""
    arguments: Text = ""


class ToolCall(WireModel):
    """One call of a tool."""

    id: Text = ""
    type: Text = "function"
    function: Annotated[FunctionCall, Object] = Field(default_factory=FunctionCall)


class Message(WireModel):
    """What the model said; ``content`` is None where it only calls tools."""

    role: Text = "assistant"
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None


class Choice(WireModel):
    """One of the ``n`` answers. ``finish_reason`` is ``"stop"``, ``"length"`` or ``"tool_calls"``.

    ``usage`` is this choice's own, where the answer was streamed; prompt tokens are the same in each.
    """

    index: Number = 0
    message: Message
    finish_reason: str | None = None
    logprobs: dict[str, object] | None = None
    usage: CompletionUsage | None = None


class ChatCompletion(WireModel):
    """The answer to a chat request."""

    id: Text = ""
    object: Text = "chat.completion"
    created: Number = 0
    model: Text = ""
    choices: list[Choice] = Field(min_length=1)
    usage: CompletionUsage | None = None
    system_fingerprint: str | None = None
    _request_id: str | None = PrivateAttr(default=None)

    @property
    def request_id(self) -> str | None:
        """``Msh-Request-Id`` of the answer, for Kimi's support."""
        return self._request_id

    @property
    def text(self) -> str:
        """The first choice's content, empty where there is none."""
        return self.choices[0].message.content or ""


class FunctionDelta(WireModel):
    """A piece of a call: the name comes once, ``arguments`` in fragments."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(WireModel):
    """A piece of one call of a tool; ``index`` says which call it continues."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class Delta(WireModel):
    """What a chunk adds to a message; ``reasoning_content`` comes before ``content``."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(WireModel):
    """What a chunk adds to one of the ``n`` answers; the one that has ``finish_reason`` also has ``usage``."""

    index: Number = 0
    delta: Annotated[Delta, Object] = Field(default_factory=Delta)
    finish_reason: str | None = None
    logprobs: dict[str, object] | None = None
    usage: CompletionUsage | None = None


class ChatCompletionChunk(WireModel):
    """A piece of a streamed answer. With ``include_usage`` the last one has no choices, but the ``usage`` of all."""

    id: Text = ""
    object: Text = "chat.completion.chunk"
    created: Number = 0
    model: Text = ""
    choices: Some[ChunkChoice] = Field(default_factory=list)
    usage: CompletionUsage | None = None
    system_fingerprint: str | None = None

    @property
    def text(self) -> str:
        """What it adds to the first choice's content, empty where it adds nothing."""
        return "".join(choice.delta.content or "" for choice in self.choices if choice.index == 0)


def plain(message: MessageInput) -> Mapping[str, object]:
    """A message as it goes over the wire; one that Kimi answered goes back with just the fields it had."""
    if isinstance(message, BaseModel):
        return _dumped(message)
    return {name: _plain_value(value) for name, value in message.items()}


def _plain_value(value: object) -> object:
    """The same for what is inside: parts, or calls that Kimi answered, in a message that somebody wrote."""
    if isinstance(value, str):  # most are; to ask what else it is takes longer than all the rest
        return value
    if isinstance(value, BaseModel):
        return _dumped(value)
    if isinstance(value, list | tuple):
        return [_plain_value(one) for one in value]
    return plain(value) if isinstance(value, Mapping) else value


def _dumped(model: BaseModel) -> dict[str, object]:
    """Without nulls, but for the ``content`` of a message that only calls tools."""
    fields = model.model_dump(exclude_unset=True, exclude_none=True)
    return {"content": None, **fields} if "content" in model.model_fields_set - fields.keys() else fields


def as_messages(prompt: str | Sequence[MessageInput], system: str | None = None) -> list[Mapping[str, object]]:
    """A prompt as messages, with the system's first."""
    messages: list[Mapping[str, object]] = [{"role": "system", "content": system}] if system else []
    if isinstance(prompt, str):
        return [*messages, {"role": "user", "content": prompt}]
    return [*messages, *map(plain, prompt)]
