"""Kimi's own batches: what is uploaded, what is refused before it is, how long one looks, what comes back."""

import asyncio
import json
from email import message_from_bytes

import pytest

from kimi_async import (
    AsyncKimi,
    BadRequestError,
    BatchRequest,
    ConfigurationError,
    InternalServerError,
    InvalidResponseError,
    RateLimits,
    files,
)
from kimi_async.batches import FIRST_POLL, POLL, Batch
from kimi_async.chat import Message

from .scripted import Scripted, Step, error

HELLO = [{"role": "user", "content": "你好"}]
UPLOADED = {"id": "file_in", "filename": "in.jsonl", "purpose": "batch"}
NEW = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file_in",
    "completion_window": "24h",
    "status": "validating",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": 1_776_000_000,
    "request_counts": None,
    "metadata": None,
}
DONE = {
    **NEW,
    "status": "completed",
    "output_file_id": "file_out",
    "error_file_id": "file_err",
    "request_counts": {"total": 3, "completed": 2, "failed": 1},
}


def scripted(*answers, model="kimi-k2.6", **options):
    """A client whose gateway answers with these values, or as these steps say."""
    steps = [one if isinstance(one, Step) else Step(content=json.dumps(one).encode()) for one in answers]
    inner = Scripted(*steps)
    return AsyncKimi(api_key="sk-1", base_url="http://kimi.test/v1", model=model, transport=inner, **options), inner


def asked(inner):
    """Method and path of each request."""
    return [(request.method, request.url.raw_path.decode()) for request in inner.requests]


def uploaded(inner):
    """Name and lines of the file in the first request."""
    request = inner.requests[0]
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    _, part = message_from_bytes(head + request.content).get_payload()
    lines = part.get_payload(decode=True).decode().splitlines()
    return part.get_filename(), [json.loads(line) for line in lines]


def request(custom_id, **body):
    """One of a batch."""
    return BatchRequest(custom_id=custom_id, body={"messages": HELLO, **body})


def written(custom_id, **body):
    """Its line in the file that is uploaded."""
    url = "/v1/chat/completions"
    whole = {"model": "kimi-k2.6", "messages": HELLO, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": whole}


def output(custom_id, content):
    """A line of an output file, as Kimi's guide shows it."""
    message = {"role": "assistant", "content": content}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_711_475_054,
        "model": "kimi-k2.6",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 40},
    }
    response = {"status_code": 200, "request_id": "", "body": body}
    return json.dumps({"id": custom_id, "custom_id": custom_id, "response": response, "error": None})


async def test_a_batch_is_created_from_an_upload():
    """With the openai SDK's call; null counts are zero."""
    kimi, inner = scripted(NEW)
    batch = await kimi.batches.create(
        input_file_id="file_in", endpoint="/v1/chat/completions", completion_window="3d", metadata={"job": "一"}
    )
    assert asked(inner) == [("POST", "/v1/batches")]
    assert inner.payloads == [
        {
            "input_file_id": "file_in",
            "endpoint": "/v1/chat/completions",
            "completion_window": "3d",
            "metadata": {"job": "一"},
        }
    ]
    assert (batch.id, batch.status, batch.ended) == ("batch_1", "validating", False)
    assert (batch.created_at, batch.completed_at, batch.request_counts.total) == (1_776_000_000, None, 0)


@pytest.mark.parametrize("window", ["30m", "11h", "8d", "169h"])
async def test_a_window_that_kimi_does_not_take_is_refused(window):
    """Before anything is sent, whoever would send it."""
    kimi, inner = scripted(NEW)
    with pytest.raises(ConfigurationError, match="Kimi takes 12h to 7d"):
        await kimi.batches.create(input_file_id="file_in", completion_window=window)
    with pytest.raises(ConfigurationError, match="Kimi takes 12h to 7d"):
        await kimi.batches.submit([request("a")], completion_window=window)
    assert inner.requests == []


@pytest.mark.parametrize("window", ["12h", "24h", "168h", "7d", "1d12h"])
async def test_other_windows_are_kimi_s_to_judge(window):
    """From 12 hours to 7 days, and forms that nobody knows to be wrong."""
    kimi, inner = scripted(NEW)
    await kimi.batches.create(input_file_id="file_in", completion_window=window)
    assert inner.payloads[0]["completion_window"] == window


async def test_a_batch_with_an_unreadable_answer_is_not_created_again():
    """It would be paid for twice."""
    kimi, inner = scripted(Step(content=b"{}"))
    with pytest.raises(InvalidResponseError, match="no batch"):
        await kimi.batches.create(input_file_id="file_in")
    assert len(inner.requests) == 1


async def test_batches_are_retrieved_listed_and_cancelled():
    """Page by page, where there are many."""
    page = {"object": "list", "data": [NEW, DONE], "has_more": True}
    kimi, inner = scripted(DONE, page, page, {**NEW, "status": "cancelling"})
    batch = await kimi.batches.retrieve("batch_1")
    assert (batch.ended, batch.request_counts.total, batch.request_counts.failed) == (True, 3, 1)
    assert [one.status for one in await kimi.batches.list()] == ["validating", "completed"]
    assert (await kimi.batches.list(after="batch_9", limit=2)).has_more
    assert (await kimi.batches.cancel("batch_1")).status == "cancelling"
    assert asked(inner) == [
        ("GET", "/v1/batches/batch_1"),
        ("GET", "/v1/batches"),
        ("GET", "/v1/batches?after=batch_9&limit=2"),
        ("POST", "/v1/batches/batch_1/cancel"),
    ]


async def test_a_file_in_any_form_is_submitted_in_kimi_s(tmp_path):
    """Every body complete, under a name that ends as Kimi wants it; then its batch is created."""
    path = tmp_path / "prompts.txt"
    lines = ["你好", {"prompt": "你好", "max_tokens": 9}, {"custom_id": "c", "messages": HELLO}, written("d")]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    kimi, inner = scripted(UPLOADED, NEW)
    batch = await kimi.batches.submit(path, max_tokens=64, metadata={"job": "1"})
    assert asked(inner) == [("POST", "/v1/files"), ("POST", "/v1/batches")]
    assert uploaded(inner) == (
        "prompts.jsonl",
        [
            written("line-1", max_tokens=64),
            written("line-3", max_tokens=9),
            written("c", max_tokens=64),
            written("d", max_tokens=64),
        ],
    )
    created = json.loads(inner.requests[1].content)
    assert (created["input_file_id"], created["completion_window"]) == ("file_in", "24h")
    assert (created["metadata"], batch.id) == ({"job": "1"}, "batch_1")


async def test_requests_are_submitted_too():
    """From any iterable; what Kimi answered goes back as it came, and the arguments fill in what is missing."""
    said = Message(role="assistant", content="您好")
    requests = (request(name, messages=[*HELLO, said]) for name in ("a", "b"))
    kimi, inner = scripted(UPLOADED, NEW, model=None)
    await kimi.batches.submit(requests, model="kimi-k2.7-code", system="简短")
    messages = [{"role": "system", "content": "简短"}, *HELLO, {"role": "assistant", "content": "您好"}]
    assert uploaded(inner) == (
        "requests.jsonl",
        [written(name, model="kimi-k2.7-code", messages=messages) for name in ("a", "b")],
    )


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (['"a"', "{bad"], r"in\.jsonl: line 2: not JSON"),
        (
            ['{"custom_id": "x", "prompt": "1"}', '"b"', '{"custom_id": "x", "prompt": "2"}'],
            "line 3: .* that of 1 too",
        ),
        (
            ['"a"', '{"prompt": "b", "model": "kimi-k3"}'],
            "line 2: kimi-k3 runs no batches: use kimi-k2.6 or kimi-k2.7",
        ),
        (['"a"', '{"prompt": "b", "model": "kimi-k2.7-code"}'], "line 2: asks for kimi-k2.7-code, .* for kimi-k2.6"),
        (['{"prompt": "a", "temperature": 0.3}'], "line 1: temperature=0.3: kimi-k2.6 takes only 1"),
        (['{"prompt": "a", "stream": true}'], "line 1: stream=true"),
        (["", "  "], r"in\.jsonl is empty"),
    ],
)
async def test_a_line_that_kimi_would_refuse_is_named(tmp_path, lines, problem):
    """Before anything is uploaded."""
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines))
    kimi, inner = scripted(UPLOADED)
    with pytest.raises(ConfigurationError, match=problem):
        await kimi.batches.submit(path)
    assert inner.requests == []


@pytest.mark.parametrize(
    ("requests", "problem"),
    [
        ([request("a"), request("a")], "request 2: custom_id 'a' is that of 1 too; make them differ"),
        ([request("a"), request("b", messages=[])], "request 2: neither a prompt nor messages"),
        ([request("a", stop=[object()])], "cannot be written as JSON"),
        ([], "the file of all requests is empty"),
    ],
)
async def test_so_is_a_request(requests, problem):
    """By its place among them."""
    kimi, inner = scripted(UPLOADED)
    with pytest.raises(ConfigurationError, match=problem):
        await kimi.batches.submit(requests)
    assert inner.requests == []


async def test_a_file_that_is_not_there_is_no_batch(tmp_path):
    """Nor are requests without a model."""
    with pytest.raises(ConfigurationError, match=r"none\.jsonl: No such file"):
        await scripted(UPLOADED)[0].batches.submit(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match="request 1: no model"):
        await scripted(UPLOADED, model=None)[0].batches.submit([request("a")])


async def test_requests_above_the_largest_file_are_refused_as_soon_as_they_are(tmp_path, monkeypatch):
    """The rest is not even looked at."""
    monkeypatch.setattr(files, "MAX_BYTES", 200)
    path = tmp_path / "in.jsonl"
    path.write_text('"a"\n"b"\n{bad')
    kimi, inner = scripted(UPLOADED)
    with pytest.raises(ConfigurationError, match=r"in\.jsonl is above 0 MB"):
        await kimi.batches.submit(path)
    assert inner.requests == []


async def test_a_model_that_nobody_knows_may_run_batches():
    """Kimi adds names faster than packages are released."""
    kimi, inner = scripted(UPLOADED, NEW)
    await kimi.batches.submit([request("a", model="kimi-k4")])
    assert uploaded(inner)[1][0]["body"]["model"] == "kimi-k4"


async def test_an_upload_whose_batch_was_refused_is_named():
    """The error tells where it is."""
    kimi, _ = scripted(UPLOADED, error(400, "invalid_request_error", "no batches for you"))
    with pytest.raises(BadRequestError, match="no batches for you") as caught:
        await kimi.batches.submit([request("a")])
    assert "uploaded as file_in" in caught.value.__notes__[0]


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "cancelled"])
async def test_waiting_ends_with_the_batch_however_it_ends(status):
    """The status says how; no look is one too many."""
    looks = [{**NEW, "status": name} for name in ("validating", "in_progress", "finalizing", "cancelling", status)]
    kimi, inner = scripted(*looks)
    assert (await kimi.batches.wait("batch_1")).status == status
    assert asked(inner) == [("GET", "/v1/batches/batch_1")] * 5


async def test_looks_become_rarer():
    """One second, two, four, up to a minute: an hour takes some sixty-five."""
    kimi, inner = scripted(*[NEW] * 10, DONE)
    await kimi.batches.wait("batch_1")
    pauses = [round(later - earlier, 3) for earlier, later in zip(inner.written, inner.written[1:], strict=False)]
    assert pauses == [FIRST_POLL, 2, 4, 8, 16, 32, POLL, POLL, POLL, POLL]


async def test_the_longest_pause_can_be_set():
    """And must be one."""
    kimi, inner = scripted(*[NEW] * 3, DONE)
    await kimi.batches.wait("batch_1", poll=0.25)
    assert inner.written[-1] - inner.written[0] == pytest.approx(0.75)
    for poll in (0, -1, float("nan")):
        with pytest.raises(ConfigurationError, match="must be above 0"):
            await kimi.batches.wait("batch_1", poll=poll)


async def test_a_wait_can_be_given_up():
    """As any other."""
    kimi, _ = scripted(NEW)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1000):
            await kimi.batches.wait("batch_1")


async def test_results_are_answers_and_then_errors():
    """Each with its name; an error is the exception for its status."""
    refused = {"error": {"type": "content_filter", "message": "high risk"}}
    failed = {
        "custom_id": "c",
        "response": {"status_code": 400, "request_id": "req-3", "body": refused},
        "error": None,
    }
    answers = f"{output('a', '一')}\n\n{output('b', '二')}\n"
    kimi, inner = scripted(Step(content=answers.encode()), failed)
    results = [result async for result in kimi.batches.results(Batch.model_validate(DONE))]
    assert [(one.custom_id, one.completion and one.text) for one in results] == [("a", "一"), ("b", "二"), ("c", None)]
    assert results[0].completion.usage.total_tokens == 40
    assert isinstance(results[2].error, BadRequestError)
    assert (results[2].error.type, results[2].error.request_id) == ("content_filter", "req-3")
    assert asked(inner) == [("GET", "/v1/files/file_out/content"), ("GET", "/v1/files/file_err/content")]


async def test_a_line_that_is_no_result_costs_no_other():
    """It is its own request's error, with its place; where that cannot be told, it comes after all the others."""
    nameless, nonsense = '{"response": null}', "<html>"
    named = '{"custom_id": "b", "response": {"status_code": "?"}}'
    answers = "\n".join([output("a", "一"), "", named, nameless, output("c", "三")])
    kimi, _ = scripted(Step(content=answers.encode()), Step(content=f"{nonsense}\n{output('d', '四')}".encode()))
    lines = kimi.batches.results(Batch.model_validate(DONE))
    results = [await anext(lines) for _ in "abcd"]
    with pytest.raises(InvalidResponseError) as caught:
        await anext(lines)
    assert str(caught.value) == f"file_out, line 4: no line of batch output: {nameless!r}; and 1 more"
    assert caught.value.body == nameless
    assert [one.custom_id for one in results if one.error is None] == ["a", "c", "d"]
    assert str(results[1].error) == f"file_out, line 3: no line of batch output: {named!r}"


@pytest.mark.parametrize("status", ["expired", "cancelled"])
async def test_a_batch_that_was_cut_short_has_what_was_done(status):
    """Which may be nothing."""
    kimi, _ = scripted(Step(content=output("a", "一").encode()))
    some = Batch.model_validate({**DONE, "status": status, "error_file_id": None})
    assert [result.text async for result in kimi.batches.results(some)] == ["一"]
    none = Batch.model_validate({**NEW, "status": status, "output_file_id": ""})
    assert [result async for result in kimi.batches.results(none)] == []


LINES = [{"code": "bad", "message": f"wrong {line}", "param": None, "line": line} for line in range(1, 8)]


@pytest.mark.parametrize(
    ("errors", "problem"),
    [
        ({"object": "list", "data": LINES[:2]}, "no request was run: line 1: wrong 1; line 2: wrong 2$"),
        (LINES, "line 5: wrong 5; and 2 more$"),
        ("no such model", "no request was run: no such model$"),
        ({"data": [{"code": "empty_file", "message": None}]}, "no request was run: empty_file$"),
        (None, "Kimi does not say why$"),
        ("", "Kimi does not say why$"),
    ],
)
async def test_a_batch_that_failed_says_which_lines_are_wrong(errors, problem):
    """In whatever form Kimi says it."""
    kimi, inner = scripted(NEW)
    batch = Batch.model_validate({**NEW, "status": "failed", "errors": errors})
    with pytest.raises(ConfigurationError, match=problem):
        await anext(kimi.batches.results(batch))
    assert inner.requests == []


async def test_a_batch_that_has_not_ended_has_no_results():
    """The error says what to do."""
    with pytest.raises(ConfigurationError, match="batch_1 is in_progress: wait for its end"):
        await anext(scripted(NEW)[0].batches.results(Batch.model_validate({**NEW, "status": "in_progress"})))


async def test_reading_many_results_lets_others_work():
    """Between any two of them."""
    kimi, _ = scripted(Step(content="\n".join([output("a", "一")] * 50).encode()))
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    batch = Batch.model_validate({**DONE, "error_file_id": None})
    assert len([result async for result in kimi.batches.results(batch)]) == 50
    task.cancel()
    assert turns >= 50


async def test_looking_at_a_batch_survives_a_busy_server():
    """As any request does, and no longer."""
    busy = error(503, "server_unavailable", "busy")
    assert (await scripted(busy, DONE)[0].batches.wait("batch_1")).ended
    with pytest.raises(InternalServerError):
        await scripted(busy, max_attempts=2)[0].batches.wait("batch_1")


@pytest.mark.real_time
async def test_from_prompts_to_results_against_a_gateway(tmp_path):
    """Upload, list, read, delete; submit, wait, fetch; and the reasons of a batch that fails."""
    from kimi_async import mock

    path = tmp_path / "prompts.jsonl"
    path.write_text('"一"\n{"custom_id": "two", "prompt": "二"}\n')
    async with (
        mock.running(mock.MockSettings(batch_seconds=0.05), count_prompt=lambda *parts: 5) as base_url,
        AsyncKimi(api_key="sk-1", base_url=base_url, model="kimi-k2.6", limits=RateLimits.tier(1)) as kimi,
    ):
        file = await kimi.files.create(file=("月亮.jsonl", b"some text"), purpose="batch")
        assert [(one.id, one.filename, one.bytes) for one in await kimi.files.list()] == [(file.id, "月亮.jsonl", 9)]
        assert (await kimi.files.content(file.id)).text == "some text"

        batch = await kimi.batches.submit(path, max_tokens=8)
        batch = await kimi.batches.wait(batch.id, poll=0.02)
        assert (batch.status, batch.request_counts.total, batch.request_counts.completed) == ("completed", 2, 2)
        results = {result.custom_id: result.text async for result in kimi.batches.results(batch)}
        assert results.keys() == {"line-1", "two"}
        assert all(results.values())
        assert [one.id for one in await kimi.batches.list(limit=1)] == [batch.id]

        failed = await kimi.batches.wait((await kimi.batches.create(input_file_id=file.id)).id, poll=0.02)
        assert failed.status == "failed"
        with pytest.raises(ConfigurationError, match="line 1: "):
            await anext(kimi.batches.results(failed))

        assert (await kimi.files.delete(file.id)).deleted
        assert file.id not in [one.id for one in await kimi.files.list()]
