"""The wire: what Kimi answers, and the lines of batch files, as pydantic models that keep unknown fields."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from .errors import KimiError

MessageInput = Mapping[str, object] | BaseModel
"""A message of a request: a dict such as ``{"role": "user", "content": "..."}``, or one that Kimi answered."""


Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
Number = Annotated[int, BeforeValidator(lambda value: 0 if value is None else value)]
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


class FunctionCall(WireModel):
    """A function that the model wants called; ``arguments`` is JSON, not always valid."""

    name: str = ""
    arguments: str = ""


class ToolCall(WireModel):
    """One call of a tool."""

    id: str = ""
    type: str = "function"
    function: FunctionCall = Field(default_factory=FunctionCall)


class Message(WireModel):
    """What the model said; ``content`` is None where it only calls tools."""

    role: Text = "assistant"
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(WireModel):
    """One of the ``n`` answers. ``finish_reason`` is ``"stop"``, ``"length"`` or ``"tool_calls"``."""

    index: Number = 0
    message: Message
    finish_reason: str | None = None


class ChatCompletion(WireModel):
    """The answer to a chat request."""

    id: Text = ""
    object: Text = "chat.completion"
    created: Number = 0
    model: Text = ""
    choices: list[Choice] = Field(min_length=1)
    usage: CompletionUsage | None = None
    _request_id: str | None = PrivateAttr(default=None)

    @property
    def request_id(self) -> str | None:
        """``Msh-Request-Id`` of the answer, for Kimi's support."""
        return self._request_id

    @property
    def text(self) -> str:
        """The first choice's content, empty where there is none."""
        return self.choices[0].message.content or ""


class BatchRequest(BaseModel):
    """One request of a batch, in the form of a line of Kimi's and OpenAI's batch files.

    ``body`` is a chat completions request; ``line`` is where it came from, if from a file.
    """

    model_config = ConfigDict(extra="ignore")

    custom_id: str = Field(min_length=1)
    method: Literal["POST"] = "POST"
    url: Literal["/v1/chat/completions"] = "/v1/chat/completions"
    body: dict[str, object]
    line: int | None = Field(default=None, exclude=True)


class BatchResult(BaseModel):
    """What became of one request: exactly one of ``completion`` and ``error`` is set."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    custom_id: str
    completion: ChatCompletion | None = None
    error: KimiError | None = None

    @property
    def text(self) -> str:
        """The answer's text. Raises the error where there is no answer."""
        if self.completion is None:
            raise self.error or KimiError(f"{self.custom_id} has no answer")
        return self.completion.text


def plain(message: MessageInput) -> Mapping[str, object]:
    """A message as it goes over the wire; one that Kimi answered goes back with just the fields it had."""
    return message.model_dump(exclude_unset=True, exclude_none=True) if isinstance(message, BaseModel) else message


def as_messages(prompt: str | Sequence[MessageInput], system: str | None = None) -> list[Mapping[str, object]]:
    """A prompt as messages, with the system's first."""
    messages: list[Mapping[str, object]] = [{"role": "system", "content": system}] if system else []
    if isinstance(prompt, str):
        return [*messages, {"role": "user", "content": prompt}]
    return [*messages, *map(plain, prompt)]
