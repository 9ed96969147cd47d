"""``kimi.batches``: Kimi's own batches, 40 % cheaper, done within hours or days on Kimi's side.

::

    batch = await kimi.batches.submit("prompts.jsonl", max_tokens=256)
    batch = await kimi.batches.wait(batch.id)
    async for result in kimi.batches.results(batch):
        print(result.custom_id, result.error or result.text)

Sources: platform.kimi.com/docs/guide/use-batch-api; and docs/pricing/batch, which says that they are "not subject to
real-time concurrency limits". The limiter has nothing to do with them.
"""

import asyncio
import io
import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from .chat import Number, Text, WireModel, plain
from .endpoints import Listing, json_body, path_of, reading
from .errors import ConfigurationError, InvalidResponseError, KimiError
from .exchange import Call, Exchange, as_wire, body_of
from .files import Files, check_size
from .jsonl import BadLine, BatchRequest, BatchResult, Defaults, parse_line, parse_output_line, read_lines
from .models import find
from .parameters import check

BATCH_MODELS = ("kimi-k2.6", "kimi-k2.7-code")
"""Models that Kimi runs batches on, as of September 2026."""

POLL = 60.0
"""Seconds between two looks at a batch, at most; they begin with ``FIRST_POLL`` and double."""

FIRST_POLL = 1.0

ENDED = ("completed", "failed", "expired", "cancelled")
"""Statuses that do not change any more. The others: validating, in_progress, finalizing, cancelling."""

_WINDOW = re.compile(r"(\d+)([mhd])")
_MINUTES = {"m": 1, "h": 60, "d": 24 * 60}
_SHOWN = 5


class RequestCounts(WireModel):
    """How far a batch is."""

    total: Number = 0
    completed: Number = 0
    failed: Number = 0


class BatchError(WireModel):
    """Why a batch failed; ``line`` is that of its input file, from 1."""

    code: str | None = None
    message: Text = ""
    param: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        said = self.message or self.code or "(no message)"
        return said if self.line is None else f"line {self.line}: {said}"


def _as_listing(value: object) -> object:
    """The openai SDK's form of errors, or a list, or a text: Kimi documents none."""
    if isinstance(value, str):
        value = [{"message": value}] if value else None
    return {"data": value} if isinstance(value, list) else value


class Batch(WireModel):
    """A batch. Its times are seconds since 1970, None for what has not happened.

    Attributes:
        status: validating, failed, in_progress, finalizing, completed, expired, cancelling or cancelled.
        output_file_id: of the answers, once there are any.
        error_file_id: of the requests without an answer, if there are any.
        errors: why validation failed.
    """

    id: str
    object: Text = "batch"
    endpoint: Text = ""
    input_file_id: Text = ""
    completion_window: Text = ""
    status: Text = ""
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int | None = None
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Annotated[RequestCounts, BeforeValidator(lambda value: {} if value is None else value)] = Field(
        default_factory=RequestCounts
    )
    errors: Annotated[Listing[BatchError] | None, BeforeValidator(_as_listing)] = None
    metadata: dict[str, str] | None = None

    @property
    def ended(self) -> bool:
        """Whether its status will not change any more."""
        return self.status in ENDED


class Batches:
    """``kimi.batches``. All methods raise KimiError; one for a batch that does not exist is a NotFoundError."""

    def __init__(self, exchange: Exchange, files: Files, *, model: str | None) -> None:
        self._exchange = exchange
        self._files = files
        self._model = model

    async def create(
        self,
        *,
        input_file_id: str,
        endpoint: Literal["/v1/chat/completions"] = "/v1/chat/completions",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
    ) -> Batch:
        """Start a batch of requests that were uploaded with ``purpose="batch"``; the openai SDK's call.

        Args:
            input_file_id: of the upload.
            endpoint: there is only this one.
            completion_window: from ``"12h"`` to ``"7d"``; in a longer one more of the requests are answered.
            metadata: up to 16 texts of your own, which come back with the batch.

        Raises:
            ConfigurationError: a window outside of these bounds.
        """
        _check_window(completion_window)
        fields: dict[str, object] = {
            "input_file_id": input_file_id,
            "endpoint": endpoint,
            "completion_window": completion_window,
        }
        if metadata is not None:
            fields["metadata"] = metadata
        answer = await self._exchange.send(Call(path="/batches", content=json_body(fields), repeatable=False), body_of)
        return as_wire(answer, Batch, what="batch")  # outside of send, which would start another

    async def retrieve(self, batch_id: str) -> Batch:
        """One batch, as it is now."""
        call = Call(method="GET", path=path_of("batches", batch_id))
        return await self._exchange.send(call, reading(Batch, what="batch"))

    async def list(self, *, after: str | None = None, limit: int | None = None) -> Listing[Batch]:
        """A page of the organization's batches.

        Args:
            after: the id of the last batch on the page before.
            limit: how many; 20 by default.
        """
        given = {"after": after, "limit": limit}
        params = {name: str(value) for name, value in given.items() if value is not None}
        call = Call(method="GET", path="/batches", params=params or None)
        return await self._exchange.send(call, reading(Listing[Batch], what="list of batches"))

    async def cancel(self, batch_id: str) -> Batch:
        """Stop a batch that has not ended. It is ``cancelling`` at first; what was answered by then is kept."""
        call = Call(path=path_of("batches", batch_id, "/cancel"))
        return await self._exchange.send(call, reading(Batch, what="batch"))

    async def submit(
        self,
        requests: str | PathLike[str] | Iterable[BatchRequest],
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        system: str | None = None,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
    ) -> Batch:
        """Write the requests as Kimi's batches want them, upload them, and start their batch.

        Args:
            requests: a JSONL file in any of the four forms of ``kimi_async.jsonl``, or requests.
            model: for requests that name none; by default the client's.
            max_tokens: for requests that leave it out.
            system: a system message for requests that have none.
            completion_window: see `create`.
            metadata: see `create`.

        Raises:
            ConfigurationError: names the line that is no request, or that Kimi would refuse in a batch; nothing
                was uploaded.
        """
        _check_window(completion_window)
        defaults = Defaults(model=model or self._model, max_tokens=max_tokens, system=system)
        source = requests if isinstance(requests, str | PathLike) else tuple(requests)
        upload = await asyncio.to_thread(_input_file, source, defaults)
        file = await self._files.create(file=upload, purpose="batch")
        try:
            return await self.create(input_file_id=file.id, completion_window=completion_window, metadata=metadata)
        except KimiError as exc:
            exc.add_note(f"the requests are uploaded as {file.id}: create the batch from it, or delete it")
            raise

    async def wait(self, batch_id: str, *, poll: float = POLL) -> Batch:
        """Look at a batch until it has ended, in whichever way; ``status`` says how.

        It may be given up, and called again, at any time. ``asyncio.timeout`` bounds it.

        Args:
            batch_id: which.
            poll: seconds between two looks, at most; they begin with one second and double.
        """
        if not poll > 0:
            raise ConfigurationError(f"poll={poll}: must be above 0")
        pause = min(FIRST_POLL, poll)
        while not (batch := await self.retrieve(batch_id)).ended:
            await asyncio.sleep(pause)
            pause = min(pause * 2, poll)
        return batch

    async def results(self, batch: Batch) -> AsyncGenerator[BatchResult, None]:
        """What became of the requests of a batch that has ended: answers first, then errors, in no certain order.

        Of one that has expired or was cancelled, there are those that were done by then.

        Of a line that is no result but has its ``custom_id``, there is an InvalidResponseError as the result.

        Raises:
            ConfigurationError: it has not ended, or it failed: no request was run, and the text says which lines
                are wrong.
            InvalidResponseError: after all results, if there were lines that do not even have a ``custom_id``. It
                names the first by file and line.
        """
        _check_ended(batch)
        lost: list[InvalidResponseError] = []
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self._files.content(file_id)
            for number, line in enumerate(io.BytesIO(content.content), start=1):
                if text := line.strip():
                    try:
                        result = _result(text, f"{file_id}, line {number}")
                    except InvalidResponseError as exc:
                        lost.append(exc)
                    else:
                        yield result
                    await asyncio.sleep(0)  # there may be 100 MB of them, and others have work too
        if lost:
            more = f"; and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise InvalidResponseError(f"{lost[0]}{more}", body=lost[0].body)


class _Named(WireModel):
    """All that a line needs for its request to be known."""

    custom_id: str = Field(min_length=1)


def _result(text: bytes, place: str) -> BatchResult:
    """What a line of results tells. Raises InvalidResponseError where it does not even tell of which request."""
    try:
        return parse_output_line(text)
    except InvalidResponseError as exc:
        wrong = InvalidResponseError(f"{place}: {exc}", body=exc.body)
    try:
        return BatchResult(custom_id=_Named.model_validate_json(text).custom_id, error=wrong)
    except ValidationError:
        raise wrong from None


def _check_window(window: str) -> None:
    match = _WINDOW.fullmatch(window)
    if match and not 12 * 60 <= int(match[1]) * _MINUTES[match[2]] <= 7 * 24 * 60:
        raise ConfigurationError(f"completion_window={window!r}: Kimi takes 12h to 7d")


def _check_ended(batch: Batch) -> None:
    if batch.status == "failed":
        errors = batch.errors.data if batch.errors else []
        shown = "; ".join(map(str, errors[:_SHOWN])) or "Kimi does not say why"
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise ConfigurationError(f"batch {batch.id} failed, no request was run: {shown}{more}")
    if not batch.ended:
        raise ConfigurationError(f"batch {batch.id} is {batch.status}: wait for its end first")


def _input_file(source: str | PathLike[str] | Sequence[BatchRequest], defaults: Defaults) -> tuple[str, bytes]:
    """The file to upload: its name and its content."""
    if isinstance(source, str | PathLike):
        path = Path(source)
        try:
            return f"{path.stem}.jsonl", _content(read_lines(path, defaults), f"{path.name}: line", path.name)
        except OSError as exc:
            raise ConfigurationError(f"{path}: {exc.strerror}") from exc
    return "requests.jsonl", _content(_parsed(source, defaults), "request", "the file of all requests")


def _parsed(requests: Sequence[BatchRequest], defaults: Defaults) -> Iterator[BatchRequest | BadLine]:
    """Requests as they would be if they came from a file."""
    for number, request in enumerate(requests, start=1):
        messages = request.body.get("messages")
        body = dict(request.body)
        if isinstance(messages, list | tuple):
            body["messages"] = [plain(message) for message in messages]
        yield parse_line(json_body({**request.model_dump(exclude={"body"}), "body": body}), number, defaults)


def _content(lines: Iterable[BatchRequest | BadLine], place: str, name: str) -> bytes:
    content = bytearray()
    seen: dict[str, int] = {}
    model: object = None
    for line in lines:
        number = line.line or 0
        where = f"{place} {number}: "
        if isinstance(line, BadLine):
            raise ConfigurationError(where + line.problem)
        if first := seen.get(line.custom_id):
            raise ConfigurationError(f"{where}custom_id {line.custom_id!r} is that of {first} too; make them differ")
        seen[line.custom_id] = number
        model = model or line.body.get("model")
        for problem in _problems(line.body, model):
            raise ConfigurationError(where + problem)
        content += json_body(line.model_dump()) + b"\n"
        check_size(name, len(content))
    check_size(name, len(content))
    return bytes(content)


def _problems(body: Mapping[str, object], first: object) -> Iterator[str]:
    """What Kimi would refuse about a request in a batch whose first model is that one."""
    model = body.get("model")
    if not isinstance(model, str):
        yield "no model: pass model=, or give the client one"
    elif find(model) and model not in BATCH_MODELS:
        yield f"{model} runs no batches: use {' or '.join(BATCH_MODELS)}"
    elif model != first:
        yield f"asks for {model}, lines before it for {first}: all requests of a batch have one model"
    if body.get("stream"):
        yield "stream=true: the answers of a batch come as a file"
    try:
        check(body)
    except ConfigurationError as exc:
        yield str(exc)
