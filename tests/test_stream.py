"""A streamed answer: its bytes however they come, its slot, and all the ways in which it may end."""

import asyncio
import gc
import gzip
import json
from itertools import pairwise

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kimi_async.chat import ChatCompletionChunk
from kimi_async.client import AsyncKimi
from kimi_async.errors import (
    APIConnectionError,
    APITimeoutError,
    BadRequestError,
    EngineOverloadedError,
    InternalServerError,
    InvalidResponseError,
    KimiError,
    QuotaExceededError,
    RateLimitError,
    StreamBroken,
)
from kimi_async.events import Retrying
from kimi_async.limits import RateLimits
from kimi_async.stream import TAIL, open_stream

from .conftest import run_virtual
from .scripted import NO_BALANCE, OVERLOADED, Body, Step, answer, error, everything_in
from .streamed import (
    DONE,
    HELLO,
    SSE,
    USAGE,
    WIDE,
    chunk,
    client,
    event,
    opened,
    piece,
    read,
    said,
    slots,
    slots_later,
    streams,
    texts,
)

ONE = RateLimits(concurrency=1, rpm=100_000, tpm=100_000_000)
OVERLOAD = event({"error": {"type": OVERLOADED[0], "message": OVERLOADED[1]}})


def clock():
    """The loop's time, from zero, to the tenth of a millisecond."""
    return round(asyncio.get_running_loop().time() - 1000.0, 4)


# -- bytes ----------------------------------------------------------------------------------------------------

TEXT = "月亮\u2028🌕 é\r\n\x85 data: [DONE]\n\n"
WIRE = [chunk(piece("", role="assistant")), chunk(piece(TEXT)), chunk(piece(finish_reason="stop", usage=USAGE))]


def lines_of(data):
    """The ``data`` lines of one event: JSON over several lines is one value."""
    pretty = json.dumps(data, ensure_ascii=False, indent=1)
    return "\n".join(f"data:{line}" for line in pretty.split("\n")) + "\n\n"


ENCODINGS = {
    "plain": "".join(f"data: {json.dumps(data, ensure_ascii=False)}\n\n" for data in WIRE),
    "escaped": "".join(f"data: {json.dumps(data)}\n\n" for data in WIRE),
    "no blank after the colon": "".join(f"data:{json.dumps(data, ensure_ascii=False)}\n\n" for data in WIRE),
    "several lines": "".join(map(lines_of, WIRE)),
    "comments and fields": ": hi\n\n" + "".join(
        f": keep-alive\n\nevent: message\nid: {number}\nretry: 10\nwhat: ever\nunknown\n"
        f"data: {json.dumps(data, ensure_ascii=False)}\n: in between\n\n:\n\n"
        for number, data in enumerate(WIRE)
    ),
    "a byte order mark": "\ufeff" + "".join(f"data: {json.dumps(data, ensure_ascii=False)}\n\n" for data in WIRE),
}  # fmt: skip
ENDS = ["\n", "\r\n", "\r"]


def encoded(name, end):
    """The bytes of an answer, with its line ends, and where its last event begins."""
    body = ENCODINGS[name].replace("\n", end).encode()
    return body, body + f"data: [DONE]{end}{end}".encode()


def split(content, cuts):
    """The bytes in parts; a part may be empty, as httpx never yields but a proxy may."""
    places = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    return [content[a:b] for a, b in pairwise(places)]


async def received(parts, headers=SSE):
    """What comes of such a body: the chunks, and the error at its end or None."""
    response = httpx.Response(200, headers=headers, stream=Body(*parts))
    try:
        got, exc = await read(await open_stream(response))
    except InvalidResponseError as exc:
        return [], exc
    return [one.model_dump(mode="json", exclude_unset=True) for one in got], exc


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(ENCODINGS)),
    st.sampled_from(ENDS),
    st.lists(st.integers(0, 10**6), max_size=40),
    st.booleans(),
)
def test_chunks_are_the_same_however_the_bytes_are_split(name, end, cuts, every_byte):
    """In the middle of characters, of line ends, of anything; in one piece; a byte at a time."""
    _, content = encoded(name, end)
    parts = [content[at : at + 1] for at in range(len(content))] if every_byte else split(content, cuts)
    assert run_virtual(received(parts)) == (WIRE, None)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(ENCODINGS)),
    st.sampled_from(ENDS),
    st.integers(0, 10**6),
    st.lists(st.integers(0, 10**6), max_size=5),
)
@example("plain", "\n", 0, [])
@example("plain", "\r\n", 10**6, [])
def test_an_answer_cut_anywhere_is_never_taken_for_a_whole_one(name, end, at, cuts):
    """Up to the blank line after ``[DONE]``: what had arrived, and then an error that has it too."""
    body, content = encoded(name, end)
    cut = content[: at % (len(body) + len("data: [DONE]") + len(end) + 1)]
    got, exc = run_virtual(received(split(cut, cuts)))
    assert got == WIRE[: len(got)]
    assert len(got) >= len(WIRE) * (len(cut) >= len(body))
    if got:
        assert type(exc) is StreamBroken
        assert exc.partial.text == "".join(one["choices"][0]["delta"].get("content", "") for one in got)
    else:
        assert type(exc) is InvalidResponseError


@pytest.mark.parametrize("charset", ["", "; charset=utf-8", "; charset=iso-8859-1", "; charset=klingon"])
async def test_events_are_utf8_whatever_the_header_says(charset):
    """As the standard has it."""
    _, content = encoded("plain", "\n")
    assert await received([content], {"Content-Type": f"text/event-stream{charset}"}) == (WIRE, None)


async def test_a_compressed_answer_is_read():
    """Nobody asked for it; a proxy may not care."""
    _, content = encoded("plain", "\n")
    packed = gzip.compress(content)
    headers = {**SSE, "Content-Encoding": "gzip"}
    assert await received([packed[at : at + 7] for at in range(0, len(packed), 7)], headers) == (WIRE, None)


async def test_what_comes_after_the_end_is_no_part_of_the_answer():
    """Whatever it is."""
    _, content = encoded("plain", "\n")
    assert await received([content + event(chunk(piece("more"))), b"data: {\n\n\xff"]) == (WIRE, None)


@pytest.mark.parametrize(
    "garbage", ["<html>", "{", "null", "[]", '"x"', '{"choices": 1}', '{"choices": [{"delta": 1}]}']
)
async def test_an_event_that_is_no_chunk_breaks_the_stream(garbage):
    """The cause says what came instead."""
    good, bad = said("a")[:2], f"data: {garbage}\n\n".encode()
    got, exc = await received([*good, bad, DONE])
    assert len(got) == 2
    assert isinstance(exc.__cause__, InvalidResponseError)
    assert exc.__cause__.body == garbage
    assert exc.partial.text == "a"


# -- the slot -------------------------------------------------------------------------------------------------


async def test_the_slot_is_held_until_the_end():
    """Not given back at the headers, nor at the first chunk."""
    kimi, inner = client(streams(*said("a", "b"), seconds=1))
    task = asyncio.create_task(opened(kimi))
    await asyncio.sleep(0.5)
    assert slots(kimi) == 1
    stream = await task
    seen = [(clock(), slots(kimi), one.text) async for one in stream]
    assert seen == [(1, 1, ""), (2, 1, "a"), (3, 1, "b"), (4, 1, "")]
    assert (clock(), slots(kimi), inner.bodies[0].closed) == (5, 0, 1)


async def test_a_stream_that_has_ended_ends_again():
    """As iterators do."""
    kimi, _ = client()
    stream = await opened(kimi)
    assert await texts(stream) == ["", "hello", ""]
    assert await texts(stream) == []
    assert stream.exhausted
    await stream.aclose()
    assert await texts(stream) == []


async def test_closing_hangs_up():
    """What has arrived can still be read; then it is told that there would have been more."""
    kimi, inner = client(streams(*said("a", "b"), seconds=1))
    stream = await opened(kimi)
    await asyncio.sleep(1.5)
    await stream.aclose()
    assert (clock(), slots(kimi), inner.bodies[0].closed) == (2.5, 1, 1)
    assert await slots_later(kimi) == 0
    assert [(await anext(stream)).text for _ in range(2)] == ["", "a"]
    with pytest.raises(StreamBroken, match="closed, or its reader cancelled, after 2 chunks") as caught:
        await anext(stream)
    assert caught.value.partial.text == "a"
    assert not stream.exhausted
    await stream.aclose()


async def test_closing_before_the_loop_has_turned_once():
    """Its task has not even begun."""
    kimi, inner = client(streams(*said("a"), seconds=1))
    stream = await opened(kimi)
    await stream.aclose()
    assert (clock(), inner.bodies[0].closed, await slots_later(kimi)) == (1, 1, 0)


async def test_leaving_its_block_hangs_up():
    """By an exception, too."""
    kimi, _ = client(streams(*said("a", "b"), seconds=1))

    async def consume():
        async with await opened(kimi) as stream:
            async for _ in stream:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await consume()
    assert (clock(), await slots_later(kimi)) == (1, 0)


async def test_a_consumer_cancelled_while_it_waits_hangs_up():
    """Whoever still holds the stream."""
    kimi, inner = client(streams(*said("a", "b"), seconds=1))
    stream = await opened(kimi)
    task = asyncio.create_task(texts(stream))
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert task.cancelled()
    assert (clock(), inner.bodies[0].closed, await slots_later(kimi)) == (1.5, 1, 0)


async def test_a_timeout_for_a_chunk_is_never_taken_for_the_end():
    """The wait was cancelled, and so is the answer; to read on says so."""
    kimi, _ = client(streams(*said("a"), seconds=10))
    stream = await opened(kimi)
    await anext(stream)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await anext(stream)
    with pytest.raises(StreamBroken, match="after 1 chunk;"):
        await anext(stream)
    assert await slots_later(kimi) == 0


async def test_a_consumer_cancelled_while_it_works_lets_go():
    """Its frame is gone and the stream with it; nobody holds the task."""
    kimi, _ = client(streams(*said("a", "b"), seconds=1))

    async def consume():
        async for _ in await opened(kimi):
            await asyncio.sleep(100)

    task = asyncio.create_task(consume())
    await asyncio.sleep(1.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    await asyncio.sleep(0)
    assert await slots_later(kimi) == 0


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_dropping_the_stream_hangs_up(turns):
    """At once, after a turn, after some."""
    kimi, inner = client(streams(*said("a", "b"), seconds=1))
    stream = await opened(kimi)
    for _ in range(turns):
        await asyncio.sleep(0)
    del stream
    await asyncio.sleep(0.1)
    assert (clock(), inner.bodies[0].closed, await slots_later(kimi)) == (1.1, 1, 0)


@pytest.fixture
def _no_collector():
    """Cycles are collected when the test says so."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
async def test_dropping_it_in_a_cycle_hangs_up_when_the_collector_runs():
    """In whatever thread that is; a loop in debug mode refuses what is not done in its own."""
    asyncio.get_running_loop().set_debug(True)
    kimi, _ = client(streams(*said("a", "b"), seconds=1))
    stream = await opened(kimi)
    stream.itself = stream
    del stream
    await asyncio.to_thread(gc.collect)
    await asyncio.sleep(0.1)
    assert await slots_later(kimi) == 0


async def test_a_loop_left_early_lets_the_answer_come():
    """The variable lives on; so the slot is free when the gateway has finished."""
    kimi, _ = client(streams(*said("a", "b"), seconds=1))
    stream = await opened(kimi)
    async for _ in stream:
        break
    await asyncio.sleep(3.5)
    assert slots(kimi) == 1
    await asyncio.sleep(1)
    assert slots(kimi) == 0
    assert await texts(stream) == ["a", "b", ""]


async def test_a_consumer_that_stops_reading_can_ask_something_else():
    """With a single slot: the second request goes out when the first answer has come, and nobody waits for ever."""
    kimi, inner = client(streams(*said("a", "b"), seconds=1), answer("second"), limits=ONE)
    stream = await opened(kimi)
    await anext(stream)
    assert (await kimi.chat.completions.create(messages=HELLO)).text == "second"
    assert inner.written == pytest.approx([0, 5], abs=1e-4)
    assert await texts(stream) == ["a", "b", ""]


async def test_many_streams_share_few_slots():
    """Each waits for its turn, and all come through."""
    kimi, inner = client(streams(*said("a"), seconds=1), limits=RateLimits(concurrency=3))

    async def one():
        return await texts(await opened(kimi))

    assert await asyncio.gather(*[one() for _ in range(9)]) == [["", "a", ""]] * 9
    assert (clock(), slots(kimi)) == (12, 0)
    assert len(inner.requests) == 9


@pytest.mark.parametrize("when", [0.5, 2.5])
async def test_cancelled_before_the_first_chunk(when):
    """While the gateway thinks, and between the headers and the first chunk."""
    kimi, inner = client(streams(*said("a"), seconds=2, think=1))
    task = asyncio.create_task(opened(kimi))
    await asyncio.sleep(when)
    assert slots(kimi) == 1
    task.cancel()
    await asyncio.wait([task])
    assert await slots_later(kimi) == 0
    assert all(body.closed for body in inner.bodies)


@pytest.mark.parametrize("how", ["drop", "keep", "close", "read one"])
def test_a_loop_that_ends_in_the_middle_leaves_nothing(how):
    """No connection, no task, no generator; warnings are errors."""
    kept = []

    async def main():
        kimi, inner = client(streams(*said("a", "b"), seconds=1))
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: kept.append(context))
        stream = await opened(kimi)
        if how == "read one":
            await anext(stream)
        if how == "close":
            await stream.aclose()
        return inner, None if how == "drop" else stream

    inner, stream = run_virtual(main())
    del stream
    gc.collect()
    assert inner.bodies[0].closed
    assert not kept


# -- the end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (httpx.ReadTimeout("nothing came for 900 s"), "ReadTimeout: nothing came for 900 s"),
        (httpx.ReadError("cut"), "ReadError: cut"),
        (httpx.RemoteProtocolError("gone"), "RemoteProtocolError: gone"),
        (None, "InvalidResponseError: it ended without"),
    ],
)
async def test_a_stream_that_breaks_raises_with_what_had_arrived(fails, words):
    """After all of that has been read, again and again; one request; the slot is free."""
    kimi, inner = client(streams(*said("a", "b")[:3], fails=fails))
    stream = await opened(kimi)
    got, exc = await read(stream)
    assert [one.text for one in got] == ["", "a", "b"]
    assert str(exc).startswith(f"the answer broke off after 3 chunks: {words}")
    assert (exc.partial.text, exc.partial.choices[0].finish_reason) == ("ab", None)
    assert exc.partial.request_id == stream.request_id == "req-1"
    assert type(exc.__cause__) is (type(fails) if fails else InvalidResponseError)
    assert (len(inner.requests), inner.bodies[0].closed, await slots_later(kimi)) == (1, 1, 0)
    with pytest.raises(StreamBroken):
        await anext(stream)


async def test_a_silence_between_chunks_is_a_timeout():
    """The bound is the connection's; keep-alives are no silence."""

    class Impatient(Body):
        async def __aiter__(self):
            async for one in super().__aiter__():
                yield one
            await asyncio.sleep(30)
            raise httpx.ReadTimeout("nothing came for 30 s")

    body = Impatient(*said("a")[:2], *[b": keep-alive\n\n"] * 5, seconds=20)
    kimi, inner = client(Step(content=body, headers=SSE))
    with pytest.raises(StreamBroken, match="nothing came for 30 s"):
        await texts(await opened(kimi, timeout=30))
    assert inner.requests[0].extensions["timeout"]["read"] == 30
    assert (clock(), await slots_later(kimi)) == (170, 0)


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        (*OVERLOADED, EngineOverloadedError),
        (*NO_BALANCE, QuotaExceededError),
        ("content_filter", "The request was rejected because it was considered high risk", BadRequestError),
        ("invalid_request_error", "Invalid request", BadRequestError),
        ("rate_limit_reached_error", "organization TPM rate limit, current: 7, limit: 5", RateLimitError),
        ("server_error", "oops", InternalServerError),
        (None, "oops", InternalServerError),
    ],
)
async def test_an_error_in_the_middle_is_the_cause(kind, message, expected):
    """Named as it would be with a status of its own, with the request's id."""
    failure = event({"error": {"type": kind, "message": message}})
    kimi, inner = client(streams(*said("a")[:2], failure))
    with pytest.raises(StreamBroken, match=message) as caught:
        await texts(await opened(kimi))
    cause = caught.value.__cause__
    assert type(cause) is expected
    assert (cause.type, cause.request_id) == (kind, "req-1")
    assert (len(inner.requests), await slots_later(kimi)) == (1, 0)


@pytest.mark.parametrize("error_event", [b'event: error\ndata: {"error": "boom"}\n\n', b'data: {"error": {}}\n\n'])
async def test_an_error_of_no_known_form_is_one_all_the_same(error_event):
    """Its text is told."""
    kimi, _ = client(streams(*said("a")[:2], error_event))
    with pytest.raises(StreamBroken) as caught:
        await texts(await opened(kimi))
    assert isinstance(caught.value.__cause__, InternalServerError)


async def test_a_last_chunk_with_usage_and_no_choices_is_no_error():
    """What ``include_usage`` asks for; an error that is null is none."""
    last = event(chunk(usage=USAGE, error=None))
    kimi, _ = client(streams(*said("a")[:-1], last, DONE))
    stream = await opened(kimi, stream_options={"include_usage": True})
    assert await texts(stream) == ["", "a", "", ""]
    assert stream.completion.usage.model_dump(exclude_unset=True) == USAGE


async def test_an_answer_that_came_whole_is_whole_though_its_connection_is_not_closed_in_order():
    """All chunks are there; what a broken connection costs is the next request's business."""

    class Stubborn(Body):
        async def aclose(self):
            await super().aclose()
            raise OSError("cannot close")

    kimi, _ = client(Step(content=Stubborn(*said("a")), headers=SSE))
    assert await texts(await opened(kimi)) == ["", "a", ""]
    assert slots(kimi) == 0


async def test_a_connection_is_closed_in_peace():
    """Closing takes a second; to be cancelled and dropped meanwhile does not interrupt it."""

    class Slow(Body):
        async def aclose(self):
            await asyncio.sleep(1)
            await super().aclose()

    kimi, inner = client(Step(content=Slow(*said("a"), seconds=1), headers=SSE))
    stream = await opened(kimi)
    task = asyncio.create_task(stream.aclose())
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.wait([task])
    del stream, task
    gc.collect()
    await asyncio.sleep(1)
    assert (inner.bodies[0].closed, await slots_later(kimi)) == (1, 0)


@pytest.mark.parametrize("more", [[], [b": bye\n\n"]])
async def test_the_other_side_gets_a_moment_to_end_properly(more):
    """So that the connection can be used again; a slot is worth more than a connection."""

    class Lingering(Body):
        async def __aiter__(self):
            async for one in super().__aiter__():
                yield one
            await asyncio.sleep(100)

    kimi, _ = client(Step(content=Lingering(*said("a"), *more), headers=SSE))
    assert await texts(await opened(kimi)) == ["", "a", ""]
    assert (clock(), await slots_later(kimi)) == (TAIL, 0)


async def test_two_tasks_cannot_wait_for_the_same_chunk():
    """One would never be woken; the one that came first goes on."""
    kimi, _ = client(streams(*said("a"), seconds=1))
    stream = await opened(kimi)
    await anext(stream)
    task = asyncio.create_task(texts(stream))
    await asyncio.sleep(0.5)
    with pytest.raises(RuntimeError, match="another task is waiting"):
        await anext(stream)
    assert await task == ["a", ""]


# -- several attempts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "name"),
    [
        (Step(fails=lambda: httpx.ConnectError("refused")), "APIConnectionError"),
        (error(429, *OVERLOADED), "EngineOverloadedError"),
        (error(500, "server_error", "oops"), "InternalServerError"),
        (streams(fails=httpx.ReadError("cut")), "APIConnectionError"),
        (streams(b": keep-alive\n\n", fails=httpx.ReadTimeout("slow")), "APITimeoutError"),
        (streams(b": keep-alive\n\n"), "InvalidResponseError"),
        (streams(said("a")[0][:-1]), "InvalidResponseError"),
        (streams(b"data: <html>\n\n"), "InvalidResponseError"),
        (streams(DONE), "InvalidResponseError"),
        (streams(OVERLOAD), "EngineOverloadedError"),
        (streams(b": keep-alive\n\n", OVERLOAD, DONE), "EngineOverloadedError"),
        (answer(), "InvalidResponseError"),
    ],
)
async def test_what_fails_before_the_first_chunk_is_tried_again(failure, name):
    """And told to the hook; the failed answer is closed and its slot free."""
    events = []
    kimi, inner = client(failure, streams(*said("hello")), on_event=events.append)
    assert await texts(await opened(kimi)) == ["", "hello", ""]
    assert [(type(one), one.error) for one in events] == [(Retrying, name)]
    assert (len(inner.requests), await slots_later(kimi)) == (2, 0)
    assert all(body.closed for body in inner.bodies)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (streams(fails=httpx.ReadError("cut")), APIConnectionError),
        (streams(fails=httpx.ReadTimeout("slow")), APITimeoutError),
        (streams(OVERLOAD), EngineOverloadedError),
        (streams(event({"error": {"type": NO_BALANCE[0], "message": NO_BALANCE[1]}})), QuotaExceededError),
    ],
)
async def test_the_last_failure_is_raised_as_what_it_is(failure, expected):
    """Not as a broken stream: nothing of it had come."""
    kimi, inner = client(failure, max_attempts=2)
    with pytest.raises(expected) as caught:
        await opened(kimi)
    assert type(caught.value) is expected
    assert len(inner.requests) == (1 if expected is QuotaExceededError else 2)
    assert await slots_later(kimi) == 0


async def test_an_answer_in_one_piece_is_no_stream():
    """Its beginning is told."""
    kimi, _ = client(answer("in one piece"), max_attempts=1)
    with pytest.raises(InvalidResponseError, match="asked for a stream, got") as caught:
        await opened(kimi)
    assert "in one piece" in caught.value.body


# -- on the way -----------------------------------------------------------------------------------------------


async def test_its_repr_is_a_dashboard():
    """What has come, what was read, and how it stands."""
    kimi, _ = client(streams(*said("a", "b"), seconds=1))
    stream = await opened(kimi)
    assert repr(stream) == "<ChatCompletionStream open, 0/1 chunks read>"
    await asyncio.sleep(1.5)
    await anext(stream)
    assert repr(stream) == "<ChatCompletionStream open, 1/2 chunks read>"
    await texts(stream)
    assert repr(stream) == "<ChatCompletionStream complete, 4/4 chunks read>"


async def test_what_has_come_so_far_can_be_looked_at():
    """Also what has not been read."""
    kimi, _ = client(streams(*said("a", "b"), seconds=1))
    stream = await opened(kimi)
    await asyncio.sleep(1.5)
    assert (stream.completion.text, stream.completion.choices[0].finish_reason) == ("a", None)
    assert isinstance(await anext(stream), ChatCompletionChunk)
    await texts(stream)
    assert (stream.completion.text, stream.completion.choices[0].finish_reason) == ("ab", "stop")
    assert (stream.completion.request_id, stream.completion.usage.total_tokens) == ("req-1", 14)


async def test_an_answer_longer_than_expected_teaches_the_counter():
    """The usage of a stream's end as well as that of a whole answer."""
    kimi, _ = client(streams(*said("a", usage={**USAGE, "prompt_tokens": 112})))
    await texts(await opened(kimi))
    assert "kimi-k2.6 +" in repr(kimi.counter)


async def test_an_answer_that_breaks_teaches_nothing():
    """There is no usage without an end."""
    kimi, _ = client(streams(*said("a", usage={**USAGE, "prompt_tokens": 112})[:-1]))
    with pytest.raises(StreamBroken):
        await texts(await opened(kimi))
    assert "+" not in repr(kimi.counter)


@pytest.mark.parametrize(
    "step",
    [
        streams(*said("a")[:2], fails=httpx.ReadTimeout("slow")),
        streams(*said("a")[:2], OVERLOAD),
        streams(*said("a")[:2], b"data: {\n\n"),
        streams(OVERLOAD),
        streams(b"garbled", headers={**SSE, "Content-Encoding": "gzip"}),
        answer(),
    ],
)
async def test_the_key_is_in_no_error_and_no_repr(step):
    """Through everything that an error holds."""
    kimi, _ = client(step, max_attempts=1)
    streamed = []

    async def consume():
        streamed.append(await opened(kimi))
        await texts(streamed[0])

    with pytest.raises(KimiError) as caught:
        await consume()
    assert "SECRET" not in everything_in(caught.value)
    assert "SECRET" not in everything_in(
        [repr(streamed), caught.value.__cause__, getattr(caught.value, "partial", None)]
    )


# -- connections ----------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class RawServer:
    """Answers each request on a connection with these packets, and counts the connections."""

    def __init__(self, *packets):
        self.packets, self.connections, self.gone = packets, 0, asyncio.Event()

    async def __call__(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                for packet in self.packets:
                    writer.write(packet)
                    await writer.drain()
                    await asyncio.sleep(0.002)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


def http_chunk(data):
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def over_sockets(raw, use):
    """Let ``use`` have a client of such a server."""
    server = await asyncio.start_server(raw, "127.0.0.1", 0)
    async with server:
        base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with AsyncKimi(api_key="sk-x", base_url=base_url, model="kimi-k2.6", limits=WIDE) as kimi:
            kimi.counter._encode = list
            await use(kimi)


@pytest.mark.real_time
async def test_a_stream_read_to_its_end_leaves_its_connection_for_the_next():
    """Though the end of the body comes in a packet after ``[DONE]``."""
    raw = RawServer(HEAD, *map(http_chunk, said("a", "b")), b"0\r\n\r\n")

    async def use(kimi):
        for _ in range(3):
            assert await texts(await opened(kimi)) == ["", "a", "b", ""]

    await over_sockets(raw, use)
    assert raw.connections == 1


@pytest.mark.real_time
async def test_hanging_up_closes_the_connection():
    """The other side sees it while it would have gone on."""
    raw = RawServer(HEAD, *map(http_chunk, said(*"a" * 2_000)), b"0\r\n\r\n")

    async def use(kimi):
        async with await opened(kimi):
            pass
        async with asyncio.timeout(2):
            await raw.gone.wait()
        assert await slots_later(kimi) == 0

    await over_sockets(raw, use)


@pytest.mark.real_time
async def test_closing_the_client_breaks_its_streams():
    """Nobody waits for ever."""
    raw = RawServer(HEAD, *map(http_chunk, said(*"a" * 2_000)), b"0\r\n\r\n")

    async def use(kimi):
        stream = await opened(kimi)
        task = asyncio.create_task(texts(stream))
        await asyncio.sleep(0.01)
        await kimi.aclose()
        with pytest.raises(StreamBroken):
            await task
        assert await slots_later(kimi) == 0

    await over_sockets(raw, use)


@pytest.mark.real_time
async def test_a_body_cut_in_the_middle_is_a_broken_stream():
    """The server closes without the last chunk."""

    async def cut(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"".join(map(http_chunk, said("a", "b")[:3])))
        await writer.drain()
        writer.close()

    async def use(kimi):
        with pytest.raises(StreamBroken, match="after 3 chunks: RemoteProtocolError") as caught:
            await texts(await opened(kimi))
        assert caught.value.partial.text == "ab"

    await over_sockets(cut, use)
