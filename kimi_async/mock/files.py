"""Uploaded files, in memory, and their endpoints."""

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, parse_options_header

from .answers import Answer, json_answer
from .exchange import Exchange
from .rules import InvalidRequest, not_found

Route = Callable[[Exchange], Awaitable[Answer | bytes]]
"""Answers a request; bytes are the end of an answer that was begun."""

PURPOSES = ("file-extract", "batch", "batch_output", "lambda", "image", "video")
LARGEST_FILE = 100 * 1_024 * 1_024  # bytes
MOST_FILES = 1_000

_IN_MEMORY = {"MAX_MEMORY_FILE_SIZE": 2 * LARGEST_FILE}  # or the parser would write to the disk


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file."""

    id: str
    filename: str
    purpose: str
    created_at: int
    content: bytes

    def described(self) -> dict[str, object]:
        """Kimi's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "ok",
            "status_details": "",
        }


class Files:
    """The files of the account, oldest first."""

    def __init__(self) -> None:
        self._files: dict[str, StoredFile] = {}
        self._created = 0

    def routes(self) -> dict[tuple[str, str], Route]:
        """Method and path of each endpoint."""
        return {
            ("POST", "/v1/files"): self._upload,
            ("GET", "/v1/files"): self._list,
            ("GET", "/v1/files/{id}"): self._describe,
            ("GET", "/v1/files/{id}/content"): self._content,
            ("DELETE", "/v1/files/{id}"): self._delete,
        }

    def add(self, filename: str, purpose: str, content: bytes) -> StoredFile:
        """Keep an upload.

        Raises:
            InvalidRequest: 400 for its purpose, its size, or for want of room.
        """
        if purpose not in PURPOSES:
            *others, last = [f"`{known}`" for known in PURPOSES]
            raise InvalidRequest(f"Invalid purpose: {purpose}, only {', '.join(others)} and {last} accepted")
        if not content:
            raise InvalidRequest("File size is zero, please confirm and re-upload the file")
        if len(content) > LARGEST_FILE:
            raise InvalidRequest(
                "File size is too large, max file size is 100MB, please confirm and re-upload the file"
            )
        if len(self._files) >= MOST_FILES:
            raise InvalidRequest(
                f"The number of files you have uploaded exceeded the max file count {MOST_FILES}, "
                "please delete previous uploaded files"
            )
        return self.keep(filename, purpose, content)

    def keep(self, filename: str, purpose: str, content: bytes) -> StoredFile:
        """Keep a file of our own, of any size and in a full store too: a batch that is done leaves its answers."""
        self._created += 1
        stored = StoredFile(f"file-mock{self._created:020x}", filename, purpose, int(time.time()), content)
        self._files[stored.id] = stored
        return stored

    def get(self, file_id: str) -> StoredFile:
        """The file of that id.

        Raises:
            InvalidRequest: 404.
        """
        if file_id not in self._files:
            raise not_found(f"file {file_id} not found")
        return self._files[file_id]

    def check(self, file_ids: Iterable[str]) -> None:
        """Whether a prompt may refer to those files.

        Raises:
            InvalidRequest: 400 for the first that was never uploaded, or was deleted.
        """
        for file_id in file_ids:
            if file_id not in self._files:
                raise InvalidRequest(f"Invalid request: file {file_id} not found")

    async def _upload(self, exchange: Exchange) -> Answer:
        fields = _form(exchange.header(b"content-type"), await exchange.read())
        uploaded = fields.get("file")
        if not isinstance(uploaded, tuple):
            raise InvalidRequest("Invalid request: file is required")
        purpose = fields.get("purpose", "")
        return json_answer(self.add(uploaded[0], str(purpose), uploaded[1]).described())

    async def _list(self, exchange: Exchange) -> Answer:
        return json_answer({"object": "list", "data": [stored.described() for stored in self._files.values()]})

    async def _describe(self, exchange: Exchange) -> Answer:
        return json_answer(self.get(exchange.item).described())

    async def _content(self, exchange: Exchange) -> Answer:
        return Answer(200, self.get(exchange.item).content, ((b"content-type", b"text/plain; charset=utf-8"),))

    async def _delete(self, exchange: Exchange) -> Answer:
        deleted = self._files.pop(self.get(exchange.item).id)
        return json_answer({"id": deleted.id, "object": "file", "deleted": True})


def _form(content_type: bytes, body: bytes) -> dict[str, str | tuple[str, bytes]]:
    """The fields of a multipart form: strings, and files as name and content.

    Raises:
        InvalidRequest: 400 for what is no such form.
    """
    kind, options = parse_options_header(content_type)
    fields: dict[str, str | tuple[str, bytes]] = {}

    def on_field(field: Field) -> None:
        fields[_decoded(field.field_name)] = _decoded(field.value)

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        fields[_decoded(file.field_name)] = (_decoded(file.file_name), file.file_object.read())
        file.close()

    try:
        parser = FormParser(
            kind.decode("latin-1"), on_field, on_file, boundary=options.get(b"boundary"), config=_IN_MEMORY
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as exc:
        raise InvalidRequest(f"Invalid request: failed to parse the form: {exc}") from exc
    return fields


def _decoded(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
