"""Uploads: what is sent, what is refused before it is, what comes back."""

import io
import json
import threading
from email import message_from_bytes

import pytest

from kimi_async import AsyncKimi, ConfigurationError, InvalidResponseError, NotFoundError, files
from kimi_async.exchange import TIMEOUT
from kimi_async.files import SLOWEST_UPLOAD, FileObject

from .scripted import Scripted, Step, error

PDF = {
    "id": "file_1",
    "object": "file",
    "bytes": 9,
    "created_at": 1_776_000_000,
    "filename": "月亮.pdf",
    "purpose": "file-extract",
    "status": "ok",
    "status_details": "",
}


def scripted(*answers):
    """A client whose gateway answers with these values, or as these steps say."""
    steps = [one if isinstance(one, Step) else Step(content=json.dumps(one).encode()) for one in answers]
    inner = Scripted(*steps)
    return AsyncKimi(api_key="sk-1", base_url="http://kimi.test/v1", transport=inner), inner


def form(request):
    """The parts of a multipart form: name, file name and content of each."""
    content_type = request.headers["Content-Type"]
    parts = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + request.content).get_payload()
    return [
        (
            part.get_param("name", header="Content-Disposition"),
            part.get_filename(),
            part.get_payload(decode=True),
        )
        for part in parts
    ]


async def test_a_path_is_uploaded_under_its_name(tmp_path):
    """As a form with its purpose; the answer is typed."""
    path = tmp_path / "moon.pdf"
    path.write_bytes(b"some text")
    kimi, inner = scripted(PDF)
    for given in (path, str(path)):
        file = await kimi.files.create(file=given, purpose="file-extract")
    for request in inner.requests:
        assert (request.method, request.url.path) == ("POST", "/v1/files")
        assert form(request) == [("purpose", None, b"file-extract"), ("file", "moon.pdf", b"some text")]
        assert request.headers["Content-Length"] == str(len(request.content))
    assert file.model_dump() == PDF


async def test_bytes_and_open_files_are_uploaded_too(tmp_path):
    """A file without a name gets one."""
    kimi, inner = scripted(PDF)
    (tmp_path / "moon.pdf").write_bytes(b"some text")
    with (tmp_path / "moon.pdf").open("rb") as file:
        for given in (("moon.pdf", b"some text"), file, io.BytesIO(b"some text")):
            await kimi.files.create(file=given, purpose="image")
    assert [form(request)[1] for request in inner.requests] == [
        ("file", "moon.pdf", b"some text"),
        ("file", "moon.pdf", b"some text"),
        ("file", "file", b"some text"),
    ]


async def test_files_are_read_off_the_loop(monkeypatch):
    """A disk may take its time."""
    threads = []
    monkeypatch.setattr(files, "_form", lambda *parts: threads.append(threading.current_thread()) or (b"", "text/x"))
    await scripted(PDF)[0].files.create(file="moon.pdf", purpose="image")
    assert threads != [threading.current_thread()]


async def test_an_upload_that_fails_in_passing_is_sent_again_whole(tmp_path):
    """Also from a file that can be read only once."""
    kimi, inner = scripted(error(503, "server_unavailable", "busy"), PDF)
    await kimi.files.create(file=io.BytesIO(b"some text"), purpose="video")
    first, second = map(form, inner.requests)
    assert first == second
    assert first[1][2] == b"some text"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda tmp: tmp / "none.pdf", r"none\.pdf: No such file"),
        (lambda tmp: tmp, "Is a directory"),
        (lambda tmp: ("moon.pdf", b""), r"moon\.pdf is empty"),
        (lambda tmp: ("moon.pdf", b"01234567890"), r"moon\.pdf is above 0 MB"),
        (lambda tmp: io.BytesIO(b"01234567890"), "file is above"),
        (lambda tmp: io.StringIO("text"), "open it in binary mode"),
        (lambda tmp: b"some text", r"of type bytes: pass a path, \(name, bytes\)"),
    ],
)
async def test_what_cannot_be_uploaded_is_refused_with_the_reason(tmp_path, monkeypatch, make, problem):
    """Before anything is sent."""
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    kimi, inner = scripted(PDF)
    with pytest.raises(ConfigurationError, match=problem):
        await kimi.files.create(file=make(tmp_path), purpose="image")
    assert inner.requests == []


async def test_a_file_that_is_too_large_is_not_even_read(tmp_path, monkeypatch):
    """Its size says it all. One of just 100 MB is none of these."""
    path = tmp_path / "huge.mp4"
    with path.open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)
    monkeypatch.setattr(type(path), "read_bytes", lambda self: pytest.fail("read"))
    with pytest.raises(ConfigurationError, match=r"huge\.mp4 is above 100 MB, the largest file that Kimi takes"):
        await scripted(PDF)[0].files.create(file=path, purpose="video")
    files.check_size("just.mp4", files.MAX_BYTES)


async def test_an_unknown_purpose_is_refused():
    """With those that there are."""
    with pytest.raises(ConfigurationError, match="'assistants': must be one of file-extract, image, video, batch"):
        await scripted(PDF)[0].files.create(file=("a.pdf", b"x"), purpose="assistants")


async def test_a_large_upload_has_time_for_its_size(monkeypatch):
    """Unless the caller says how long."""
    kimi, inner = scripted(PDF)
    await kimi.files.create(file=("a.mp4", bytes(SLOWEST_UPLOAD * 100)), purpose="video")
    await kimi.files.create(file=("a.mp4", b"x"), purpose="video", timeout=5.0)
    large, given = (request.extensions["timeout"] for request in inner.requests)
    assert TIMEOUT.write + 100 < large["write"] < TIMEOUT.write + 101
    assert (large["read"], given["read"], given["write"]) == (TIMEOUT.read, 5.0, TIMEOUT.write)


async def test_an_upload_with_an_unreadable_answer_is_not_repeated():
    """It was stored."""
    kimi, inner = scripted(Step(content=b"<html>"))
    with pytest.raises(InvalidResponseError, match="no file"):
        await kimi.files.create(file=("a.pdf", b"x"), purpose="image")
    assert len(inner.requests) == 1


async def test_files_are_listed_retrieved_read_and_deleted():
    """Each at its path."""
    gone = {"id": "file_1", "object": "file", "deleted": True}
    kimi, inner = scripted(
        {"object": "list", "data": [PDF, {"id": "file_2", "status_details": None}]},
        PDF,
        Step(content="月亮".encode()),
        gone,
    )
    assert [file.id for file in await kimi.files.list()] == ["file_1", "file_2"]
    assert (await kimi.files.retrieve("file_1")).filename == "月亮.pdf"
    content = await kimi.files.content("file_1")
    assert (content.content, content.text) == ("月亮".encode(), "月亮")
    assert (await kimi.files.delete("file_1")).deleted
    assert [(request.method, request.url.path) for request in inner.requests] == [
        ("GET", "/v1/files"),
        ("GET", "/v1/files/file_1"),
        ("GET", "/v1/files/file_1/content"),
        ("DELETE", "/v1/files/file_1"),
    ]


def test_a_file_has_an_address_for_messages():
    """As image_url and video_url want it."""
    assert FileObject.model_validate(PDF).url == "ms://file_1"


async def test_a_file_that_is_not_there_is_not_found():
    """A 404, as everywhere."""
    with pytest.raises(NotFoundError):
        await scripted(error(404, "resource_not_found_error", "no such file"))[0].files.retrieve("file_9")


@pytest.mark.parametrize(
    ("file", "content_type"),
    [
        (("moon.txt", b"moon"), "text/plain"),
        (("moon.txt", io.BytesIO(b"moon")), "text/plain"),
        (("moon.txt", b"moon", "text/markdown"), "text/markdown"),
    ],
)
async def test_tuples_are_those_of_httpx(file, content_type):
    """A name, bytes or a file, and perhaps a content type."""
    kimi, inner = scripted(PDF)
    await kimi.files.create(file=file, purpose="file-extract")
    (request,) = inner.requests
    assert form(request)[1] == ("file", "moon.txt", b"moon")
    assert f"Content-Type: {content_type}".encode() in request.content


def test_a_files_content_does_not_flood_the_terminal():
    """Its repr is short."""
    assert len(repr(files.FileContent(b"x" * 1_000_000))) < 100
