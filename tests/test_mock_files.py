"""Files and batches of the mock gateway."""

import json

import httpx
import pytest

from kimi_async.limits import RateLimits
from kimi_async.mock import files as store
from kimi_async.mock.gateway import Gateway

from .mocked import chat, client, count_characters, instant


async def upload(kimi, content, purpose="batch", name="in.jsonl"):
    """The file object of what was uploaded."""
    response = await kimi.post("/files", files={"file": (name, content)}, data={"purpose": purpose})
    assert response.status_code == 200, response.text
    return response.json()


async def test_files_come_and_go():
    """Uploaded, listed, described, read and deleted; then nobody knows it."""
    content = b"\x00\xff\r\n--x\r\n" * 1_000
    async with client(instant()) as kimi:
        other = await upload(kimi, b"hello", "file-extract", "月.txt")
        uploaded = await upload(kimi, content, "image", "moon.png")
        listed = (await kimi.get("/files")).json()
        described = (await kimi.get(f"/files/{uploaded['id']}")).json()
        read = await kimi.get(f"/files/{uploaded['id']}/content")
        deleted = (await kimi.delete(f"/files/{uploaded['id']}")).json()
        after = (await kimi.get("/files")).json()["data"]
        gone = [await kimi.get(f"/files/{uploaded['id']}{more}") for more in ("", "/content")]
    assert listed == {"object": "list", "data": [other, uploaded]}
    assert described == uploaded
    known = {"object": "file", "bytes": 9_000, "filename": "moon.png", "purpose": "image", "status": "ok"}
    assert {**known, "status_details": ""}.items() <= uploaded.items()
    assert other["filename"] == "月.txt"
    assert read.content == content
    assert read.headers["content-type"].startswith("text/plain")
    assert deleted == {"id": uploaded["id"], "object": "file", "deleted": True}
    assert after == [other]
    assert {(r.status_code, r.json()["error"]["type"]) for r in gone} == {(404, "resource_not_found_error")}


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (({"file": b"x"}, {"purpose": "fun"}),
         "Invalid purpose: fun, only `file-extract`, `batch`, `batch_output`, `lambda`, `image` and `video` accepted"),
        (({"file": b""}, {"purpose": "batch"}), "File size is zero"),
        (({"file": b"12345678901"}, {"purpose": "batch"}), "File size is too large"),
        (({"other": b"x"}, {"purpose": "batch"}), "Invalid request: file is required"),
        ((None, {"purpose": "batch"}), "Invalid request: file is required"),
    ],
)  # fmt: skip
async def test_wrong_uploads_are_refused(form, text, monkeypatch):
    """A 400 with Kimi's words; here a file may have 10 bytes."""
    monkeypatch.setattr(store, "LARGEST_FILE", 10)
    async with client(instant()) as kimi:
        response = await kimi.post("/files", files=form[0], data=form[1])
        no_form = await kimi.post("/files", content=b"x", headers={"content-type": "multipart/form-data; boundary=y"})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(text)
    assert (no_form.status_code, no_form.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_there_is_room_for_so_many_files(monkeypatch):
    """One more is a 400."""
    monkeypatch.setattr(store, "MOST_FILES", 2)
    async with client(instant()) as kimi:
        for _ in range(2):
            await upload(kimi, b"x")
        response = await kimi.post("/files", files={"file": b"x"}, data={"purpose": "batch"})
    assert "max file count 2" in response.json()["error"]["message"]


async def test_prompts_refer_to_files_that_exist():
    """An image by ms:// is taken while its file is there, and costs nothing afterwards."""
    async with client(instant()) as kimi:
        uploaded = await upload(kimi, b"png", "image", "moon.png")
        part = {"type": "image_url", "image_url": {"url": f"ms://{uploaded['id']}"}}
        video = {"type": "video_url", "video_url": f"ms://{uploaded['id']}"}
        messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part, video]}]
        before = await chat(kimi, messages=messages)
        await kimi.delete(f"/files/{uploaded['id']}")
        after = await chat(kimi, messages=messages)
        stats = (await kimi.get("/stats")).json()
    assert (before.status_code, after.status_code, stats["admitted"]) == (200, 400, 1)
    assert after.json()["error"]["message"] == f"Invalid request: file {uploaded['id']} not found"


@pytest.mark.parametrize("path", ["/files", "/files/x", "/files/x/content", "/batches", "/batches/x"])
async def test_they_need_a_key(path):
    """As all endpoints do."""
    transport = httpx.ASGITransport(Gateway(instant(), count_characters))
    async with httpx.AsyncClient(transport=transport, base_url="http://mock/v1") as kimi:
        assert (await kimi.get(path)).status_code == 401


def line(name, **changes):
    """A request in Batch form."""
    body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": name}], "max_tokens": 20}
    return {
        "custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body, **changes
    }  # fmt: skip


def jsonl(*lines):
    """Those lines; strings as they are."""
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines).encode()


class Clock:
    """A clock that tests set."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    """The gateway's."""
    return Clock()


@pytest.fixture
async def kimi(clock):
    """A gateway whose batches take 10 s, with limits that a single request exceeds."""
    async with client(instant(batch_seconds=10, limits=RateLimits(tpm=1)), clock=clock) as kimi:
        yield kimi


async def created(kimi, *lines, **options):
    """A new batch of those lines."""
    uploaded = await upload(kimi, jsonl(*lines))
    asked = {"input_file_id": uploaded["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    response = await kimi.post("/batches", json={**asked, **options})
    assert response.status_code == 200, response.text
    return response.json()


async def lines_of(kimi, file_id):
    """The lines of an output file."""
    content = (await kimi.get(f"/files/{file_id}/content")).text
    return [json.loads(one) for one in content.splitlines()]


async def test_a_batch_passes_its_states(kimi, clock):
    """Ten seconds from creation to completion, with as many requests done as time has passed."""
    batch = await created(kimi, *[line(str(n)) for n in range(8)], metadata={"job": "test"})
    story = []
    for now in (0, 0.9, 1, 5, 9, 9.9, 10):
        clock.now = now
        found = (await kimi.get(f"/batches/{batch['id']}")).json()
        story.append((now, found["status"], found["request_counts"]["completed"]))
    assert story == [
        (0, "validating", 0),
        (0.9, "validating", 0),
        (1, "in_progress", 0),
        (5, "in_progress", 4),
        (9, "finalizing", 8),
        (9.9, "finalizing", 8),
        (10, "completed", 8),
    ]
    assert (batch["object"], batch["metadata"], batch["output_file_id"]) == ("batch", {"job": "test"}, None)
    assert (found["completed_at"], found["error_file_id"]) == (batch["created_at"] + 10, None)
    assert found["expires_at"] == batch["created_at"] + 24 * 3_600


async def test_a_batch_leaves_its_answers_in_files(kimi, clock):
    """Completions for what is right, errors for what is not, none of it charged to the limits."""
    wrong = line("wrong")
    wrong["body"]["temperature"] = 0.1
    batch = await created(kimi, line("a"), "", wrong, line("b"))
    clock.now = 10
    done = (await kimi.get(f"/batches/{batch['id']}")).json()
    answers, errors = [await lines_of(kimi, done[f"{kind}_file_id"]) for kind in ("output", "error")]
    again = (await kimi.get(f"/batches/{batch['id']}")).json()
    stored = (await kimi.get(f"/files/{done['output_file_id']}")).json()
    stats = (await kimi.get("/stats")).json()
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert again == done
    assert [answer["custom_id"] for answer in answers] == ["a", "b"]
    for answer in answers:
        assert (answer["response"]["status_code"], answer["error"]) == (200, None)
        assert answer["response"]["body"]["choices"][0]["message"]["content"]
        assert answer["response"]["body"]["usage"]["completion_tokens"] <= 20
    (error,) = errors
    assert (error["custom_id"], error["response"]["status_code"]) == ("wrong", 400)
    assert error["response"]["body"]["error"]["message"].startswith("invalid temperature")
    assert stored["purpose"] == "batch_output"
    assert (stats["admitted"], stats["charged_tokens"], stats["refused"]["tpm"]) == (0, 0, 0)


async def test_a_full_store_keeps_what_a_batch_leaves(kimi, clock, monkeypatch):
    """Only uploads are refused."""
    batch = await created(kimi, line("a"))
    monkeypatch.setattr(store, "MOST_FILES", 1)
    clock.now = 10
    done = (await kimi.get(f"/batches/{batch['id']}")).json()
    assert done["status"] == "completed"
    assert [answer["custom_id"] for answer in await lines_of(kimi, done["output_file_id"])] == ["a"]
    assert (await kimi.post("/files", files={"file": b"x"}, data={"purpose": "batch"})).status_code == 400


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([line("a"), "{"], [(2, "invalid_json_line")]),
        ([line("a"), "", line("a")], [(3, "duplicate_custom_id")]),
        ([line("")], [(1, "missing_required_parameter")]),
        ([line("a", url="/v1/embeddings")], [(1, "invalid_url")]),
        ([line("a", method="GET")], [(1, "invalid_method")]),
        ([line("a", body=None), "[]"], [(1, "invalid_request"), (2, "invalid_request")]),
        ([line("a", body={"model": "kimi-k3"})], [(1, "model_not_found")]),
        ([line("a", body={"model": "kimi-k2.7-code-highspeed"})], [(1, "model_not_found")]),
        ([line("a"), line("b", body={"model": "kimi-k2.7-code"})], [(2, "mismatched_model")]),
    ],
)
async def test_a_file_with_an_error_fails_as_a_whole(kimi, clock, lines, expected):
    """After validation, with the number of each wrong line and why; nothing is answered."""
    batch = await created(kimi, *lines)
    clock.now = 10
    failed = (await kimi.get(f"/batches/{batch['id']}")).json()
    assert (batch["status"], failed["status"], failed["output_file_id"]) == ("validating", "failed", None)
    assert [(error["line"], error["code"]) for error in failed["errors"]["data"]] == expected
    assert failed["failed_at"] == batch["created_at"] + 1


async def test_a_batch_can_be_cancelled(kimi, clock):
    """It keeps what is done; a second time, or at the end, it is too late."""
    batch, finished = [await created(kimi, *[line(str(n)) for n in range(8)]) for _ in range(2)]
    clock.now = 5
    cancelling = (await kimi.post(f"/batches/{batch['id']}/cancel")).json()
    clock.now = 6
    cancelled = (await kimi.get(f"/batches/{batch['id']}")).json()
    clock.now = 10
    late = [await kimi.post(f"/batches/{one['id']}/cancel") for one in (batch, finished)]
    assert (cancelling["status"], cancelled["status"]) == ("cancelling", "cancelled")
    assert cancelled["request_counts"] == {"total": 8, "completed": 4, "failed": 0}
    assert len(await lines_of(kimi, cancelled["output_file_id"])) == 4
    assert [response.status_code for response in late] == [400, 400]


async def test_batches_are_listed_in_pages(kimi):
    """Newest first; a page begins after the last one of the page before."""
    ids = [(await created(kimi, line("a")))["id"] for _ in range(5)][::-1]
    pages, after = [], ""
    while True:
        page = (await kimi.get("/batches", params={"limit": 2, "after": after})).json()
        pages.append([batch["id"] for batch in page["data"]])
        if not page["has_more"]:
            break
        after = pages[-1][-1]
    everything = (await kimi.get("/batches")).json()
    assert pages == [ids[:2], ids[2:4], ids[4:]]
    assert [batch["id"] for batch in everything["data"]] == ids


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"input_file_id": "file-unknown"}, 404),
        ({"input_file_id": None}, 400),
        ({"endpoint": "/v1/embeddings"}, 400),
        ({"completion_window": "11h"}, 400),
        ({"completion_window": "8d"}, 400),
        ({"completion_window": "soon"}, 400),
        ({"metadata": {str(n): "x" for n in range(17)}}, 400),
    ],
)
async def test_wrong_batches_are_refused(kimi, wrong, status):
    """As is a file of another purpose, and a batch that nobody knows."""
    uploaded = await upload(kimi, jsonl(line("a")))
    picture = await upload(kimi, b"x", "image", "x.jsonl")
    asked = {"input_file_id": uploaded["id"], "endpoint": "/v1/chat/completions", "completion_window": "7d"}
    assert (await kimi.post("/batches", json={**asked, **wrong})).status_code == status
    assert (await kimi.post("/batches", json={**asked, "input_file_id": picture["id"]})).status_code == 400
    assert (await kimi.post("/batches", content=b"{")).status_code == 400
    assert (await kimi.get("/batches/unknown")).status_code == 404
    assert (await kimi.post("/batches", json=asked)).status_code == 200
