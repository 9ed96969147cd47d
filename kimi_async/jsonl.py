"""Batches: a request, its result, and the lines of files that hold requests, in any of four forms.

=====================================================================  ========================================
``{"custom_id", "method", "url", "body": {...}}``                      OpenAI's and Kimi's Batch form
``{"prompt": "..."}``                                                  one prompt
``{"messages": [...]}``                                                a conversation
``"..."``                                                              a JSON string: one prompt
=====================================================================  ========================================

Next to ``prompt`` or ``messages`` a line may carry ``custom_id`` and any field of a request, but not the other one.
A line without a ``custom_id`` is called ``line-N`` after its number.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .chat import ChatCompletion, Text, WireModel, as_messages
from .errors import APIStatusError, ConfigurationError, InvalidResponseError, KimiError
from .responses import EXCERPT, status_error


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What lines that leave it out get: fields of a request, and a system message."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    system: str | None = None

    def fill(self, body: Mapping[str, object]) -> dict[str, object]:
        """The body, with what it lacks."""
        given = {"model": self.model, "temperature": self.temperature}
        if "max_completion_tokens" not in body:
            given["max_tokens"] = self.max_tokens
        filled = {name: value for name, value in given.items() if value is not None} | dict(body)
        messages = body.get("messages")
        if self.system and isinstance(messages, list) and not _has_system(messages):
            filled["messages"] = as_messages(messages, self.system)
        return filled


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no request: what is wrong with it, and where."""

    line: int
    custom_id: str
    problem: str


def read_lines(path: Path, defaults: Defaults) -> Iterator[BatchRequest | BadLine]:
    """The lines of a file, one at a time; blank ones are skipped."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if text := raw.removeprefix(b"\xef\xbb\xbf").strip():
                yield parse_line(text, number, defaults)


def survey(path: Path) -> dict[str, int]:
    """Read the whole file once, before anything is sent: each ``custom_id`` and its line, bad ones included.

    All of them are in memory until the caller clears them.

    Raises:
        ConfigurationError: two lines have one ``custom_id``; their answers could not be told apart.
        OSError: it cannot be read.
    """
    seen: dict[str, int] = {}
    for line in read_lines(path, Defaults()):
        number = line.line or 0
        if first := seen.get(line.custom_id):
            raise ConfigurationError(
                f"{path.name}: lines {first} and {number} both have custom_id {line.custom_id!r}; make them differ"
            )
        seen[line.custom_id] = number
    return seen


def parse_line(text: bytes, number: int, defaults: Defaults) -> BatchRequest | BadLine:
    """One line, as a request or as what is wrong with it."""
    custom_id = f"line-{number}"
    try:
        value = json.loads(text)
        fields = _fields(value)
        custom_id = _custom_id(fields, custom_id)
        body = defaults.fill(_body(fields))
        request = BatchRequest.model_validate({**fields, "custom_id": custom_id, "body": body})
    except ValidationError as exc:
        error = exc.errors()[0]
        where = ".".join(map(str, error["loc"]))
        return BadLine(number, custom_id, f"{where}: {error['msg']}")
    except UnicodeDecodeError as exc:
        return BadLine(number, custom_id, f"not UTF-8 at byte {exc.start + 1}")
    except json.JSONDecodeError as exc:
        return BadLine(number, custom_id, f"not JSON: {exc.msg} at column {exc.colno}")
    except (TypeError, ValueError, RecursionError) as exc:
        return BadLine(number, custom_id, str(exc))
    request.line = number
    return request


def _fields(value: object) -> dict[str, object]:
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__}, where an object or a string is expected")
    return value


def _custom_id(fields: Mapping[str, object], fallback: str) -> str:
    custom_id = fields.get("custom_id", fallback)
    if not isinstance(custom_id, str) or not custom_id:
        raise TypeError(f"custom_id is {custom_id!r}, where a text is expected")
    custom_id.encode()  # half a surrogate pair, which JSON can escape, is a ValueError: no file can hold it
    return custom_id


def _body(fields: dict[str, object]) -> dict[str, object]:
    """The request of a line, whose messages are sure to be a list."""
    given = [name for name in ("body", "prompt", "messages") if fields.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"both {given[0]} and {given[1]}: which one is the request?")
    if "body" in fields:
        body = fields["body"]
        if not isinstance(body, dict):
            raise TypeError("body is no object")
    else:
        body = {name: value for name, value in fields.items() if name not in {"custom_id", "prompt"}}
        prompt = fields.get("prompt")
        if isinstance(prompt, str):
            body["messages"] = as_messages(prompt)
        elif prompt is not None:
            raise TypeError("prompt is no text")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError('neither a prompt nor messages: expected {"prompt": ...}, {"messages": [...]} or Batch form')
    if not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages holds something that is no message")
    return body


def _has_system(messages: list[object]) -> bool:
    return any(isinstance(message, dict) and message.get("role") == "system" for message in messages)


def output_line(outcome: BatchResult | BadLine) -> dict[str, object]:
    """A line of Batch output form.

    ``{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}``; ``error`` is null where the
    request was answered, else ``{"code", "message"}``.
    """
    response: dict[str, object] | None = None
    error: dict[str, object] | None = None
    if isinstance(outcome, BadLine):
        error = {"code": "invalid_line", "message": f"line {outcome.line}: {outcome.problem}", "line": outcome.line}
    elif outcome.completion is not None:
        body = outcome.completion.model_dump(mode="json", exclude_unset=True)
        response = {"status_code": 200, "request_id": outcome.completion.request_id, "body": body}
    else:
        error = {"code": type(outcome.error).__name__, "message": str(outcome.error)}
        if isinstance(outcome.error, APIStatusError):
            status = outcome.error
            response = {"status_code": status.status_code, "request_id": status.request_id, "body": status.body}
    name = f"batch_req_{uuid.uuid4().hex[:24]}"
    return {"id": name, "custom_id": outcome.custom_id, "response": response, "error": error}


class _Failure(WireModel):
    code: Text = ""
    message: Text = ""


class _Response(WireModel):
    status_code: int
    request_id: str | None = None
    body: object = None


class _OutputLine(WireModel):
    custom_id: str
    response: _Response | None = None
    error: _Failure | None = None


def parse_output_line(text: bytes | str) -> BatchResult:
    """A line of Batch output form, Kimi's or our own, as the result that it tells of.

    An error that has a status becomes the exception for it, any other a KimiError.

    Raises:
        InvalidResponseError: it is no such line.
    """
    try:
        line = _OutputLine.model_validate_json(text)
    except ValidationError as exc:
        shown = text if isinstance(text, str) else text.decode(errors="replace")
        raise InvalidResponseError(f"no line of batch output: {shown[:80]!r}", body=shown[:EXCERPT]) from exc
    response = line.response
    if response is None:
        failure = line.error or _Failure(message="neither a response nor an error")
        error = KimiError(": ".join(filter(None, (failure.code, failure.message))))
        return BatchResult(custom_id=line.custom_id, error=error)
    if response.status_code != 200:
        return BatchResult(custom_id=line.custom_id, error=_status_error(response, line.error))
    try:
        completion = ChatCompletion.model_validate(response.body)
    except ValidationError:
        shown = json.dumps(response.body, ensure_ascii=False)
        wrong = InvalidResponseError(f"status 200, but no chat completion: {shown[:80]!r}", body=shown[:EXCERPT])
        return BatchResult(custom_id=line.custom_id, error=wrong)
    completion._request_id = response.request_id or None  # noqa: SLF001 - set once, here
    return BatchResult(custom_id=line.custom_id, completion=completion)


def _status_error(response: _Response, failure: _Failure | None) -> APIStatusError:
    body = response.body
    if not body and failure is not None:
        body = {"error": {"message": failure.message, "type": failure.code or None}}
    content = body if isinstance(body, str) else json.dumps(body)
    headers = {"msh-request-id": response.request_id} if response.request_id else {}
    return status_error(response.status_code, headers, content.encode(), model="")
