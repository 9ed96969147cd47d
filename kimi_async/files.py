"""``kimi.files``: uploads, to extract text from, to show to a model, or to run as a batch."""

import asyncio
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import httpx

from .chat import Number, Text, WireModel
from .endpoints import Listing, path_of, reading
from .errors import ConfigurationError
from .exchange import TIMEOUT, Call, Exchange, as_wire, body_of

Purpose = Literal["file-extract", "image", "video", "batch"]
"""What an upload is for (platform.kimi.ai, API reference). Images are no longer extracted from since August 2026."""

_Content = bytes | BinaryIO
FileInput = str | PathLike[str] | tuple[str, _Content] | tuple[str, _Content, str] | BinaryIO
"""A path; a file open in binary mode, which is read from where it stands; or, as in httpx, a tuple of a name, bytes or
such a file, and perhaps a content type."""

MAX_BYTES = 100 * 1024 * 1024
"""Of one file. An account may have 1,000 of them."""

SLOWEST_UPLOAD = 64 * 1024
"""Bytes a second. A body is written as one, so a large one gets the time that it takes at this speed."""


class FileObject(WireModel):
    """An uploaded file, or one that a batch has written. ``created_at`` is in seconds since 1970."""

    id: str
    object: Text = "file"
    bytes: Number = 0
    created_at: Number = 0
    filename: Text = ""
    purpose: Text = ""
    status: Text = ""
    status_details: str | None = None

    @property
    def url(self) -> str:
        """``ms://ID``, for ``image_url`` and ``video_url`` in messages."""
        return f"ms://{self.id}"


class FileDeleted(WireModel):
    """That a file is gone."""

    id: Text = ""
    object: Text = "file"
    deleted: bool


@dataclass(frozen=True, slots=True)
class FileContent:
    """What is in a file: as Kimi extracted it, or the lines that a batch has written."""

    content: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The content as text, in UTF-8."""
        return self.content.decode(errors="replace")


class Files:
    """``kimi.files``. All methods raise KimiError; one for a file that does not exist is a NotFoundError."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def create(
        self, *, file: FileInput, purpose: Purpose, timeout: float | httpx.Timeout | None = None
    ) -> FileObject:
        """Upload a file. An answer that is lost is asked for again, which may leave the file there twice.

        Args:
            file: a path, ``(name, bytes)``, or a file open in binary mode.
            purpose: what it is for.
            timeout: seconds for each read of the answer, or an ``httpx.Timeout``; by default one for its size.

        Raises:
            ConfigurationError: there is no such file or purpose, or the file is empty or above 100 MB.
        """
        if purpose not in get_args(Purpose):
            raise ConfigurationError(f"purpose={purpose!r}: must be one of {', '.join(get_args(Purpose))}")
        content, content_type = await asyncio.to_thread(_form, file, purpose)
        call = Call(
            path="/files",
            content=content,
            content_type=content_type,
            timeout=_patience(len(content)) if timeout is None else timeout,
        )
        answer = await self._exchange.send(call, body_of)
        return as_wire(answer, FileObject, what="file")  # outside of send, which would upload it again

    async def list(self) -> Listing[FileObject]:
        """All files of the account."""
        call = Call(method="GET", path="/files")
        return await self._exchange.send(call, reading(Listing[FileObject], what="list of files"))

    async def retrieve(self, file_id: str) -> FileObject:
        """One file."""
        call = Call(method="GET", path=path_of("files", file_id))
        return await self._exchange.send(call, reading(FileObject, what="file"))

    async def content(self, file_id: str) -> FileContent:
        """What Kimi extracted from a file, or what a batch has written into it."""
        call = Call(method="GET", path=path_of("files", file_id, "/content"))
        return FileContent(await self._exchange.send(call, body_of))

    async def delete(self, file_id: str) -> FileDeleted:
        """Delete a file."""
        call = Call(method="DELETE", path=path_of("files", file_id))
        return await self._exchange.send(call, reading(FileDeleted, what="deleted file"))


def check_size(name: str, size: int) -> None:
    """Raise ConfigurationError for a file that Kimi would not take."""
    if size == 0:
        raise ConfigurationError(f"{name} is empty; Kimi takes no empty files")
    if size > MAX_BYTES:
        raise ConfigurationError(f"{name} is above {MAX_BYTES // 1024**2} MB, the largest file that Kimi takes")


def _form(file: FileInput, purpose: str) -> tuple[bytes, str]:
    """The multipart form of an upload, and its content type."""
    name, content = _read(file)
    check_size(name, len(content))
    kind = file[2] if isinstance(file, tuple) and len(file) > 2 else None
    form = httpx.Request("POST", "http://kimi", data={"purpose": purpose}, files={"file": (name, content, kind)})
    return form.read(), form.headers["Content-Type"]


def _read(file: FileInput) -> tuple[str, bytes]:
    if isinstance(file, tuple):
        given = file[1]
        return file[0], given if isinstance(given, bytes) else _read(given)[1]
    if isinstance(file, str | PathLike):
        return _read_path(Path(file))
    if not hasattr(file, "read"):
        raise ConfigurationError(f"file is of type {type(file).__name__}: pass a path, (name, bytes), or an open file")
    content = file.read(MAX_BYTES + 1)
    if not isinstance(content, bytes):
        raise ConfigurationError("file is open in text mode: open it in binary mode, open(path, 'rb')")
    name = getattr(file, "name", None)
    return Path(name).name if isinstance(name, str) else "file", content


def _read_path(path: Path) -> tuple[str, bytes]:
    try:
        check_size(str(path), path.stat().st_size if path.is_file() else 1)  # before gigabytes are read
        return path.name, path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"{path}: {exc.strerror}") from exc


def _patience(size: int) -> httpx.Timeout:
    write = (TIMEOUT.write or 0.0) + size / SLOWEST_UPLOAD
    return httpx.Timeout(connect=TIMEOUT.connect, read=TIMEOUT.read, write=write, pool=TIMEOUT.pool)
