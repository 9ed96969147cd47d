"""Streams of the mock gateway: chunks as Kimi's, spread over time, and the slot held to the last of them."""

import asyncio
import json

import httpx
import pytest

from kimi_async.limits import RateLimits
from kimi_async.mock import Faults, MockSettings, running, spawn

from .mocked import KEY, body, chat, chunks, client, count_characters, events, instant

LONG = instant(completion_ratio=1, completion_spread=0)
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def deltas(found, index=0):
    """The deltas of one choice."""
    return [c["choices"][0]["delta"] for c in found if c["choices"] and c["choices"][0]["index"] == index]


def joined(found, name, index=0):
    """All of one text."""
    return "".join(delta.get(name) or "" for delta in deltas(found, index))


def last(found, index=0):
    """The finish chunk of one choice."""
    (choice,) = [c["choices"][0] for c in found if c["choices"] and c["choices"][0].get("usage")
                 and c["choices"][0]["index"] == index]  # fmt: skip
    return choice


async def test_a_stream_says_what_the_plain_answer_says():
    """Joined, the chunks are its message and its usage."""
    asked = {"model": "kimi-k2.6", "max_tokens": 200}
    async with client(LONG) as kimi:
        found = await chunks(kimi, **asked)
        plain = (await chat(kimi, **asked)).json()
    message = plain["choices"][0]["message"]
    assert joined(found, "content") == message["content"]
    assert joined(found, "reasoning_content") == message["reasoning_content"]
    assert last(found)["usage"] == plain["usage"]


async def test_chunks_have_kimis_shape():
    """One id; a role in the first chunk only; thinking before content; the end in the last."""
    async with client(LONG) as kimi:
        found = await chunks(kimi, model="kimi-k2.6", max_tokens=24)
    assert {(c["object"], c["model"]) for c in found} == {("chat.completion.chunk", "kimi-k2.6")}
    assert len({(c["id"], c["created"]) for c in found}) == 1
    kinds = ["/".join(delta) for delta in deltas(found)]
    assert kinds == ["role/content", *["reasoning_content"] * 2, *["content"] * 4, ""]
    assert deltas(found)[0] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["finish_reason"] for c in found] == [None] * 7 + ["length"]
    assert not any("usage" in c for c in found)


@pytest.mark.parametrize(("size", "number"), [(1, 20), (4, 5), (7, 3), (100, 1)])
async def test_a_chunk_has_so_many_tokens(size, number):
    """20 tokens in chunks of each size, the last one smaller."""
    async with client(instant(completion_ratio=1, completion_spread=0, tokens_per_chunk=size)) as kimi:
        found = await chunks(kimi, max_tokens=20)
    assert len(found) == 1 + number + 1


async def test_each_choice_has_its_own_usage():
    """With n = 2, the prompt counts in both; choices take turns."""
    async with client(instant()) as kimi:
        found = await chunks(kimi, n=2, max_tokens=50)
        stats = (await kimi.get("/stats")).json()
    usages = [last(found, index)["usage"] for index in (0, 1)]
    assert [usage["prompt_tokens"] for usage in usages] == [5, 5]
    assert all(usage["total_tokens"] == 5 + usage["completion_tokens"] for usage in usages)
    assert sum(usage["completion_tokens"] for usage in usages) == stats["completion_tokens"]
    assert [c["choices"][0]["index"] for c in found[:4]] == [0, 1, 0, 1]
    assert all(deltas(found, index)[0]["role"] == "assistant" for index in (0, 1))


async def test_usage_of_the_whole_comes_last_if_asked_for():
    """Without choices, its tokens are those of all choices; the finish chunks have theirs all the same."""
    async with client(instant()) as kimi:
        *found, end = await chunks(kimi, n=2, max_tokens=50, stream_options={"include_usage": True})
    usages = [last(found, index)["usage"] for index in (0, 1)]
    assert end["choices"] == []
    assert end["usage"]["prompt_tokens"] == 5
    assert end["usage"]["completion_tokens"] == sum(usage["completion_tokens"] for usage in usages)
    assert [c["usage"] for c in found] == [None] * len(found)


async def test_tool_calls_come_in_fragments():
    """Names and ids first, then arguments, each fragment with the index of its call."""
    other = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    async with client(LONG) as kimi:
        found = await chunks(kimi, tools=[WEATHER, other], max_tokens=100)
    fragments = [call for delta in deltas(found) for call in delta.get("tool_calls", ())]
    assert [fragment["index"] for fragment in fragments] == [0] * (len(fragments) - 2) + [1, 1]
    first, *rest = [fragment for fragment in fragments if fragment["index"] == 0]
    assert first == {
        "index": 0, "id": "get_weather:0", "type": "function", "function": {"name": "get_weather", "arguments": ""}
    }  # fmt: skip
    assert len(rest) > 1
    assert all(fragment.keys() == {"index", "function"} for fragment in rest)
    assert json.loads("".join(fragment["function"]["arguments"] for fragment in rest)) == {"city": "Beijing"}
    assert last(found)["finish_reason"] == "tool_calls"


async def test_streams_and_chunks_are_counted():
    """As are their answers."""
    async with client(LONG) as kimi:
        found = [len(await chunks(kimi, f"prompt {i}")) for i in range(3)]
        await chat(kimi)
        stats = (await kimi.get("/stats")).json()
    assert (stats["streams"], stats["chunks"], stats["answers"]) == (3, sum(found), {"200": 4})


@pytest.mark.parametrize(
    ("fault", "status"), [("overload", {429}), ("error_5xx", {500, 503, 504})]
)  # fmt: skip
async def test_faults_before_the_first_byte_are_those_of_any_answer(fault, status):
    """A status of their own, no events."""
    async with client(instant(faults=Faults(**{fault: 1}))) as kimi:
        response = await chat(kimi, stream=True)
    assert response.status_code in status
    assert "event-stream" not in response.headers["content-type"]


async def test_a_refused_stream_is_a_429():
    """Limits come before anything is streamed."""
    async with client(instant(limits=RateLimits(rpm=1))) as kimi:
        assert [(await chat(kimi, stream=True)).status_code for _ in range(2)] == [200, 429]


async def test_a_garbled_stream_has_one_chunk_that_is_no_json():
    """In the middle; all others are whole, and it ends as it should."""
    async with client(instant(faults=Faults(garble=1))) as kimi:
        *found, done = events((await chat(kimi, stream=True, max_tokens=100)).text)
        assert (await kimi.get("/stats")).json()["faults"] == {"garble": 1}
    assert done == "[DONE]"
    wrong = [index for index, event in enumerate(found) if not event.startswith("{")]
    assert len(wrong) == 1
    assert wrong[0] > 0


@pytest.mark.parametrize("serve", ["here", "in a process of its own"])
@pytest.mark.real_time
async def test_a_cut_stream_ends_in_the_middle(serve):
    """Some chunks, no [DONE], and a connection closed; whichever event loop serves it."""
    settings = instant(completion_ratio=1, completion_spread=0, faults=Faults(cut=1))
    if serve == "here":
        async with running(settings, count_prompt=count_characters) as base_url:
            texts, stats = await cut_streams(base_url)
    else:
        with spawn(settings) as base_url:
            texts, stats = await cut_streams(base_url)
    assert all(text.startswith("data: {") and "[DONE]" not in text for text in texts)
    assert not any('"finish_reason":"' in text for text in texts)
    assert (stats["faults"], stats["in_flight"], stats["hung_up"]) == ({"cut": 10}, 0, 0)


async def arrived(kimi, asked):
    """What came of an answer before its connection was closed, and the headers."""
    received = b""
    async with kimi.stream("POST", "/chat/completions", json=asked) as response:
        try:
            async for part in response.aiter_raw():
                received += part
        except (httpx.RemoteProtocolError, httpx.ReadError):
            return received.decode(errors="replace"), response.headers
    pytest.fail("the answer was complete")


async def cut_streams(base_url):
    """What arrived of ten of them, and the gateway's statistics."""
    async with httpx.AsyncClient(base_url=base_url, headers=KEY) as kimi:
        asked = [body(str(number), stream=True, max_tokens=100) for number in range(10)]
        return [(await arrived(kimi, one))[0] for one in asked], (await kimi.get("/stats")).json()


@pytest.mark.real_time
async def test_a_cut_answer_ends_in_the_middle_of_its_body():
    """Without a stream: headers with the whole length, and less than that."""
    async with (
        running(instant(faults=Faults(cut=1)), count_prompt=count_characters) as base_url,
        httpx.AsyncClient(base_url=base_url, headers=KEY) as kimi,
    ):
        received, headers = await arrived(kimi, body())
        stats = (await kimi.get("/stats")).json()
    assert 0 < len(received) < int(headers["content-length"])
    assert (stats["faults"], stats["in_flight"]) == ({"cut": 1}, 0)


def on_virtual_time(settings):
    """A client of a gateway that reads the loop's clock."""
    return client(settings, clock=lambda: asyncio.get_running_loop().time())


async def test_generation_is_spread_over_the_chunks():
    """100 tokens at 10 a second: 2 s to the first chunk, 10 s more to the end; as long as without a stream."""
    settings = MockSettings(latency=2, latency_jitter=0, tokens_per_second=10, completion_ratio=1, completion_spread=0)
    loop = asyncio.get_running_loop()
    times = []
    async with on_virtual_time(settings) as kimi:
        for stream in (True, False):
            began = loop.time()
            await chat(kimi, stream=stream, max_tokens=100)
            times.append(loop.time() - began)
    assert times == pytest.approx([12, 12], abs=0.01)


@pytest.mark.parametrize("fault", ["garble", "cut"])
@pytest.mark.real_time
async def test_the_first_chunk_does_not_wait_for_the_last(fault):
    """A stream that would take an hour begins at once, and its slot is taken while it lasts; its fault never comes."""
    settings = instant(
        tokens_per_second=1,
        completion_ratio=1,
        completion_spread=0,
        limits=RateLimits(concurrency=1),
        faults=Faults(**{fault: 1}),
    )
    async with (
        running(settings, count_prompt=count_characters) as base_url,
        httpx.AsyncClient(base_url=base_url, headers=KEY) as kimi,
        asyncio.timeout(10),
    ):
        async with kimi.stream("POST", "/chat/completions", json=body(stream=True, max_tokens=3_600)) as response:
            first = await anext(response.aiter_lines())
            refused = await chat(kimi)
        await in_flight(kimi, 0)
        stats = (await kimi.get("/stats")).json()
    assert '"role":"assistant"' in first
    assert refused.status_code == 429
    assert (stats["hung_up"], stats["peak_in_flight"], stats["chunks"], stats["faults"]) == (1, 1, 1, {})


async def in_flight(kimi, expected):
    """Until so many slots are taken."""
    while (await kimi.get("/stats")).json()["in_flight"] != expected:
        pass


@pytest.mark.real_time
async def test_hanging_up_on_a_stream_that_nobody_reads_gives_the_slot_back():
    """Megabytes fill the socket, and the gateway waits for its client, which then leaves."""
    settings = instant(completion_ratio=1, completion_spread=0, limits=RateLimits(concurrency=1))
    async with (
        running(settings, count_prompt=count_characters) as base_url,
        httpx.AsyncClient(base_url=base_url, headers=KEY) as kimi,
        asyncio.timeout(20),
    ):
        asked = body(stream=True, model="kimi-k2.5", max_tokens=200_000)
        async with kimi.stream("POST", "/chat/completions", json=asked):
            before, sent = -1, 0
            while before != sent:  # until it has stopped sending
                before, sent = sent, (await kimi.get("/stats")).json()["chunks"]
            await in_flight(kimi, 1)
        await in_flight(kimi, 0)
        stats = (await kimi.get("/stats")).json()
    assert (stats["hung_up"], stats["admitted"]) == (1, 1)
    assert 0 < stats["chunks"] < 50_000


@pytest.mark.real_time
async def test_the_slot_is_free_when_done_is_read():
    """With one slot, a client that sends as soon as it has read [DONE] is never refused."""
    async with (
        running(instant(limits=RateLimits(concurrency=1)), count_prompt=count_characters) as base_url,
        httpx.AsyncClient(base_url=base_url, headers=KEY) as kimi,
    ):
        statuses = []
        for number in range(100):
            request = kimi.stream("POST", "/chat/completions", json=body(str(number), stream=True))
            async with request as response:
                statuses.append(response.status_code)
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        break
        stats = (await kimi.get("/stats")).json()
    assert set(statuses) == {200}
    assert (stats["peak_in_flight"], stats["hung_up"]) == (1, 0)


@pytest.mark.real_time
async def test_abandoned_streams_leave_no_slot_behind():
    """Forty at once: a quarter closed and a quarter cancelled at various points, the rest read to the end."""
    settings = instant(tokens_per_second=2_000, completion_ratio=1, completion_spread=0)

    async def read(kimi, number):
        lines = 0
        request = kimi.stream("POST", "/chat/completions", json=body(str(number), stream=True, max_tokens=200))
        async with request as response:
            async for _ in response.aiter_lines():
                lines += 1
                if number % 4 == 0 and lines > number:
                    return
                if number % 4 == 1 and lines > number:
                    asyncio.current_task().cancel()

    async with (
        running(settings, count_prompt=count_characters) as base_url,
        httpx.AsyncClient(base_url=base_url, headers=KEY) as kimi,
        asyncio.timeout(20),
    ):
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(read(kimi, number))
        await in_flight(kimi, 0)
        stats = (await kimi.get("/stats")).json()
    assert stats["admitted"] == stats["streams"] == 40
    assert stats["hung_up"] == 20
