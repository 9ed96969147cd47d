"""What the mock gateway says: thoughts, tool calls, JSON for a schema; and the parameters that it refuses."""

import json
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from kimi_async.mock.replies import SENTENCE
from kimi_async.mock.schema import example

from .mocked import chat, choice, client, instant, refusal

UNTHINKING = {"model": "kimi-k2.6", "thinking": {"type": "disabled"}}
EXACT = instant(completion_ratio=1, completion_spread=0)


def tool(name, **properties):
    """A function with those properties, all required."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER = tool("get_weather", city={"type": "string"})
CLOCK = {"type": "function", "function": {"name": "clock"}}
SEARCH = {"type": "builtin_function", "function": {"name": "$web_search"}}
NAMED = {"type": "function", "function": {"name": "clock"}}

UNANSWERED = (
    "Invalid request: an assistant message with 'tool_calls' must be followed by tool messages responding to each "
    "'tool_call_id'. The following tool_call_ids did not have response messages: "
)

NO_ROLE = "Invalid request: every message must be an object with role system, user, assistant or tool"
PARTIAL = (
    "Invalid request: the message at position {} must not be partial: only the last one, with role 'assistant', may be"
)

USER = {"role": "user", "content": "How is the weather?"}


def called(*ids, **more):
    """An assistant's message that calls the clock under those ids."""
    calls = [{"id": i, "type": "function", "function": {"name": "clock", "arguments": "{}"}} for i in ids]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def image(url, kind="image_url"):
    """A question about an image."""
    return {"messages": [{"role": "user", "content": [{"type": kind, kind: {"url": url}}]}]}


def result(identity, content="12:00"):
    """A tool's answer."""
    return {"role": "tool", "tool_call_id": identity, "content": content}


@pytest.mark.parametrize(
    ("asked", "thinks"),
    [
        ({"model": "kimi-k3"}, True),
        ({"model": "kimi-k2.6"}, True),
        ({"model": "kimi-k2.6", "thinking": {"type": "enabled"}}, True),
        (UNTHINKING, False),
        ({"model": "kimi-k2-thinking"}, True),
        ({"model": "moonshot-v1-8k"}, False),
        ({"model": "moonshot-v1-8k", "thinking": {"type": "enabled"}}, False),
    ],
)
async def test_thinking_models_think_first(asked, thinks):
    """A third of the answer's tokens is a thought, which others don't have at all."""
    async with client(EXACT) as kimi:
        answer = (await chat(kimi, **asked, max_tokens=51)).json()
    message = answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens"] == 51
    assert ("reasoning_content" in message) is thinks
    assert message["content"] == SENTENCE * (2 if thinks else 3)


@pytest.mark.parametrize(
    ("stop", "content", "reason"),
    [
        ("，", SENTENCE[:7], "stop"),
        (["!", "moon", "月光"], "", "stop"),
        (["!"], SENTENCE, "length"),
        ([], SENTENCE, "length"),
    ],
)
async def test_stops_end_the_text(stop, content, reason):
    """Before the first of them; the tokens after it are never made."""
    async with client(EXACT) as kimi:
        answer = (await chat(kimi, stop=stop, max_tokens=17)).json()
    (only,) = answer["choices"]
    assert (only["message"]["content"], only["finish_reason"]) == (content, reason)
    assert (answer["usage"]["completion_tokens"] < 17) is (reason == "stop")


async def test_every_declared_function_is_called():
    """With arguments for its schema, unless the choice is none; the answer has no text."""
    async with client(instant()) as kimi:
        only = await choice(kimi, tools=[WEATHER, CLOCK])
        unwilling = await choice(kimi, tools=[WEATHER, CLOCK], tool_choice="none")
        named = await choice(kimi, tools=[WEATHER, CLOCK], tool_choice=NAMED)
        builtin = await choice(kimi, **UNTHINKING, tools=[SEARCH])
    calls = only["message"]["tool_calls"]
    assert (only["finish_reason"], only["message"]["content"]) == ("tool_calls", "")
    assert [(call["id"], call["type"]) for call in calls] == [("get_weather:0", "function"), ("clock:1", "function")]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"city": "Beijing"}, {}]
    assert (unwilling["finish_reason"], "tool_calls" in unwilling["message"]) == ("stop", False)
    assert [call["function"]["name"] for call in named["message"]["tool_calls"]] == ["clock"]
    (search,) = builtin["message"]["tool_calls"]
    assert search["type"] == "builtin_function"
    assert "search_id" in json.loads(search["function"]["arguments"])["search_result"]


async def test_thinking_models_think_before_they_call():
    """Their message has both, as it must be sent back."""
    async with client(instant()) as kimi:
        only = await choice(kimi, model="kimi-k3", tools=[CLOCK], tool_choice="required")
    assert only["message"]["reasoning_content"]
    assert only["finish_reason"] == "tool_calls"


async def test_a_system_message_may_bring_tools():
    """K3's dynamic tools."""
    messages = [{"role": "system", "tools": [CLOCK]}, USER]
    async with client(instant()) as kimi:
        only = await choice(kimi, model="kimi-k3", messages=messages)
    assert [call["id"] for call in only["message"]["tool_calls"]] == ["clock:0"]


async def test_results_of_tools_are_quoted():
    """In the order of the results, each with the name of its function; further calls get new ids."""
    messages = [USER, called("clock:0", "clock:1"), result("clock:1", "noon"), result("clock:0", "midnight")]
    async with client(instant()) as kimi:
        only = await choice(kimi, messages=messages, tools=[CLOCK])
        later = await choice(kimi, messages=[*messages, {"role": "assistant", "content": "x"}, USER], tools=[CLOCK])
    assert only["message"]["content"] == "According to my tools: clock says noon; clock says midnight."
    assert only["finish_reason"] == "stop"
    assert [call["id"] for call in later["message"]["tool_calls"]] == ["clock:2"]


@pytest.mark.parametrize("asked", [{"tools": [WEATHER]}, {"response_format": {"type": "json_object"}}])
async def test_too_few_tokens_cut_what_is_said_word_for_word(asked):
    """Arguments and JSON that end in the middle, and say so."""
    async with client(instant()) as kimi:
        whole, cut = [(await chat(kimi, **asked, max_tokens=tokens)).json() for tokens in (1_000, 4)]
    text, part = [
        message.get("content") or message["tool_calls"][0]["function"]["arguments"]
        for message in (answer["choices"][0]["message"] for answer in (whole, cut))
    ]
    assert cut["choices"][0]["finish_reason"] == "length"
    assert (whole["usage"]["completion_tokens"] > 4, cut["usage"]["completion_tokens"]) == (True, 4)
    assert text.startswith(part)
    assert len(part) < len(text)


async def test_of_several_calls_the_last_is_cut():
    """The first is whole, the second incomplete, and the third was never begun."""
    tools = [WEATHER, tool("get_news", query={"type": "string"}), CLOCK]
    async with client(instant()) as kimi:
        only = await choice(kimi, tools=tools, max_tokens=13)
    first, second = [call["function"] for call in only["message"]["tool_calls"]]
    assert (first["name"], json.loads(first["arguments"])) == ("get_weather", {"city": "Beijing"})
    assert second["name"] == "get_news"
    assert '{"query":"the moon"}'.startswith(second["arguments"])
    assert only["finish_reason"] == "length"


async def test_results_in_parts_are_quoted_too():
    """As is one that is empty; the conversation may begin with a call."""
    parts = [{"type": "text", "text": "no"}, {"type": "text", "text": "on"}]
    messages = [called("a", "b"), result("a", parts), result("b", None)]
    async with client(instant()) as kimi:
        only = await choice(kimi, messages=messages)
    assert only["message"]["content"] == "According to my tools: clock says noon; clock says ."


async def test_an_unknown_builtin_is_called_without_arguments():
    """Only the search is known."""
    builtin = {"type": "builtin_function", "function": {"name": "$other"}}
    async with client(instant()) as kimi:
        only = await choice(kimi, tools=[builtin])
    assert only["message"]["tool_calls"][0]["function"] == {"name": "$other", "arguments": "{}"}


class Colour(Enum):
    """An enumeration."""

    RED = "red"


class Point(BaseModel):
    """Bounds of all kinds."""

    x: Annotated[float, Field(gt=0, lt=0.1)]
    y: Annotated[float, Field(le=-3)]
    n: Annotated[int, Field(ge=7, multiple_of=5)]
    k: Annotated[int, Field(gt=1, lt=3)]
    low: Annotated[int, Field(lt=-4)]


class Tree(BaseModel):
    """A schema that holds itself, in three ways."""

    name: Annotated[str, Field(min_length=12, max_length=12)]
    left: "Tree | None"
    children: list["Tree"]
    by_name: dict[str, "Tree"] = {}


class Circle(BaseModel):
    """One of two shapes."""

    kind: Literal["circle"]
    centre: Point


class Everything(BaseModel):
    """What people put into schemas."""

    colour: Colour
    word: Literal["a", "b"]
    when: datetime
    day: date
    identity: UUID
    flag: bool
    nothing: None
    tree: Tree
    shape: Annotated[Circle | Tree, Field(description="described")]
    pair: tuple[int, str]
    three: Annotated[list[Point], Field(min_length=3)]
    tags: set[str]
    either: int | str | None
    counts: dict[str, int]
    left_out: int = 5


async def test_an_answer_fits_its_schema():
    """Pydantic accepts it; what has a default is left out."""
    asked = {"type": "json_schema", "json_schema": {"name": "e", "schema": Everything.model_json_schema()}}
    async with client(instant()) as kimi:
        only = await choice(kimi, response_format=asked, max_tokens=8_000, model="moonshot-v1-32k")
    assert Everything.model_validate_json(only["message"]["content"]).left_out == 5
    assert "left_out" not in json.loads(only["message"]["content"])


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, "moon"),
        ({"const": 3}, 3),
        ({"enum": ["x", "y"]}, "x"),
        ({"examples": [7], "type": "integer"}, 7),
        ({"type": ["null", "integer"]}, 1),
        ({"type": "null"}, None),
        ({"items": {"type": "null"}}, [None]),
        ({"type": "number", "minimum": 9}, 10),
        ({"type": "number", "multipleOf": 0.4}, 1.6),
        ({"properties": {"a": True}, "allOf": [{"required": ["a"]}, {"required": ["a"]}]}, {"a": "moon"}),
        ({"type": "integer", "minimum": 3, "maximum": 3}, 3),
        ({"type": "string", "format": "date"}, "2026-11-23"),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"type": "array", "maxItems": 0}, []),
        ({"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": True}}]}, {"a": 1, "b": "moon"}),
        ({"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "number"}}}, {"a": 1.5}),
        ({"properties": {"a": {"default": 1}, "b": {"default": 1}}, "required": ["b"]}, {"b": "moon"}),
    ],
)  # fmt: skip
def test_examples_of_schemas(schema, value):
    """The same value every time."""
    assert example(schema) == value


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"properties": ["a"]}, {"type": "integer", "minimum": "x"}])
async def test_schemas_that_nothing_fits(schema):
    """Those that hold themselves without end, or are malformed, are a 400."""
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with client(instant()) as kimi:
        assert "no value fits" in await refusal(kimi, response_format=asked)


bounds = st.tuples(st.integers(-50, 50), st.integers(1, 60), st.integers(1, 5)).map(
    lambda b: (b[0], b[0] + b[1], b[2])
)


@given(bounds=bounds)
def test_whole_numbers_are_within_their_bounds(bounds):
    """Wherever a multiple fits at all."""
    low, high, step = bounds
    if -(-low // step) * step > high:
        return
    value = example({"type": "integer", "minimum": low, "maximum": high, "multipleOf": step})
    assert low <= value <= high
    assert value % step == 0


async def test_json_mode_and_partial_mode():
    """An object; and what follows a beginning, never the beginning itself."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    structured = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    begun = {"role": "assistant", "content": '{"n":', "partial": True}
    async with client(instant()) as kimi:
        only = await choice(kimi, response_format={"type": "json_object"})
        rest = await choice(kimi, response_format=structured, messages=[USER, begun])
        prose = await choice(kimi, messages=[USER, {**begun, "content": "So"}], response_format={"type": "text"})
    assert isinstance(json.loads(only["message"]["content"]), dict)
    assert json.loads(begun["content"] + rest["message"]["content"]) == {"n": 1}
    assert prose["message"]["content"].startswith("月光")


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"model": "kimi-k2.6", "temperature": 0.6}, "invalid temperature: only 1 is allowed for this model"),
        ({**UNTHINKING, "temperature": 1}, "invalid temperature: only 0.6 is allowed for this model"),
        ({"model": "kimi-k3", "top_p": 1}, "invalid top_p: only 0.95 is allowed for this model"),
        ({"model": "kimi-k3", "n": 2}, "invalid n: only 1 is allowed for this model"),
        ({"model": "kimi-k3", "presence_penalty": 1}, "invalid presence_penalty: only 0 is allowed for this model"),
        ({"model": "kimi-k3", "frequency_penalty": 1}, "invalid frequency_penalty: only 0 is allowed for this model"),
        ({"model": "kimi-k3", "thinking": {"type": "disabled"}},
         "invalid thinking: only type=enabled is allowed for this model"),
        ({"model": "kimi-k2.6", "thinking": True}, "Invalid request: thinking.type must be enabled or disabled"),
        ({"model": "kimi-k2.6", "thinking": {"type": []}},
         "Invalid request: thinking.type must be enabled or disabled"),
        ({"model": "kimi-k2.6", "tools": [CLOCK], "tool_choice": NAMED},
         "tool_choice 'specified' is incompatible with thinking enabled"),
        ({"model": "kimi-k2.6", "tools": [CLOCK], "tool_choice": "required"},
         "tool_choice 'required' is incompatible with thinking enabled"),
        ({"model": "kimi-k2.6", "tools": [SEARCH]},
         "builtin_function $web_search is incompatible with thinking enabled"),
        ({"tools": [WEATHER], "tool_choice": NAMED},
         "Invalid request: tool_choice names clock, which is not among the tools"),
        ({"tools": [WEATHER], "tool_choice": "any"},
         "Invalid request: tool_choice must be none, auto, required or name a function"),
        ({"tools": [{"type": "function"}]},
         "Invalid request: every tool must be an object with a function that has a name"),
        ({"response_format": {"type": "json_object"}, "messages": [USER, {"role": "assistant", "partial": True}]},
         "Invalid request: partial mode is incompatible with response_format json_object"),
        ({"response_format": {"type": "xml"}},
         "Invalid request: response_format.type must be text, json_object or json_schema"),
        ({"response_format": {"type": {}}},
         "Invalid request: response_format.type must be text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}},
         "Invalid request: response_format.json_schema.schema must be a JSON schema"),
        ({"messages": [{"role": "developer", "content": "x"}]}, NO_ROLE),
        ({"messages": [{"role": ["user"], "content": "x"}]}, NO_ROLE),
        ({"messages": [{"content": "x"}]}, NO_ROLE),
        ({"messages": [{"role": "assistant", "content": "x", "partial": True}, USER]}, PARTIAL.format(0)),
        ({"messages": [USER, {**USER, "partial": True}]}, PARTIAL.format(1)),
        (image("https://x.test/a.png"),
         "Invalid request: unsupported url https://x.test/a.png: only data: and ms:// are allowed"),
        (image("http://x.test/a.mp4", "video_url"),
         "Invalid request: unsupported url http://x.test/a.mp4: only data: and ms:// are allowed"),
        ({"temperature": 1.01}, "invalid temperature: only 0 to 1 is allowed for this model"),
        ({"temperature": -0.01}, "invalid temperature: only 0 to 1 is allowed for this model"),
        ({"model": "kimi-k3", "reasoning_effort": "medium"},
         "Invalid request: reasoning_effort must be one of low, high, max"),
        ({"stop": ["a"] * 6}, "Invalid request: stop must be at most 5 strings"),
        ({"stop": "月" * 11}, "Invalid request: each stop must be at most 32 bytes"),
        ({"stop": [1]}, "Invalid request: stop must be a string or a list of strings"),
        ({"messages": [USER, called("a", "b"), result("a")]}, UNANSWERED + "b"),
        ({"messages": [USER, called("a"), USER, result("a")]}, UNANSWERED + "a"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "a"}]}, result("a")]},
         "Invalid request: every tool call must be an object with an id and a function"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": "none"}}]},
         "Invalid request: the parameters of a function must be a JSON schema"),
        ({"messages": [USER, result("a")]}, "Invalid request: tool_call_id a is not found"),
        ({"messages": [USER, {"role": "assistant", "content": ""}, USER]},
         "the message at position 1 with role 'assistant' must not be empty"),
        ({"messages": [USER, called("a"), result("a"), result("a")]}, "Invalid request: tool_call_id a is not found"),
        ({"model": "kimi-k3", "messages": [USER, called("a"), result("a")]},
         "thinking is enabled but reasoning_content is missing in assistant tool call message at index 1"),
    ],
)  # fmt: skip
async def test_what_a_model_does_not_take_is_a_400(asked, text):
    """With Kimi's own words where they are known, streamed or not, and for nothing."""
    async with client(instant()) as kimi:
        assert [await refusal(kimi, stream=stream, **asked) for stream in (False, True)] == [text, text]
        assert (await kimi.get("/stats")).json()["admitted"] == 0


@pytest.mark.parametrize(
    "asked",
    [
        {"model": "kimi-k2.6", "temperature": 1, "top_p": 0.95, "n": 1, "presence_penalty": 0, "frequency_penalty": 0},
        {"model": "kimi-k2.6", "temperature": None, "tools": None, "stop": None, "response_format": None},
        {**UNTHINKING, "temperature": 0.6, "tools": [CLOCK], "tool_choice": NAMED},
        {"model": "kimi-k3", "tools": [CLOCK], "tool_choice": "required"},
        {"model": "kimi-k3", "messages": [USER, called("a", reasoning_content=""), result("a")]},
        {**UNTHINKING, "messages": [USER, called("a"), result("a")]},
        {"temperature": 0.3, "top_p": 0.5, "n": 5, "presence_penalty": 1.5, "frequency_penalty": -1},
        {"model": "kimi-k2-0905-preview", "temperature": 0.6, "n": 2},
        {"stop": ["a" * 32] * 5},
        {"temperature": 0},
        {"temperature": 1},
        {"model": "kimi-k3", "reasoning_effort": "low"},
        image("DATA:image/png;base64,AAAA"),
        {"messages": [{**USER, "partial": False}, {"role": "assistant", "content": "x", "partial": True}]},
    ],
)
async def test_what_a_model_takes_is_answered(asked):
    """The other side of each refusal; retired models take anything they once took."""
    async with client(instant()) as kimi:
        assert (await chat(kimi, **asked)).status_code == 200
