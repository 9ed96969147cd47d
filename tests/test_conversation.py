"""Conversations: turns that build on each other, what of them is sent, and what is left of one that goes wrong."""

import asyncio
import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_async.client import AsyncKimi
from kimi_async.conversation import Conversation
from kimi_async.errors import (
    BadRequestError,
    ConfigurationError,
    RequestTooLarge,
    StreamBroken,
    ToolRoundsExceeded,
    WaitTooLong,
)
from kimi_async.limits import RateLimits
from kimi_async.models import find
from kimi_async.transport import HANG_UP

from .conftest import run_virtual
from .scripted import Body, Scripted, Step, answer, error

WIDE = RateLimits(concurrency=100, rpm=100_000, tpm=100_000_000)
BAD = error(400, "invalid_request_error", "Invalid request")
V1 = "moonshot-v1-8k"
CONTEXT = find(V1).context


def client(*steps, **options):
    """A client of a scripted gateway, for which a character is a token."""
    inner = Scripted(*(steps or [answer()]))
    options = {"api_key": "sk-test", "model": "kimi-k2.6", "limits": WIDE, "on_event": lambda event: None, **options}
    kimi = AsyncKimi(transport=inner, **options)
    kimi.counter._encode = list
    return kimi, inner


def said(role, content, **fields):
    """A message."""
    return {"role": role, "content": content, **fields}


def turn(question, reply="hello"):
    """A question and its answer."""
    return [said("user", question), said("assistant", reply)]


def message(**fields):
    """A step that answers with this message."""
    completion = json.loads(answer().content)
    completion["choices"][0]["message"] = {"role": "assistant", **fields}
    return Step(content=json.dumps(completion).encode())


def calling(*names, reasoning="hm"):
    """A step that calls these tools, without arguments."""
    calls = [
        {"id": f"{name}:{number}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for number, name in enumerate(names)
    ]
    return message(content="", reasoning_content=reasoning, tool_calls=calls)


def event(**choice):
    """One chunk of a stream."""
    return f"data: {json.dumps({'choices': [{'index': 0, **choice}]})}\n\n".encode()


def streamed(*texts, done=True, **body):
    """A step that streams these texts, and ends as it should or breaks off."""
    chunks = [event(delta={"content": text}) for text in texts]
    end = [event(delta={}, finish_reason="stop"), b"data: [DONE]\n\n"] if done else []
    return Step(content=Body(*chunks, *end, **body), headers={"content-type": "text/event-stream"})


def sent(inner):
    """The messages of each request."""
    return [payload["messages"] for payload in inner.payloads]


# -- turns ------------------------------------------------------------------------------------------------------


async def test_each_turn_builds_on_those_before():
    """The system prompt first, then all that was said, the answers just as they came."""
    kimi, inner = client(answer("one"), message(content="two", reasoning_content="why"), answer("three"))
    conversation = kimi.conversation(system="be brief", max_tokens=5)
    assert [await conversation.ask(question) for question in "abc"] == ["one", "two", "three"]
    first, second = turn("a", "one"), [said("user", "b"), said("assistant", "two", reasoning_content="why")]
    system = [said("system", "be brief")]
    assert sent(inner) == [
        [*system, said("user", "a")],
        [*system, *first, said("user", "b")],
        [*system, *first, *second, said("user", "c")],
    ]
    assert conversation.messages == [*system, *first, *second, *turn("c", "three")]
    assert repr(conversation) == "<Conversation with kimi-k2.6, 3 turns>"


async def test_options_are_of_every_turn_or_of_one():
    """Those of the turn go before those of the conversation."""
    kimi, inner = client()
    conversation = kimi.conversation(max_tokens=5, stop="x", extra_body={"new": 1}, timeout=7, max_wait=9)
    await conversation.ask("a")
    await conversation.ask("b", max_tokens=6, stop=None, extra_body=None, timeout=8)
    first, second = ({name: body[name] for name in body.keys() - {"messages"}} for body in inner.payloads)
    assert first == {"model": "kimi-k2.6", "max_tokens": 5, "stop": "x", "new": 1}
    assert second == {"model": "kimi-k2.6", "max_tokens": 6}
    assert [request.extensions["timeout"]["read"] for request in inner.requests] == [7, 8]


async def test_max_wait_bounds_a_turn():
    """As everywhere; the turn is not kept."""
    kimi, _ = client(limits=RateLimits(rpm=1))
    conversation = kimi.conversation(max_tokens=5)
    await conversation.ask("a")
    with pytest.raises(WaitTooLong):
        await conversation.ask("b", max_wait=10)
    assert conversation.messages == turn("a")


async def test_an_option_that_does_not_exist_is_told_at_once():
    """By the call that was made with it."""
    kimi, inner = client()
    with pytest.raises(TypeError, match=r"conversation\(\) .* 'max_token'; did you mean max_tokens"):
        kimi.conversation(max_token=5)
    with pytest.raises(TypeError, match=r"ask\(\)"):
        await kimi.conversation().ask("a", max_token=5)
    with pytest.raises(TypeError, match=r"stream\(\)"):
        async with kimi.conversation().stream("a", max_token=5):
            pass
    assert inner.requests == []


async def test_system_and_model_may_change_between_turns():
    """For the turns to come; lengths are counted anew for the new model."""
    kimi, inner = client()
    conversation = kimi.conversation(system="old", model="kimi-k2.6", max_tokens=5)
    await conversation.ask("a")
    conversation.system, conversation.model = None, "kimi-k3"
    await conversation.ask("b")
    assert inner.payloads[1]["model"] == "kimi-k3"
    assert sent(inner)[1] == [*turn("a"), said("user", "b")]


async def test_parts_are_kept_as_they_were_said():
    """Images by upload or inline; what the caller does to the parts afterwards changes nothing."""
    kimi, inner = client()
    conversation = kimi.conversation(max_tokens=5)
    parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "ms://1"}}]
    await conversation.ask(parts)
    parts[1]["image_url"]["url"] = "ms://2"
    await conversation.ask("b")
    assert sent(inner)[1][0]["content"][1]["image_url"]["url"] == "ms://1"


async def test_messages_is_a_copy_and_clear_forgets():
    """Appending to what was handed out says nothing to the model."""
    kimi, inner = client()
    conversation = kimi.conversation(system="be brief", max_tokens=5)
    await conversation.ask("a")
    conversation.messages.append(said("user", "x"))
    assert conversation.messages == [said("system", "be brief"), *turn("a")]
    conversation.clear()
    await conversation.ask("b")
    assert sent(inner)[1] == [said("system", "be brief"), said("user", "b")]


# -- one at a time ------------------------------------------------------------------------------------------------


async def test_turns_at_once_take_place_one_after_the_other():
    """In the order in which they were said, each building on the last, streams among them."""
    kimi, inner = client(answer("A", think=3), streamed("B", seconds=2), answer("C", think=1))
    conversation = kimi.conversation(max_tokens=5)

    async def stream():
        async with conversation.stream("b") as stream:
            return "".join([text async for text in stream])

    assert await asyncio.gather(conversation.ask("a"), stream(), conversation.ask("c")) == ["A", "B", "C"]
    assert sent(inner) == [
        [said("user", "a")],
        [*turn("a", "A"), said("user", "b")],
        [*turn("a", "A"), *turn("b", "B"), said("user", "c")],
    ]


async def test_a_turn_inside_a_stream_is_told_rather_than_waiting_for_ever():
    """It would wait for the block that it stands in; another task's turn just waits."""
    kimi, _ = client(streamed("A"), answer("B"))
    conversation = kimi.conversation(max_tokens=5)
    async with conversation.stream("a") as stream:
        other = asyncio.ensure_future(conversation.ask("b"))
        with pytest.raises(ConfigurationError, match="leave the stream's block"):
            await conversation.ask("c")
        await stream.get_final_completion()
    assert await other == "B"
    assert conversation.messages == [*turn("a", "A"), *turn("b", "B")]


async def test_a_tool_that_speaks_in_its_own_conversation_is_told():
    """It runs in a task of its own, and would wait for the turn that waits for it; the model hears of it."""

    async def gossip() -> str:
        return await conversation.ask("psst")

    kimi, inner = client(calling("gossip"), answer("Never mind."))
    conversation = kimi.conversation(tools=[gossip], max_tokens=5)
    assert await conversation.ask("a") == "Never mind."
    assert "would wait for itself" in sent(inner)[1][-1]["content"]


async def test_an_empty_answer_is_not_kept():
    """Kimi would refuse to read it again, and with it every later turn."""
    kimi, inner = client(answer(""), answer("B"))
    conversation = kimi.conversation(max_tokens=5)
    assert await conversation.ask("a") == ""
    assert conversation.messages == []
    await conversation.ask("b")
    assert sent(inner)[1] == [said("user", "b")]


async def test_messages_are_a_copy():
    """Whoever changes them changes nothing that was said."""
    kimi, _ = client(answer("A"))
    conversation = kimi.conversation(max_tokens=5)
    await conversation.ask("a")
    conversation.messages[0]["content"] = "changed"
    assert conversation.messages == turn("a", "A")


async def test_a_cancelled_turn_lets_the_next_one_in():
    """One under way, and one in line; neither is kept."""
    kimi, inner = client(answer("A", think=5), answer("B"))
    conversation = kimi.conversation(max_tokens=5)
    tasks = [asyncio.ensure_future(conversation.ask(question)) for question in "abc"]
    await asyncio.sleep(1)
    tasks[0].cancel()
    tasks[1].cancel()
    assert await tasks[2] == "B"
    assert conversation.messages == turn("c", "B")
    assert sent(inner) == [[said("user", "a")], [said("user", "c")]]
    await asyncio.sleep(HANG_UP)
    assert kimi.limiter.usage().concurrency.used == 0


# -- turns that fail ------------------------------------------------------------------------------------------------


async def test_a_failed_turn_leaves_the_history_as_it_was():
    """An answer that is an error, an option that the model refuses, a text that cannot be sent."""
    kimi, inner = client(answer(), BAD, answer("again"))
    conversation = kimi.conversation(max_tokens=5)
    await conversation.ask("a")
    for content, options, expected in [
        ("b", {}, BadRequestError),
        ("b", {"temperature": 0.2}, ConfigurationError),
        ("b", {"max_tokens": "many"}, ConfigurationError),
        ("\ud800", {}, ConfigurationError),
    ]:
        with pytest.raises(expected):
            await conversation.ask(content, **options)
        assert conversation.messages == turn("a")
    assert await conversation.ask("b") == "again"
    assert sent(inner)[-1] == [*turn("a"), said("user", "b")]


async def read(stream):
    """To the end."""
    async for _ in stream:
        pass


async def leave(stream):
    """After the first text."""
    async for _ in stream:
        return


async def fail(stream):
    """With an error of the caller's own, when all has been read."""
    await read(stream)
    raise KeyError("mine")


async def swallow(stream):
    """Read on as if a broken stream had ended."""
    with suppress(StreamBroken):
        await read(stream)


async def idle(stream):
    """Let it arrive, and never look."""
    await asyncio.sleep(100)


@pytest.mark.parametrize(
    ("consume", "whole", "cancelled_after", "outcome"),
    [
        (read, True, None, None),
        (lambda stream: stream.get_final_completion(), True, None, None),
        (leave, True, None, None),
        (fail, True, None, KeyError),
        (idle, True, None, None),
        (read, False, None, StreamBroken),
        (swallow, False, None, None),
        (read, True, 1.5, asyncio.CancelledError),
    ],
)
async def test_only_a_stream_that_was_read_to_its_end_is_a_turn(consume, whole, cancelled_after, outcome):
    """Leaving it, an exception in the block, a connection that breaks, being cancelled: the turn is taken back."""
    kimi, inner = client(answer(), streamed("x", "y", done=whole, seconds=1), answer())
    conversation = kimi.conversation(max_tokens=5)
    await conversation.ask("a")

    async def stream():
        async with conversation.stream("b") as stream:
            await consume(stream)

    task = asyncio.ensure_future(stream())
    if cancelled_after:
        asyncio.get_running_loop().call_later(cancelled_after, task.cancel)
    (failed,) = await asyncio.gather(task, return_exceptions=True)
    assert type(failed) is (outcome or type(None))
    kept = whole and consume not in {leave, fail, idle} and not cancelled_after
    assert conversation.messages == turn("a") + (turn("b", "xy") if kept else [])
    await conversation.ask("c")
    assert sent(inner)[-1] == conversation.messages[:-1]
    await asyncio.sleep(HANG_UP)
    assert kimi.limiter.usage().concurrency.used == 0


async def test_a_streams_turn_is_kept_with_its_thinking():
    """The message goes back just as it came."""
    chunks = [event(delta={"reasoning_content": "hm"}), event(delta={"content": "A"}), b"data: [DONE]\n\n"]
    kimi, inner = client(Step(content=Body(*chunks), headers={"content-type": "text/event-stream"}), answer())
    conversation = kimi.conversation(max_tokens=5)
    async with conversation.stream("a") as stream:
        assert [text async for text in stream] == ["A"]
        assert stream.completion.text == "A"
    await conversation.ask("b")
    assert sent(inner)[1][1] == said("assistant", "A", reasoning_content="hm")


# -- tools ----------------------------------------------------------------------------------------------------------


def tide() -> str:
    """The tide's height."""
    return "3 m"


async def test_tools_run_and_the_whole_turn_is_kept():
    """Calls, thinking and results go back with the next question."""
    kimi, inner = client(calling("tide"), answer("high"), answer("yes"))
    conversation = kimi.conversation(tools=[tide], max_tokens=5)
    assert await conversation.ask("a") == "high"
    roles = ["user", "assistant", "tool", "assistant"]
    assert [message["role"] for message in conversation.messages] == roles
    assert await conversation.ask("b") == "yes"
    assert sent(inner)[2] == [*conversation.messages[:4], said("user", "b")]
    assert sent(inner)[2][1]["reasoning_content"] == "hm"
    assert sent(inner)[2][2]["content"] == "3 m"
    assert [body["tools"][0]["function"]["name"] for body in inner.payloads] == ["tide"] * 3


async def test_a_turn_whose_tools_fail_half_way_is_not_kept():
    """The second request of it was refused; or the model never came to an end."""
    kimi, _ = client(calling("tide"), BAD, calling("tide"))
    conversation = kimi.conversation(tools=[tide], max_tokens=5)
    for expected in (BadRequestError, ToolRoundsExceeded):
        with pytest.raises(expected):
            await conversation.ask("a")
        assert conversation.messages == []


async def test_without_tools_a_call_is_handed_to_the_caller():
    """Who declared them past us has to answer them; nothing is asked again behind their back."""
    kimi, inner = client(calling("tide"))
    conversation = kimi.conversation(max_tokens=5, extra_body={"tools": [{"type": "function"}]})
    assert not await conversation.ask("a")
    assert len(inner.requests) == 1
    assert conversation.messages[1]["tool_calls"][0]["id"] == "tide:0"


async def test_what_tools_exclude_is_told_before_anything_is_sent():
    """Streams, several answers, and tools that cannot be declared."""
    kimi, inner = client()
    with pytest.raises(ConfigurationError, match="use ask"):
        async with kimi.conversation(tools=[tide]).stream("a"):
            pass
    with pytest.raises(ConfigurationError, match="n=2"):
        kimi.conversation(tools=[tide], model=V1, n=2)
    with pytest.raises(ConfigurationError, match="two tools are named 'tide'"):
        kimi.conversation(tools=[tide, tide])
    assert inner.requests == []


# -- what fits ------------------------------------------------------------------------------------------------------


@dataclass
class Talk:
    """Lengths of questions and answers, and all else that takes room."""

    lengths: list[tuple[int, int]]
    system: int
    max_tokens: int | None
    n: int
    tpm: int | None
    schema: int
    learned: int
    with_tools: bool
    model: str

    async def take_place(self):
        """As many turns of it as can be sent."""
        steps = [answer("a" * length) for _, length in self.lengths]
        kimi, inner = client(*steps, model=self.model, limits=RateLimits(tpm=self.tpm))
        kimi.counter._learned[self.model] = self.learned
        schema = {"type": "json_schema", "json_schema": {"name": "x" * self.schema, "schema": {}}}
        conversation = kimi.conversation(
            system="s" * self.system,
            tools=[tide] if self.with_tools else [],
            max_tokens=self.max_tokens,
            n=1 if self.with_tools else self.n,
            response_format=schema if self.schema else None,
        )
        with suppress(RequestTooLarge):
            for length, _ in self.lengths:
                await conversation.ask("q" * length)
        return kimi, inner.payloads, conversation.messages

    def fits(self, kimi, payload):
        """Whether the counter, asked for the cost of the whole request, finds it within every bound."""
        try:
            cost = run_virtual(kimi.counter.cost(payload))
        except RequestTooLarge:
            return False
        context = CONTEXT if self.model == V1 else math.inf
        return cost.prompt_tokens + cost.max_tokens <= context and cost.tokens <= (self.tpm or math.inf)


@given(
    st.builds(
        Talk,
        lengths=st.lists(st.tuples(st.integers(0, 900), st.integers(1, 900)), min_size=1, max_size=14),
        system=st.integers(0, 500),
        max_tokens=st.none() | st.integers(1, 3_000),
        n=st.integers(1, 3),
        tpm=st.none() | st.integers(9_000, 12_000),
        schema=st.integers(0, 3_000),
        learned=st.integers(0, 50),
        with_tools=st.booleans(),
        model=st.sampled_from([V1, "unknown"]),
    )
)
def test_as_many_whole_turns_are_sent_as_fit(talk):
    """The counter's cost of the whole request is within context and TPM, and with one turn more it would not be."""
    kimi, payloads, messages = run_virtual(talk.take_place())
    first = 1 if talk.system else 0
    for number, payload in enumerate(payloads):
        history = (len(payload["messages"]) - first - 1) // 2
        begin = first + 2 * (number - history)
        assert payload["messages"][:first] == messages[:first]
        assert payload["messages"][first:] == messages[begin:][: 2 * history + 1]
        assert talk.fits(kimi, payload)
        if history < number:
            longer = [*messages[:first], *messages[begin - 2 : begin], *payload["messages"][first:]]
            assert not talk.fits(kimi, {**payload, "messages": longer})


@pytest.mark.parametrize(("length", "kept"), [(8_021, 2), (8_022, 1)])
async def test_the_boundary_of_the_context(length, kept):
    """3 for the prompt, 4 a message, 100 for the answer: 8,192 tokens are sent, 8,193 are not."""
    kimi, inner = client(answer("a" * 50), model=V1)
    conversation = kimi.conversation(max_tokens=100)
    await conversation.ask("b" * 6)
    await conversation.ask("c" * length)
    used = 3 + 3 * 4 + 6 + 50 + length + 100
    assert (used <= CONTEXT) is (kept == 2)
    assert len(sent(inner)[1]) == 2 * kept - 1


async def test_the_larger_of_both_names_of_max_tokens_counts():
    """As for the counter and the gateway."""
    kimi, inner = client(answer("a" * 1_000), model=V1)
    conversation = kimi.conversation(max_tokens=7_500, max_completion_tokens=100)
    await conversation.ask("a")
    await conversation.ask("b")
    assert len(sent(inner)[1]) == 1


async def test_n_answers_share_one_prompt():
    """Each has the context to itself; TPM has to hold them all."""
    kimi, inner = client(answer("a" * 1_000), model=V1)
    conversation = kimi.conversation(max_tokens=3_000, n=3)
    await conversation.ask("a")
    await conversation.ask("b")
    assert len(sent(inner)[1]) == 3
    kimi, inner = client(answer("a" * 1_000), model=V1, limits=RateLimits(tpm=9_500))
    conversation = kimi.conversation(max_tokens=3_000, n=3)
    await conversation.ask("a")
    await conversation.ask("b")
    assert len(sent(inner)[1]) == 1


@pytest.mark.parametrize(("length", "kept"), [(1_050, 1), (10, 2)])
async def test_a_schema_takes_room(length, kept):
    """It is counted in every request; beside a long one there is room for fewer turns."""
    kimi, inner = client(answer("a" * 7_000), model=V1)
    schema = {"type": "json_schema", "json_schema": {"name": "x" * length}}
    conversation = kimi.conversation(max_tokens=100, response_format=schema)
    await conversation.ask("a")
    await conversation.ask("b" * 50)
    assert len(sent(inner)[1]) == 2 * kept - 1


async def test_extra_body_counts_too():
    """It has the last word on max_tokens, and on the model."""
    kimi, inner = client(answer("a" * 1_000))
    conversation = kimi.conversation(max_tokens=1, extra_body={"max_tokens": 7_500, "model": V1})
    await conversation.ask("a")
    await conversation.ask("b")
    assert len(sent(inner)[1]) == 1


async def test_turns_that_do_not_fit_are_kept_for_when_they_do():
    """A model with a larger context gets all of them again."""
    kimi, inner = client(answer("a" * 8_000), answer("b" * 8_000), answer("c"))
    conversation = kimi.conversation(model=V1, max_tokens=100)
    await conversation.ask("a" * 50)
    await conversation.ask("b" * 50)
    conversation.model = "moonshot-v1-32k"
    await conversation.ask("c")
    assert [len(messages) for messages in sent(inner)] == [1, 1, 5]


async def test_a_message_that_never_fits_is_told_with_the_numbers():
    """As by ``create``; the history stays."""
    kimi, _ = client(model=V1)
    conversation = kimi.conversation(max_tokens=100)
    await conversation.ask("a")
    with pytest.raises(RequestTooLarge, match="8,192"):
        await conversation.ask("b" * 9_000)
    assert conversation.messages == turn("a")


async def test_a_turn_with_tools_goes_as_a_whole():
    """A result without its call, or a call without its result, would be a 400."""
    kimi, inner = client(calling("tide"), answer("a" * 400), answer("b"), answer("c"), model=V1)
    conversation = kimi.conversation(tools=[tide], max_tokens=100)
    await conversation.ask("a")
    await conversation.ask("b")
    await conversation.ask("c" * 7_500)
    assert [message["role"] for message in sent(inner)[3]] == ["user", "assistant", "user"]


async def test_an_old_turn_is_measured_once(monkeypatch):
    """Measuring what fits takes each turn once, not once in every later turn."""
    kimi, _ = client()
    measured = []
    count_prompt = kimi.counter.count_prompt

    async def counting(messages, *, model):
        measured.extend(message["content"] for message in messages if message["role"] == "user")
        return await count_prompt(messages, model=model)

    monkeypatch.setattr(kimi.counter, "count_prompt", counting)
    conversation = kimi.conversation(max_tokens=5)
    questions = [str(number) for number in range(30)]
    for question in questions:
        await conversation.ask(question)
    assert measured == questions[:-1]


# -- save and load ----------------------------------------------------------------------------------------------------


async def test_a_conversation_goes_on_from_its_file(tmp_path):
    """Parts, thinking, calls and results, half of a German and a Chinese word: the next request is the same."""
    steps = [calling("tide"), message(content="höch 月", reasoning_content="why", new={"x": [None, 1.5]}), answer("x")]
    kimi, inner = client(*steps)
    conversation = kimi.conversation(system="be brief", model="kimi-k3", tools=[tide], max_tokens=5)
    await conversation.ask([{"type": "text", "text": "月"}, {"type": "image_url", "image_url": {"url": "ms://1"}}])
    path = tmp_path / "talk.json"
    conversation.save(path)
    loaded = Conversation.load(kimi, str(path), tools=[tide], max_tokens=5)
    assert (loaded.messages, loaded.system, loaded.model) == (conversation.messages, "be brief", "kimi-k3")
    await conversation.ask("b")
    await loaded.ask("b")
    assert inner.payloads[-1] == inner.payloads[-2]
    assert loaded.messages == conversation.messages
    assert "月" in path.read_text(encoding="utf-8")


async def test_a_file_is_its_owners_and_is_replaced_whole(tmp_path, monkeypatch):
    """0600, whatever was there; when the disk is full the old file stays, and nothing else."""
    path = tmp_path / "talk.json"
    path.write_text("old")
    path.chmod(0o644)
    kimi, _ = client()
    conversation = kimi.conversation(max_tokens=5)
    await conversation.ask("a")
    conversation.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    await conversation.ask("b")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        conversation.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_json_cannot_hold_is_told_and_the_old_file_stays(tmp_path):
    """Half of a surrogate pair in the system prompt."""
    kimi, _ = client()
    path = tmp_path / "talk.json"
    conversation = kimi.conversation(system="fine")
    conversation.save(path)
    conversation.system = "\ud800"
    with pytest.raises(ConfigurationError, match="cannot be written as JSON"):
        conversation.save(path)
    assert Conversation.load(kimi, path).system == "fine"
    assert list(tmp_path.iterdir()) == [path]


SAVED = {"version": 1, "system": None, "model": None, "turns": []}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "Invalid JSON"),
        (b'{"version": 1,\n "system": x', "line 2 column"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "object"),
        (json.dumps({"custom_id": "a", "response": None}).encode(), "version: "),
        (json.dumps({**SAVED, "version": 2}).encode(), "version: "),
        (json.dumps({**SAVED, "other": 2}).encode(), "other: "),
        (json.dumps({**SAVED, "system": 3}).encode(), "system: "),
        (json.dumps({**SAVED, "turns": [turn("a"), "b"]}).encode(), r"turns\.1: "),
        (json.dumps({**SAVED, "turns": [turn("a"), []]}).encode(), r"turns\.1: "),
        (json.dumps({**SAVED, "turns": [[*turn("a"), {"content": "x"}]]}).encode(), r"turns\.0\.2: .*role"),
    ],
)
def test_another_file_is_told_by_name_and_place(content, place, tmp_path):
    """Torn, foreign, of another version, edited."""
    kimi, _ = client()
    path = tmp_path / "talk.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"talk\.json is no saved conversation: .*{place}"):
        Conversation.load(kimi, path)


def test_a_file_that_is_not_there_is_the_callers_own_error(tmp_path):
    """As with open()."""
    with pytest.raises(FileNotFoundError):
        Conversation.load(client()[0], tmp_path / "none.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.lists(st.dictionaries(st.text(), json_values, max_size=3), min_size=1, max_size=3), max_size=3))
def test_whatever_was_said_survives_the_file(tmp_path_factory, turns):
    """All JSON there is."""
    kimi, _ = client()
    path = tmp_path_factory.mktemp("talk") / "talk.json"
    content = [[{**message, "role": "user"} for message in turn] for turn in turns]
    path.write_text(json.dumps({**SAVED, "turns": content}), encoding="utf-8")
    first = Conversation.load(kimi, path)
    first.save(path)
    assert (
        Conversation.load(kimi, path).messages == first.messages == [message for turn in content for message in turn]
    )
