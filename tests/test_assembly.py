"""Chunks of a streamed answer, put together to the answer that would have come in one piece."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_async.assembly import Assembly, usage_of
from kimi_async.chat import ChatCompletion, ChatCompletionChunk, plain

from .streamed import chunk, piece

HEAD = {"id": "chatcmpl-1", "created": 1, "model": "kimi-k2.6"}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.text("abc_", min_size=1, max_size=8)


def assembled(chunks, request_id=None):
    """What these chunks make."""
    assembly = Assembly()
    for one in chunks:
        assembly.add(one)
    return assembly.whole(request_id)


def parsed(*chunks):
    """As they come from the wire."""
    return [ChatCompletionChunk.model_validate_json(json.dumps(one)) for one in chunks]


def usage(prompt_tokens, completion_tokens, **more):
    """What was used."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total, **more}


def fragments(draw, text):
    """A text in pieces, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def messages(draw):
    """What the model may say: thinking or not, a text, or calls of tools, or both."""
    calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": draw(NAMES), "arguments": draw(TEXTS)}}
        for number in range(draw(st.integers(0, 3)))
    ]
    message = {"role": "assistant", "content": draw(TEXTS)}
    if draw(st.booleans()):
        message["reasoning_content"] = draw(TEXTS)
    if calls:
        message["tool_calls"] = calls
    return message


def deltas(draw, message):
    """A message in pieces, in Kimi's order: the role, thinking, the text, the calls."""
    yield {"role": "assistant", "content": ""}
    for name in ("reasoning_content", "content"):
        for text in fragments(draw, message[name]) if name in message else []:
            yield {name: text}
    for index, call in enumerate(message.get("tool_calls", [])):
        function = {"name": call["function"]["name"], "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": call["id"], "type": call["type"], "function": function}]}
        for text in fragments(draw, call["function"]["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def merged(draw, sequences):
    """Several sequences as one, in any order that keeps each of them."""
    left = [list(sequence) for sequence in sequences]
    while left := [sequence for sequence in left if sequence]:
        yield left[draw(st.integers(0, len(left) - 1))].pop(0)


@st.composite
def answers(draw):
    """A completion, and the chunks in which it might have come."""
    prompt_tokens, with_usage = draw(st.integers(1, 99)), draw(st.booleans())
    choices, chunked = [], []
    for index in range(draw(st.integers(1, 3))):
        own = usage(prompt_tokens, draw(st.integers(0, 99)), cached_tokens=3)
        reason = draw(st.sampled_from(["stop", "length", "tool_calls"]))
        message = draw(messages())
        choices.append({"index": index, "message": message, "finish_reason": reason, "usage": own})
        pieces = [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas(draw, message)]
        chunked.append([*pieces, {"index": index, "delta": {}, "finish_reason": reason, "usage": own}])
    whole = usage(prompt_tokens, sum(one["usage"]["completion_tokens"] for one in choices), cached_tokens=3)
    nothing_yet = {"usage": None} if with_usage else {}
    chunks = [chunk(one, **nothing_yet) for one in merged(draw, chunked)]
    if with_usage:
        chunks.append(chunk(usage=whole))
    return {**HEAD, "object": "chat.completion", "choices": choices, "usage": whole}, chunks


@given(answers())
def test_chunks_make_the_answer_that_would_have_come_in_one_piece(answer):
    """Choices, thinking, calls and usage, whatever their order and wherever they were cut."""
    completion, chunks = answer
    made = assembled(parsed(*chunks), "req-1")
    assert made == expected(completion)
    assert made.request_id == "req-1"
    assert [plain(choice.message) for choice in made.choices] == [one["message"] for one in completion["choices"]]


def expected(completion):
    """The same as it would have been read from an answer in one piece."""
    made = ChatCompletion.model_validate_json(json.dumps(completion))
    made._request_id = "req-1"
    return made


@given(answers(), st.integers(1, 1000))
def test_a_part_of_the_chunks_makes_a_part_of_the_answer(answer, count):
    """Texts are beginnings of the whole ones."""
    completion, chunks = answer
    some = parsed(*chunks[: 1 + count % len(chunks)])
    for choice in assembled(some).choices:
        message = completion["choices"][choice.index]["message"]
        assert message["content"].startswith(choice.message.content or "")
        assert message.get("reasoning_content", "").startswith(choice.message.reasoning_content or "")
        for call, whole in zip(choice.message.tool_calls or [], message.get("tool_calls", []), strict=False):
            assert whole["function"]["arguments"].startswith(call.function.arguments)


OWN, OTHER = usage(10, 5, cached_tokens=4), usage(10, 7, cached_tokens=4)


@pytest.mark.parametrize(
    ("chunks", "used"),
    [
        ([chunk(piece("a"))], None),
        ([chunk(piece("a")), chunk(piece(finish_reason="stop", usage=OWN))], OWN),
        ([chunk(piece("a"), usage=None), chunk(piece(finish_reason="stop"), usage=OWN)], OWN),
        ([chunk(piece(finish_reason="stop", usage=OWN)), chunk(usage=OWN)], OWN),
        ([chunk(piece(usage=OWN)), chunk(piece(index=1, usage=OTHER))], usage(10, 12, cached_tokens=4)),
        ([chunk(piece(usage=OWN), piece(index=1, usage=OTHER))], usage(10, 12, cached_tokens=4)),
        ([chunk(piece(usage=OWN)), chunk(piece(index=1, usage=OTHER)), chunk(usage=usage(10, 12))], usage(10, 12)),
        ([chunk(piece(usage=OWN)), chunk(piece(usage=OWN))], OWN),
        ([chunk(piece("a"), usage=OWN), chunk(usage=OTHER)], OTHER),
    ],
    ids=[
        "none yet",
        "Kimi's",
        "on top",
        "twice",
        "of two",
        "of two at once",
        "of two and on top",
        "repeated",
        "growing",
    ],
)
def test_usage_is_counted_once(chunks, used):
    """In the finish chunk's choice, on top of the last chunk, or both; prompts of several choices are one prompt."""
    made = assembled(parsed(*chunks)).usage
    assert (made and made.model_dump(exclude_none=True)) == used


@pytest.mark.parametrize(
    ("chunks", "used"),
    [
        ([chunk(piece("a"))], None),
        ([chunk(piece(usage=OWN)), chunk()], OWN),
        ([chunk(piece(usage=OWN)), chunk(piece(index=1, usage=OTHER))], OTHER),
        ([chunk(piece(usage=OWN)), chunk(usage=OTHER)], OTHER),
    ],
)
def test_the_last_usage_is_the_one_to_learn_from(chunks, used):
    """Its prompt is the same in all."""
    found = usage_of(parsed(*chunks))
    assert (found and found.model_dump(exclude_none=True)) == used


def test_an_answer_that_only_calls_has_no_content():
    """And goes back to Kimi as it came."""
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = assembled(parsed(chunk(piece(role="assistant", tool_calls=[call])))).choices[0].message
    assert message.content is None
    assert "content" not in plain(message)


@pytest.mark.parametrize("first", [chunk(), chunk(piece()), chunk(piece(content=None))])
def test_an_answer_of_nothing_has_one_empty_choice(first):
    """As a plain answer has at least one."""
    made = assembled(parsed(first))
    assert (len(made.choices), made.text, made.choices[0].finish_reason) == (1, "", None)


def test_calls_may_lack_what_their_first_fragment_should_have():
    """An id that comes late or again, arguments that are null, fragments without a function."""
    pieces = [
        {"index": 1, "function": {"name": "g", "arguments": None}},
        {"index": 0, "id": "call_0", "function": {"name": "f"}},
        {"index": 1, "id": "call_1"},
        {"index": 1, "id": None, "type": None, "function": {"name": None, "arguments": "{}"}},
        {"index": 0, "id": "call_0", "type": "builtin_function", "function": {"name": "f", "arguments": "[]"}},
    ]
    made = assembled(parsed(*[chunk(piece(tool_calls=[one])) for one in pieces])).choices[0].message.tool_calls
    assert [call.model_dump() for call in made] == [
        {"id": "call_0", "type": "builtin_function", "function": {"name": "f", "arguments": "[]"}},
        {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_the_probabilities_of_all_tokens_are_kept():
    """They come with the choices, a few in each chunk; null and absent ones add none."""
    tokens = [{"token": token, "logprob": -0.5} for token in "abc"]
    pieces = [{"content": tokens[:1]}, None, {"content": None}, {"content": tokens[1:]}]
    made = assembled(parsed(*[chunk(piece("x", logprobs=one)) for one in pieces], chunk(piece("y"))))
    assert made.choices[0].logprobs == {"content": tokens}
    assert made.model_dump()["choices"][0]["logprobs"] == {"content": tokens}
