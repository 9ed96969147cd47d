"""Kimi's batches: a file of requests in, a file of answers out, and the states in between by the clock.

Fields, states and limits are those of platform.kimi.ai/docs/api/batch-create; texts of errors are our own.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, Literal
from urllib.parse import parse_qs

from pydantic_core import from_json, to_json

from kimi_async.batches import BATCH_MODELS

from .answers import Answer, json_answer
from .exchange import Exchange
from .files import Files, Route, StoredFile
from .rules import InvalidRequest, not_found

ENDPOINT = "/v1/chat/completions"

_HOURS = {"h": 1, "d": 24}
_SHORTEST, _LONGEST = 12, 7 * 24  # hours of a completion window
_MOST_METADATA = 16
_PAGE = 20

_VALIDATED, _ANSWERED = 0.1, 0.9  # shares of the time from creation to completion

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "cancelling", "cancelled"]
Complete = Callable[[bytes], tuple[int, dict[str, object]]]
"""Status and body of the answer to the body of a request."""


@dataclass(slots=True, kw_only=True)
class Batch:
    """One batch. Times are those of its clock; what has happened follows from them."""

    id: str
    asked: Mapping[str, Any]
    source: StoredFile
    errors: list[dict[str, object]]
    total: int
    began: float
    created_at: int
    cancelled: float | None = None
    counts: dict[str, int] = field(default_factory=dict)
    finished: bool = False
    output_file_id: str = ""
    error_file_id: str = ""


class Batches:
    """The batches of the account. Their requests charge none of its four limits, and meet no faults.

    Args:
        seconds: from creation to completion.
        files: where input is read and output is put.
        complete: answers one request.
        clock: seconds.
    """

    def __init__(self, seconds: float, files: Files, complete: Complete, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._files = files
        self._complete = complete
        self._clock = clock
        self._batches: dict[str, Batch] = {}
        self._numbers = count(1)

    def routes(self) -> dict[tuple[str, str], Route]:
        """Method and path of each endpoint."""
        return {
            ("POST", "/v1/batches"): self._create,
            ("GET", "/v1/batches"): self._list,
            ("GET", "/v1/batches/{id}"): self._retrieve,
            ("POST", "/v1/batches/{id}/cancel"): self._cancel,
        }

    async def _create(self, exchange: Exchange) -> Answer:
        asked = _checked(await exchange.read())
        source = self._files.get(asked["input_file_id"])
        if source.purpose != "batch" or not source.filename.endswith(".jsonl"):
            raise InvalidRequest("Invalid request: input_file_id must be a .jsonl file uploaded with purpose batch")
        lines = _lines(source.content)
        batch = Batch(
            id=f"batch_mock{next(self._numbers):020x}",
            asked=asked,
            source=source,
            errors=list(_errors(lines)),
            total=len(lines),
            began=self._clock(),
            created_at=int(time.time()),
        )
        self._batches[batch.id] = batch
        return self._answer(batch)

    async def _list(self, exchange: Exchange) -> Answer:
        query = parse_qs(exchange.scope.get("query_string", b"").decode("latin-1"))
        newest = list(reversed(self._batches.values()))
        ids = [batch.id for batch in newest]
        first = ids.index(after) + 1 if (after := query.get("after", [""])[0]) in ids else 0
        limit = query.get("limit", [""])[0]
        last = first + (int(limit) if limit.isdecimal() else _PAGE)
        data = [self._described(batch) for batch in newest[first:last]]
        return json_answer({"object": "list", "data": data, "has_more": last < len(newest)})

    async def _retrieve(self, exchange: Exchange) -> Answer:
        return self._answer(self._get(exchange.item))

    async def _cancel(self, exchange: Exchange) -> Answer:
        batch = self._get(exchange.item)
        status = self._status(batch)
        if status not in {"validating", "in_progress", "finalizing"}:
            raise InvalidRequest(f"Invalid request: batch {batch.id} is {status} and cannot be cancelled")
        self._count(batch)
        batch.cancelled = self._clock()
        return self._answer(batch)

    def _get(self, batch_id: str) -> Batch:
        if batch_id not in self._batches:
            raise not_found(f"batch {batch_id} not found")
        return self._batches[batch_id]

    def _status(self, batch: Batch) -> Status:
        now = self._clock()
        if batch.cancelled is not None:
            return "cancelled" if now - batch.cancelled >= _VALIDATED * self._seconds else "cancelling"
        elapsed = now - batch.began
        if elapsed < _VALIDATED * self._seconds:
            return "validating"
        if batch.errors:
            return "failed"
        if elapsed < _ANSWERED * self._seconds:
            return "in_progress"
        return "finalizing" if elapsed < self._seconds else "completed"

    def _count(self, batch: Batch) -> None:
        """Requests answered so far; a batch that is cancelled keeps the number of that moment."""
        if batch.cancelled is None and not batch.finished:
            share = (self._clock() - batch.began) / self._seconds if self._seconds else 1.0
            done = (share - _VALIDATED) / (_ANSWERED - _VALIDATED)
            completed = 0 if batch.errors else int(batch.total * min(1.0, max(0.0, done)))
            batch.counts = {"total": batch.total, "completed": completed, "failed": 0}

    def _finish(self, batch: Batch) -> None:
        """Answer what was to be answered, once."""
        if batch.finished:
            return
        lines = islice(_lines(batch.source.content), batch.counts["completed"])
        outcomes = [self._outcome(batch, number, from_json(line)) for number, (_, line) in enumerate(lines)]
        answered = [line for status, line in outcomes if status == 200]
        failed = [line for status, line in outcomes if status != 200]
        batch.counts |= {"completed": len(answered), "failed": len(failed)}
        batch.output_file_id = self._write(f"{batch.id}_output.jsonl", answered)
        batch.error_file_id = self._write(f"{batch.id}_error.jsonl", failed)
        batch.finished = True

    def _outcome(self, batch: Batch, number: int, line: Mapping[str, Any]) -> tuple[int, bytes]:
        status, body = self._complete(to_json(line["body"]))
        identity = f"{batch.id.removeprefix('batch_')}-{number}"
        response = {"status_code": status, "request_id": f"req-{identity}", "body": body}
        found = {"id": f"batch_req_{identity}", "custom_id": line["custom_id"], "response": response, "error": None}
        return status, to_json(found)

    def _write(self, filename: str, lines: list[bytes]) -> str:
        return self._files.keep(filename, "batch_output", b"".join(line + b"\n" for line in lines)).id if lines else ""

    def _answer(self, batch: Batch) -> Answer:
        return json_answer(self._described(batch))

    def _described(self, batch: Batch) -> dict[str, object]:
        status = self._status(batch)
        self._count(batch)
        if status in {"completed", "cancelled"}:
            self._finish(batch)
        hours = _hours(batch.asked["completion_window"])
        errors = {"object": "list", "data": batch.errors} if status == "failed" else None
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": errors,
            "input_file_id": batch.source.id,
            "completion_window": batch.asked["completion_window"],
            "status": status,
            "output_file_id": batch.output_file_id or None,
            "error_file_id": batch.error_file_id or None,
            "created_at": batch.created_at,
            "expires_at": batch.created_at + hours * 3_600,
            **self._timestamps(batch, status),
            "request_counts": batch.counts,
            "metadata": batch.asked.get("metadata"),
        }

    def _timestamps(self, batch: Batch, status: Status) -> dict[str, int | None]:
        """Whole seconds of the epoch; None for what has not happened."""
        shares = {"in_progress": _VALIDATED, "finalizing": _ANSWERED, "completed": 1.0}
        times: dict[str, int | None] = dict.fromkeys((*shares, "failed", "cancelling", "cancelled"))
        reached = self._clock() if batch.cancelled is None else batch.cancelled
        if status == "failed":
            times["failed"] = batch.created_at + int(_VALIDATED * self._seconds)
        else:
            for name, share in shares.items():
                if reached - batch.began >= share * self._seconds:
                    times[name] = batch.created_at + int(share * self._seconds)
        if batch.cancelled is not None:
            times["cancelling"] = batch.created_at + int(batch.cancelled - batch.began)
        if status == "cancelled":
            times["cancelled"] = times["cancelling"]
        return {f"{name}_at": moment for name, moment in times.items()}


def _checked(body: bytes) -> dict[str, Any]:
    try:
        asked = from_json(body)
    except ValueError as exc:
        raise InvalidRequest(f"Invalid request: failed to parse the body as JSON: {exc}") from exc
    if not isinstance(asked, dict) or not isinstance(asked.get("input_file_id"), str):
        raise InvalidRequest("Invalid request: input_file_id is required")
    if asked.get("endpoint") != ENDPOINT:
        raise InvalidRequest(f"Invalid request: endpoint must be {ENDPOINT}")
    if not _SHORTEST <= _hours(asked.get("completion_window")) <= _LONGEST:
        raise InvalidRequest("Invalid request: completion_window must be 12h to 7d")
    metadata = asked.get("metadata")
    if metadata is not None and not (isinstance(metadata, dict) and len(metadata) <= _MOST_METADATA):
        raise InvalidRequest(f"Invalid request: metadata must be an object of at most {_MOST_METADATA} pairs")
    return asked


def _hours(window: object) -> int:
    matched = re.fullmatch(r"(\d{1,4})([hd])", window) if isinstance(window, str) else None
    return int(matched[1]) * _HOURS[matched[2]] if matched else 0


def _lines(content: bytes) -> list[tuple[int, bytes]]:
    """Lines that hold something, with their numbers."""
    return [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]


def _errors(lines: list[tuple[int, bytes]]) -> Iterator[dict[str, object]]:
    """Why a file is refused as a whole: the first error of each line."""
    names: set[str] = set()
    models: set[str] = set()
    for number, line in lines:
        for code, message, param in islice(_line_errors(line, names, models), 1):
            yield {"code": code, "message": message, "param": param, "line": number}


def _line_errors(line: bytes, names: set[str], models: set[str]) -> Iterator[tuple[str, str, str | None]]:
    """Code, message and parameter of what is wrong with a line, given the names and models of those before it.

    Only the first is right: each check takes the earlier ones for passed.
    """
    try:
        parsed = from_json(line)
    except ValueError:
        yield "invalid_json_line", "This line is not parseable as valid JSON.", None
        return
    body = parsed.get("body") if isinstance(parsed, dict) else None
    if not isinstance(body, dict):
        yield "invalid_request", "The line must be an object with a body.", "body"
        return
    name, model = parsed.get("custom_id"), body.get("model")
    if not isinstance(name, str) or not name:
        yield "missing_required_parameter", "custom_id is required.", "custom_id"
    elif name in names:
        yield "duplicate_custom_id", f"The custom_id {name} was used before.", "custom_id"
    names.add(str(name))
    if parsed.get("method") != "POST":
        yield "invalid_method", "The method must be POST.", "method"
    if parsed.get("url") != ENDPOINT:
        yield "invalid_url", f"The url must be {ENDPOINT}.", "url"
    if not isinstance(model, str) or model not in BATCH_MODELS:
        yield "model_not_found", f"The model {model} is not available for batches.", "body.model"
    elif models and model not in models:
        yield "mismatched_model", "All requests of a batch must use the same model.", "body.model"
    models.add(str(model))
