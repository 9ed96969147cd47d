"""``kimi.chat.completions``: its forms, its arguments, and what it makes of the answers."""

import asyncio
import json

import httpx
import pytest
from pydantic import BaseModel

from kimi_async.assembly import Assembly
from kimi_async.chat import ChatCompletion, ToolCall
from kimi_async.errors import ConfigurationError, InvalidResponseError, StreamBroken, WaitTooLong
from kimi_async.limits import RateLimits
from kimi_async.models import find
from kimi_async.stream import ChatCompletionStream

from .scripted import Step, answer
from .streamed import DONE, HELLO, USAGE, chunk, client, event, opened, piece, said, slots, slots_later, streams, texts


class River(BaseModel):
    """Something to ask for."""

    name: str
    length_km: int


def finished(content, finish_reason):
    """A completion that ended for that reason."""
    body = json.loads(answer(content).content)
    body["choices"][0]["finish_reason"] = finish_reason
    return Step(content=json.dumps(body).encode())


# -- create ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "kind"), [(True, ChatCompletionStream), (False, ChatCompletion), (None, ChatCompletion)]
)
async def test_stream_decides_what_comes_back(stream, kind):
    """As in the openai SDK."""
    kimi, inner = client(streams(*said("a")) if stream else answer())
    made = await kimi.chat.completions.create(messages=HELLO, max_tokens=5, stream=stream)
    assert isinstance(made, kind)
    asked = {"model": "kimi-k2.6", "messages": HELLO, "max_tokens": 5}
    assert inner.payloads == [{**asked, "stream": True} if stream else asked]


async def test_a_stream_costs_what_a_plain_request_costs():
    """Prompt and max_tokens, whatever comes; the model's default where none is given, and explicit."""
    kimi, inner = client(streams(*said("a")))
    await texts(await opened(kimi, max_tokens=100))
    assert kimi.limiter.usage().tpm.used == 12 + 100
    await texts(await opened(kimi))
    assert inner.payloads[1]["max_tokens"] == find("kimi-k2.6").default_max_tokens


async def test_a_stream_waits_in_line_like_any_other():
    """And no longer than it may."""
    kimi, _ = client(streams(*said("a")), limits=RateLimits(concurrency=1, rpm=1))
    await texts(await opened(kimi))
    with pytest.raises(WaitTooLong):
        await opened(kimi, max_wait=5)


@pytest.mark.parametrize("function", ["create", "stream", "parse"])
@pytest.mark.parametrize(
    ("name", "remedy"),
    [("max_token", "did you mean max_tokens?"), ("temprature", "did you mean temperature?"), ("zzz", "extra_body")],
)
async def test_an_unknown_argument_is_a_type_error_with_a_remedy(function, name, remedy):
    """Nothing is sent."""
    kimi, inner = client()
    call = getattr(kimi.chat.completions, function)
    options = {"messages": HELLO, name: 1, **({"response_format": River} if function == "parse" else {})}
    begun = call(**options)
    with pytest.raises(TypeError, match=f"{function}.*unexpected keyword argument '{name}'; .*{remedy}"):
        await (begun.__aenter__() if function == "stream" else begun)
    assert inner.requests == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"messages": "hello"}, "kimi.ask"),
        ({"n": 9}, "at most 5"),
        ({"temperature": 0.3}, "takes only 1"),
        ({"stop": ["x" * 33]}, "32 bytes"),
        ({"prediction": {"x": object()}}, "cannot be written as JSON"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_argument_that_cannot_work_is_told_before_sending(options, words, stream):
    """And nothing is charged."""
    kimi, inner = client()
    with pytest.raises(ConfigurationError, match=words):
        await kimi.chat.completions.create(**{"messages": HELLO, "stream": stream, **options})
    assert inner.requests == []
    assert kimi.limiter.usage().tpm.used == 0


async def test_without_a_model_there_is_no_request():
    """The client has none either."""
    kimi, inner = client(model=None)
    with pytest.raises(ConfigurationError, match="no model"):
        await kimi.chat.completions.create(messages=HELLO)
    assert inner.requests == []


async def test_extra_body_wins_and_is_not_checked():
    """Kimi may know more than we do; what it changes about the cost is counted."""
    kimi, inner = client(answer())
    extra = {"temperature": 0.3, "max_tokens": 7, "brand_new": {"x": 1}}
    await kimi.chat.completions.create(messages=HELLO, max_tokens=100, extra_body=extra)
    assert inner.payloads == [{"model": "kimi-k2.6", "messages": HELLO, **extra}]
    assert kimi.limiter.usage().tpm.used == 12 + 7


async def test_what_kimi_answered_goes_back_as_it_came():
    """With its thinking and its calls, and without fields that it did not have."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said_before = {"role": "assistant", "reasoning_content": "hm", "tool_calls": [call]}
    first = event(chunk(piece(role="assistant", reasoning_content="hm", tool_calls=[{"index": 0, **call}])))
    kimi, inner = client(streams(first, *said()[1:]), answer())
    stream = await opened(kimi)
    await texts(stream)
    conversation = [*HELLO, stream.completion.choices[0].message]
    await kimi.chat.completions.create(messages=conversation)
    assert inner.payloads[1]["messages"] == [*HELLO, said_before]
    assert conversation[1] is not said_before


# -- stream ---------------------------------------------------------------------------------------------------


async def test_text_as_it_comes_and_the_whole_at_the_end():
    """Nothing empty; the rest of it is in the completion."""
    kimi, inner = client(streams(*said("月", "", "亮")))
    async with kimi.chat.completions.stream(messages=HELLO, max_tokens=5) as stream:
        assert [text async for text in stream] == ["月", "亮"]
        assert stream.completion.text == "月亮"
    assert (stream.completion.choices[0].finish_reason, stream.completion.usage.total_tokens) == ("stop", 14)
    assert inner.payloads[0]["stream"] is True


async def test_the_final_completion_can_be_had_without_reading():
    """Or after reading a part, or twice."""
    kimi, _ = client(streams(*said("a", "b"), seconds=1))
    async with kimi.chat.completions.stream(messages=HELLO) as stream:
        async for text in stream:
            assert (text, stream.completion.text, stream.completion.choices[0].finish_reason) == ("a", "a", None)
            break
        assert (await stream.get_final_completion()).text == "ab"
        assert (await stream.get_final_completion()).choices[0].finish_reason == "stop"
    assert slots(kimi) == 0


async def test_leaving_the_block_early_hangs_up():
    """What had come stays; to want all of it then is an error."""
    kimi, inner = client(streams(*said("a", "b"), seconds=1))
    async with kimi.chat.completions.stream(messages=HELLO) as stream:
        async for _ in stream:
            break
    assert (inner.bodies[0].closed, await slots_later(kimi)) == (1, 0)
    assert stream.completion.text == "a"
    with pytest.raises(StreamBroken):
        await stream.get_final_completion()


async def test_a_broken_answer_breaks_the_text_and_the_completion():
    """Each with what had come."""
    kimi, _ = client(streams(*said("a", "b")[:3], fails=httpx.ReadError("cut")))
    async with kimi.chat.completions.stream(messages=HELLO) as stream:
        with pytest.raises(StreamBroken) as caught:
            await stream.get_final_completion()
        assert caught.value.partial.text == stream.completion.text == "ab"
        with pytest.raises(StreamBroken):
            [text async for text in stream]


async def test_the_first_of_several_choices_is_the_text():
    """The others are among the chunks."""
    pieces = [piece("a"), piece("x", index=1), piece("b", usage=USAGE), piece("y", index=1, usage=USAGE)]
    kimi, _ = client(streams(*(event(chunk(one)) for one in pieces), said()[-1]), model="moonshot-v1-8k")
    async with kimi.chat.completions.stream(messages=HELLO, n=2, max_tokens=9) as stream:
        assert [text async for text in stream] == ["a", "b"]
    assert [choice.message.content for choice in stream.completion.choices] == ["ab", "xy"]
    assert stream.completion.usage.total_tokens == 12 + 2 * 2


async def test_cancelled_inside_the_block_it_hangs_up():
    """However it waits."""
    kimi, inner = client(streams(*said("a", "b"), seconds=1))

    async def consume():
        async with kimi.chat.completions.stream(messages=HELLO) as stream:
            async for _ in stream:
                await asyncio.sleep(100)

    task = asyncio.create_task(consume())
    await asyncio.sleep(2.5)
    task.cancel()
    await asyncio.wait([task])
    assert (inner.bodies[0].closed, await slots_later(kimi)) == (1, 0)


# -- parse ----------------------------------------------------------------------------------------------------


async def test_an_answer_in_the_form_of_a_model():
    """Its schema goes out, and the model comes back."""
    kimi, inner = client(answer('{"name": "长江", "length_km": 6300}'))
    river = await kimi.chat.completions.parse(messages=HELLO, response_format=River, max_tokens=50)
    assert river == River(name="长江", length_km=6300)
    wanted = inner.payloads[0]["response_format"]
    schema = wanted["json_schema"]["schema"]
    assert (wanted["type"], wanted["json_schema"]["name"], schema["required"]) == (
        "json_schema",
        "River",
        ["name", "length_km"],
    )
    assert {name: kind["type"] for name, kind in schema["properties"].items()} == {
        "name": "string",
        "length_km": "integer",
    }


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (finished('{"name": "长', "length"), "cut off at max_tokens"),
        (finished('{"name": "Nile", "length_km": 6650}', "length"), "cut off at max_tokens"),
        (answer('{"name": "Nile"}'), "not fit River: length_km: Field required"),
        (answer('{"name": 1, "length_km": "far"}'), "name: .*; length_km: "),
        (answer("The Nile."), "not fit River: Invalid JSON"),
    ],
)
async def test_an_answer_that_does_not_fit_is_told_and_not_tried_again(step, words):
    """It was paid for; what came is kept."""
    kimi, inner = client(step)
    with pytest.raises(InvalidResponseError, match=words) as caught:
        await kimi.chat.completions.parse(messages=HELLO, response_format=River)
    assert caught.value.body == json.loads(step.content)["choices"][0]["message"]["content"]
    assert len(inner.requests) == 1


# -- send -----------------------------------------------------------------------------------------------------


async def test_send_reads_whole_answers():
    """A body that asks for a stream is the caller's mistake."""
    kimi, inner = client()
    with pytest.raises(ConfigurationError, match="stream=true"):
        await kimi.chat.completions.send({"messages": HELLO, "stream": True})
    assert inner.requests == []


async def test_more_tokens_than_counted_teach_the_counter():
    """The next request costs what this one turned out to cost."""
    kimi, _ = client(answer(prompt_tokens=112))
    for cost in (12 + 1, 112 + 1):
        before = kimi.limiter.usage().tpm.used
        await kimi.chat.completions.create(messages=HELLO, max_tokens=1)
        assert kimi.limiter.usage().tpm.used - before == cost


# -- what Kimi answered, inside what somebody wrote -------------------------------------------------------------


async def test_objects_inside_a_message_cost_what_they_weigh():
    """Calls and parts as pydantic objects, as users of the SDK append them, and messages in extra_body."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "x" * 500}}
    as_dicts = [{"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": [call]}]
    as_objects = [{**as_dicts[0], "tool_calls": [ToolCall.model_validate(call)]}]
    used = []
    for options in ({"messages": as_dicts}, {"messages": as_objects}):
        kimi, inner = client(answer())
        await kimi.chat.completions.create(**options, max_tokens=5)
        used.append(kimi.limiter.usage().tpm.used)
        assert inner.payloads[0]["messages"] == as_dicts
    kimi, inner = client(answer())
    await kimi.chat.completions.create(messages=HELLO, extra_body={"messages": as_objects}, max_tokens=5)
    assert inner.payloads[0]["messages"] == as_dicts
    assert used == [kimi.limiter.usage().tpm.used] * 2
    assert used[0] > 500


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{"id": "c", "type": None, "function": {"name": "f", "arguments": None}}]},
        {"content": "hi", "tool_calls": [{"id": None, "function": None}]},
    ],
)
async def test_null_is_no_reason_to_throw_an_answer_away(message):
    """It was paid for."""
    body = {"choices": [{"message": {"role": "assistant", "content": None, **message}}]}
    kimi, inner = client(Step(content=json.dumps(body).encode()))
    completion = await kimi.chat.completions.create(messages=HELLO, max_tokens=5)
    assert completion.choices[0].message.tool_calls[0].function.arguments == ""
    assert len(inner.requests) == 1


async def test_null_in_a_chunk_adds_nothing():
    """Neither a delta nor choices."""
    events = [event(chunk(piece("a"))), event(chunk({"index": 0, "delta": None})), event({"choices": None}), DONE]
    kimi, _ = client(streams(*events))
    assert "".join(await texts(await opened(kimi, max_tokens=5))) == "a"


async def test_cached_tokens_are_read_from_the_details_too():
    """Newer answers have them only there."""
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}
    body = {**json.loads(answer().content), "usage": usage}
    kimi, _ = client(Step(content=json.dumps(body).encode()))
    completion = await kimi.chat.completions.create(messages=HELLO, max_tokens=5)
    assert completion.usage.cached_tokens == 8


async def test_what_the_sdk_has_is_there_even_where_kimi_sends_nothing():
    """None, not an AttributeError; and streams and clients have the SDK's close."""
    kimi, _ = client(answer())
    completion = await kimi.chat.completions.create(messages=HELLO, max_tokens=5)
    choice = completion.choices[0]
    absent = [completion.system_fingerprint, choice.logprobs, choice.message.refusal]
    assert [*absent, completion.usage.prompt_tokens_details] == [None] * 4
    await kimi.close()
    kimi, _ = client(streams(*said("a")))
    await (await opened(kimi, max_tokens=5)).close()


async def test_a_format_for_the_other_method_is_told():
    """A class for create, a dict for parse; and a call instead of an answer."""
    kimi, inner = client(answer())
    with pytest.raises(ConfigurationError, match="use parse"):
        await kimi.chat.completions.create(messages=HELLO, response_format=River)
    with pytest.raises(ConfigurationError, match="use create"):
        await kimi.chat.completions.parse(messages=HELLO, response_format={"type": "json_object"})
    assert inner.requests == []
    message = {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "function": {"name": "flood"}}]}
    kimi, _ = client(Step(content=json.dumps({"choices": [{"message": message}]}).encode()))
    with pytest.raises(InvalidResponseError, match="called flood instead"):
        await kimi.chat.completions.parse(messages=HELLO, response_format=River, max_tokens=5)


async def test_looking_at_a_stream_often_takes_each_chunk_in_once(monkeypatch):
    """What is put together grows with the stream, and is not put together anew."""
    taken = []
    add = Assembly.add
    monkeypatch.setattr(Assembly, "add", lambda self, one: (taken.append(one), add(self, one)))
    kimi, _ = client(streams(*said(*"abc")))
    seen = [stream.completion.text async for stream, _ in watched(await opened(kimi, max_tokens=5))]
    assert seen[-1] == "abc"
    assert len(taken) == len(seen)


async def watched(stream):
    """The stream beside each of its chunks."""
    async for one in stream:
        yield stream, one
