"""Parameters: all that a request can carry goes out as it is, and what the model would refuse never does."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import RootModel

from kimi_async.client import AsyncKimi
from kimi_async.errors import ConfigurationError
from kimi_async.jsonl import BatchRequest
from kimi_async.limits import RateLimits
from kimi_async.mock import rules
from kimi_async.models import find, live_models
from kimi_async.parameters import ChatOptions, check, request_body, thinks

from .scripted import Body, Scripted, Step, answer

HELLO = [{"role": "user", "content": "hello"}]
SEARCH = {"type": "builtin_function", "function": {"name": "$web_search"}}
FUNCTION = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "f:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "f:0", "content": "x"}
PARTIAL = {"role": "assistant", "content": "{", "partial": True}
UNTHINKING = {"thinking": {"type": "disabled"}}
JSON_OBJECT = {"response_format": {"type": "json_object"}}


def client(*steps, **options):
    """A client of a scripted gateway, for which a character is a token."""
    inner = Scripted(*(steps or [answer()]))
    options = {
        "api_key": "sk-test",
        "model": "moonshot-v1-8k",
        "limits": RateLimits(),
        "on_event": lambda event: None,
        **options,
    }
    kimi = AsyncKimi(transport=inner, **options)
    kimi.counter._encode = list
    return kimi, inner


def calling(**fields):
    """A conversation in which a tool was called."""
    return {"messages": [*HELLO, {"role": "assistant", "content": "", "tool_calls": [CALL], **fields}, RESULT]}


def image(url, kind="image_url"):
    """A question about an image."""
    return {"messages": [{"role": "user", "content": [{"type": kind, kind: url}]}]}


# -- what a request can carry ----------------------------------------------------------------------------------

EVERYTHING = {
    "max_tokens": 7,
    "max_completion_tokens": 8,
    "temperature": 0.0,
    "top_p": 0.95,
    "n": 2,
    "stop": ["。", "\n\n"],
    "presence_penalty": 0.0,
    "frequency_penalty": 0.5,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "tools": [FUNCTION, SEARCH],
    "tool_choice": NAMED,
    "thinking": {"type": "disabled", "keep": "all"},
    "reasoning_effort": "low",
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "logprobs": True,
    "top_logprobs": 3,
    "prediction": {"type": "content", "content": "x"},
    "stream_options": {"include_usage": True},
}


def test_there_is_a_value_for_every_option():
    """Or the next test would not be about everything."""
    assert EVERYTHING.keys() == ChatOptions.__annotations__.keys()


async def create_streamed(kimi, options):
    """The openai SDK's way to stream."""
    async with await kimi.chat.completions.create(messages=HELLO, stream=True, **options) as chunks:
        assert [chunk.text async for chunk in chunks] == ["1"]


async def stream(kimi, options):
    """The text alone."""
    async with kimi.chat.completions.stream(messages=HELLO, **options) as texts:
        assert [text async for text in texts] == ["1"]


async def batch(kimi, options):
    """A line of a file."""
    request = BatchRequest(custom_id="a", body={"messages": HELLO, **options})
    assert [result.text async for result in kimi.batch([request])] == ["1"]


CALLS = {
    # how to ask, and what that call fills in itself
    "create": (lambda kimi, options: kimi.chat.completions.create(messages=HELLO, **options), set()),
    "create(stream=True)": (create_streamed, set()),
    "stream": (stream, set()),
    "ask": (lambda kimi, options: kimi.ask("hello", **options), set()),
    "map": (lambda kimi, options: kimi.map(["hello"], **options), set()),
    "batch": (batch, set()),
    "parse": (
        lambda kimi, options: kimi.chat.completions.parse(messages=HELLO, response_format=RootModel[int], **options),
        {"response_format"},
    ),
    "run_tools": (lambda kimi, options: kimi.run_tools("hello", tools=[], **options), {"tools", "n"}),
    "conversation": (lambda kimi, options: kimi.conversation().ask("hello", **options), {"tools"}),
}


@pytest.mark.parametrize("call", CALLS)
async def test_every_parameter_goes_out_as_it_was_given(call):
    """Through every way of asking; zeros too, nothing added and nothing renamed."""
    ask, own = CALLS[call]
    chunk = b'data: {"choices": [{"index": 0, "delta": {"content": "1"}}]}\n\ndata: [DONE]\n\n'
    streamed = {"stream": True} if "stream" in call else {}
    kimi, inner = client(
        Step(content=Body(chunk), headers={"content-type": "text/event-stream"}) if streamed else answer("1")
    )
    options = {name: value for name, value in EVERYTHING.items() if name not in own}
    await ask(kimi, options)
    (sent,) = inner.payloads
    assert {name: value for name, value in sent.items() if name not in own} == {
        "model": "moonshot-v1-8k",
        "messages": HELLO,
        **options,
        **streamed,
    }


@pytest.mark.parametrize("name", EVERYTHING)
async def test_none_is_left_out(name):
    """Only max_tokens is made explicit then."""
    kimi, inner = client()
    await kimi.chat.completions.create(messages=HELLO, **{"max_tokens": 5, name: None})
    max_tokens = find("moonshot-v1-8k").default_max_tokens if name == "max_tokens" else 5
    assert inner.payloads == [{"model": "moonshot-v1-8k", "messages": HELLO, "max_tokens": max_tokens}]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "x", "name": "n"},
        {"role": "system", "tools": [FUNCTION]},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "r"},
        RESULT,
        PARTIAL,
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        *(
            image(url, kind)["messages"][0]
            for kind in ("image_url", "video_url")
            for url in ("ms://1", {"url": "ms://1"})
        ),
        {"role": "user", "content": "x", "new": {"a": [1, None]}},
    ],
)
async def test_every_message_goes_out_as_it_was_given(message):
    """Parts, calls, results, partial mode, and fields that nobody knows yet."""
    kimi, inner = client()
    await kimi.chat.completions.create(messages=[*HELLO, message], max_tokens=5)
    assert inner.payloads[0]["messages"] == [*HELLO, message]


def test_a_misspelt_option_is_told_with_what_was_meant():
    """By the function that was called with it, as Python does; a field of Kimi's that we do not know has a place."""
    with pytest.raises(
        TypeError, match=r"^ask\(\) got an unexpected keyword argument 'max_token'; did you mean max_tok"
    ):
        request_body({}, {"max_token": 5}, function="ask")
    with pytest.raises(TypeError, match="'seed'; a field that Kimi knows"):
        request_body({}, {"seed": 5}, function="ask")


# -- what a model refuses ----------------------------------------------------------------------------------------

RULES = [
    # the model, a request that it refuses, what the error says, and the nearest request that it takes
    ("kimi-k3", {"n": 2}, "n=2: kimi-k3 gives one answer.*send it 2 times", {"n": 1}),
    ("kimi-k2.6", {"n": 2, **UNTHINKING}, "n=2", {"n": 1, **UNTHINKING}),
    ("kimi-k3", {"temperature": 0.6}, "temperature=0.6: kimi-k3 takes only 1 .*leave it out", {"temperature": 1}),
    ("kimi-k3", {"temperature": 0.0}, r"temperature=0\.0", {"temperature": 1.0}),
    ("kimi-k2.6", {"temperature": 0.6}, "takes only 1 with thinking; leave it out", {"temperature": 1}),
    (
        "kimi-k2.6",
        {"temperature": 1, **UNTHINKING},
        "temperature=1: kimi-k2.6 takes only 0.6 without thinking",
        {"temperature": 0.6, **UNTHINKING},
    ),
    ("kimi-k2.6", {"top_p": 0.9}, "top_p=0.9: kimi-k2.6 takes only 0.95; leave it out", {"top_p": 0.95}),
    ("kimi-k3", {"presence_penalty": 0.1}, "presence_penalty=0.1: .* only 0;", {"presence_penalty": 0}),
    ("kimi-k3", {"frequency_penalty": -0.1}, "frequency_penalty=-0.1", {"frequency_penalty": 0.0}),
    ("kimi-k3", {"thinking": {"type": "disabled"}}, "thinking=.*always thinks; leave it out", {"thinking": None}),
    (
        "kimi-k2.6",
        {"tools": [FUNCTION], "tool_choice": "required"},
        "tool_choice='required': kimi-k2.6 takes only auto or none while it thinks; or pass thinking=.*disabled",
        {"tools": [FUNCTION], "tool_choice": "required", **UNTHINKING},
    ),
    (
        "kimi-k2.6",
        {"tools": [FUNCTION], "tool_choice": NAMED},
        "tool_choice=.*while it thinks",
        {"tools": [FUNCTION], "tool_choice": "auto"},
    ),
    (
        "kimi-k3",
        {"tools": [FUNCTION], "tool_choice": NAMED},
        "only auto or none or required while it thinks; or choose a model that does not",
        {"tools": [FUNCTION], "tool_choice": "required"},
    ),
    (
        "kimi-k2.6",
        {"tools": [FUNCTION, SEARCH]},
        r"\$web_search: not while kimi-k2.6 thinks; pass thinking=",
        {"tools": [FUNCTION, SEARCH], **UNTHINKING},
    ),
    (
        "kimi-k2.6",
        calling(),
        "tool_calls without reasoning_content: .*just as it came",
        calling(reasoning_content=""),
    ),
    ("kimi-k2.6", calling(reasoning_content=None), "reasoning_content", {**calling(), **UNTHINKING}),
    ("kimi-k3", {"stop": list("abcdef")}, "stop: 6 texts, where Kimi takes at most 5", {"stop": list("abcde")}),
    ("kimi-k3", {"stop": "a" * 33}, "stop: 'a+' is longer than the 32 bytes", {"stop": "a" * 32}),
    ("kimi-k3", {"stop": ["x", "月" * 11]}, "stop: '月+' is longer", {"stop": ["x", "月" * 10]}),
    (
        "kimi-k2.6",
        {"messages": [*HELLO, PARTIAL], **JSON_OBJECT},
        "partial mode and response_format=.*leave one out",
        {"messages": [*HELLO, PARTIAL], "response_format": {"type": "text"}},
    ),
]

WIDE_RULES = [
    # of all models; of more than five answers the mock says so when it reads the request
    ("moonshot-v1-8k", {"temperature": 1.01}, "temperature=1.01: moonshot-v1-8k takes 0 to 1", {"temperature": 1}),
    ("moonshot-v1-8k", {"temperature": -0.01}, "temperature=-0.01", {"temperature": 0}),
    ("moonshot-v1-8k", {"temperature": float("nan")}, "temperature=nan", {"temperature": 0.3}),
    (
        "kimi-k2.6",
        {"messages": [PARTIAL, *HELLO]},
        r"messages\[0\]: partial is for the last message, the assistant's; leave it out, or move",
        {"messages": [*HELLO, PARTIAL]},
    ),
    (
        "kimi-k2.6",
        {"messages": [{**HELLO[0], "partial": True}]},
        r"messages\[0\]: partial",
        {"messages": [{**HELLO[0], "partial": False}]},
    ),
    (
        "kimi-k2.6",
        image("https://x.test/a.png"),
        r"messages\[0\]: image_url 'https://x.test/a.png': .* send a data: URL, or upload it with kimi.files",
        image("ms://1"),
    ),
    ("kimi-k2.6", image({"url": "http://x/v"}, "video_url"), "video_url", image({"url": "ms://1"}, "video_url")),
    ("kimi-k3", image("cat.png"), "image_url 'cat.png'", image("DATA:image/png;base64,AAAA")),
]

MANY = ("moonshot-v1-8k", {"n": 6}, "n=6: Kimi generates at most 5", {"n": 5})


@pytest.mark.parametrize(("model", "refused", "text", "taken"), RULES + WIDE_RULES + [MANY])
def test_what_a_model_refuses_is_refused_with_the_reason(model, refused, text, taken):
    """The text names the parameter, what is taken, and what to do; the nearest request that is taken passes."""
    with pytest.raises(ConfigurationError, match=text):
        check({"model": model, "messages": HELLO, **refused})
    check({"model": model, "messages": HELLO, **taken})


@pytest.mark.parametrize(("model", "refused", "text", "taken"), RULES + WIDE_RULES)
def test_the_mock_refuses_the_same(model, refused, text, taken):
    """Both sides say the same of every rule, whoever is asked."""

    def ask_mock(fields):
        body = {"model": model, "messages": HELLO, **fields}
        rules.check(find(model), body, thinking=rules.thinks(find(model), body))

    with pytest.raises(rules.InvalidRequest):
        ask_mock(refused)
    ask_mock(taken)


@pytest.mark.parametrize("fields", [refused for model, refused, _, _ in RULES if "stop" not in refused])
def test_of_an_unknown_model_nothing_is_known(fields):
    """What the models of today refuse, the next may take; what the API itself limits stays limited."""
    if "response_format" not in fields:
        check({"model": "kimi-k9", "messages": HELLO, **fields})
    with pytest.raises(ConfigurationError, match="stop"):
        check({"model": "kimi-k9", "messages": HELLO, **fields, "stop": ["x"] * 6})


@pytest.mark.parametrize("model", live_models())
def test_a_plain_request_passes_everywhere(model):
    """And so does one with the values that the model is fixed to."""
    check({"model": model, "messages": HELLO})
    sampling = find(model).sampling
    check({"model": model, "messages": HELLO, "temperature": sampling.temperature, "top_p": sampling.top_p, "n": 1})


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        ("kimi-k3", {}, True),
        ("kimi-k3", UNTHINKING, True),
        ("kimi-k2.6", {}, True),
        ("kimi-k2.6", {"thinking": {"type": "enabled"}}, True),
        ("kimi-k2.6", {"thinking": {"keep": "all"}}, True),
        ("kimi-k2.6", UNTHINKING, False),
        ("moonshot-v1-8k", {"thinking": {"type": "enabled"}}, False),
        ("kimi-k2-thinking", {}, True),
    ],
)
def test_which_requests_are_thought_about(model, fields, expected):
    """Always, never, or unless told otherwise."""
    assert thinks(find(model), {"model": model, **fields}) is expected


odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=3)
    | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=7)
        | st.tuples(inner)
        | st.sets(st.integers(), max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["type", "content", "url", "image_url", "partial", "role", "tool_calls", "function", "name"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(
    st.sampled_from(["kimi-k3", "kimi-k2.6", "moonshot-v1-8k", "unknown"]),
    st.dictionaries(st.sampled_from([*EVERYTHING, "messages"]), odd_values, max_size=5),
)
def test_odd_values_pass_or_are_refused_but_never_crash(model, fields):
    """Unhashable, of the wrong type, of no type that JSON has: Kimi will say what is wrong with those that pass."""
    with suppress(ConfigurationError):
        check({"model": model, "messages": HELLO, **fields})


@pytest.mark.parametrize("value", [None, 3, [], {"a": 1}])
def test_a_model_that_is_no_name_passes(value):
    """The client has its own words for it."""
    check({"model": value, "messages": HELLO, "temperature": 7})


# -- on the way out -----------------------------------------------------------------------------------------------


async def test_a_refused_parameter_is_never_sent():
    """By any call; nothing is reserved for it either."""
    kimi, inner = client(model="kimi-k3")
    with pytest.raises(ConfigurationError, match="temperature"):
        await kimi.chat.completions.create(messages=HELLO, temperature=0.2)
    with pytest.raises(ConfigurationError, match="temperature"):
        await kimi.chat.completions.create(messages=HELLO, temperature=0.2, stream=True)
    with pytest.raises(ConfigurationError, match="temperature"):
        await kimi.ask("hello", temperature=0.2)
    with pytest.raises(ConfigurationError, match="temperature"):
        await kimi.map(["hello"], temperature=0.2)
    with pytest.raises(ConfigurationError, match="temperature"):
        await kimi.run_tools("hello", tools=[], temperature=0.2)
    assert (inner.requests, kimi.limiter.usage().rpm.used) == ([], 0)


async def test_extra_body_is_not_checked_and_wins():
    """Whoever knows better has the last word, over every check; in all the calls that take it."""
    kimi, inner = client(model="kimi-k3")
    extra = {"temperature": 0.2, "max_tokens": 3, "new": {"x": 1}}
    await kimi.chat.completions.create(messages=HELLO, temperature=1, max_tokens=9, extra_body=extra)
    await kimi.ask("hello", max_tokens=9, extra_body=extra)
    await kimi.map(["hello"], max_tokens=9, extra_body=extra)
    await kimi.run_tools("hello", tools=[], max_tokens=9, extra_body=extra)
    await kimi.conversation(max_tokens=9, extra_body=extra).ask("hello")
    assert [json.dumps(body, sort_keys=True) for body in inner.payloads] == [
        json.dumps({"model": "kimi-k3", "messages": HELLO, **extra}, sort_keys=True)
    ] * 5


async def test_a_line_with_a_refused_parameter_is_that_lines_error():
    """The others of the batch are answered."""
    kimi, inner = client(model="kimi-k3")
    bodies = {"bad": {"temperature": 0.2}, "good": {"temperature": 1}}
    batch = [BatchRequest(custom_id=name, body={"messages": HELLO, **body}) for name, body in bodies.items()]
    results = {result.custom_id: result async for result in kimi.batch(batch)}
    assert isinstance(results["bad"].error, ConfigurationError)
    assert results["good"].text == "hello"
    assert [body["temperature"] for body in inner.payloads] == [1]


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 12),
        (image("ms://1"), 7 + 4_608),
        (image({"url": "data:image/png;base64,AAAA"}), 7 + 4_608),
        (image("ms://1", "video_url"), 7 + 65_536),
        ({"tools": [SEARCH], **UNTHINKING}, 12 + 6 + len(json.dumps([SEARCH], separators=(",", ":")))),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, 12 + len('{"name":"x"}')),
        ({"response_format": {"type": "json_object"}}, 12),
        ({"messages": [*HELLO, {**PARTIAL, "reasoning_content": "hm"}]}, 12 + 4 + len("{hm")),
        (
            calling(reasoning_content="hm"),
            12 + (4 + len("hm") + 2 + 3 + len("f:0f{}")) + 4 + len("## Return of f:0\nx"),
        ),
    ],
)
async def test_everything_a_request_carries_is_reserved(fields, tokens):
    """Images, videos, tools, schemas, calls, thinking: as one request against TPM."""
    kimi, _ = client(model="kimi-k2.6", limits=RateLimits(tpm=1_000_000))
    await kimi.chat.completions.create(**{"messages": HELLO, "max_tokens": 100, **fields})
    assert kimi.limiter.usage().tpm.used == tokens + 100


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"thinking": False}, 'thinking=False: pass {"type": "enabled"}'),
        ({"thinking": {"type": "off"}}, 'or {"type": "disabled"}'),
        ({"reasoning_effort": "medium"}, "Kimi has 'low', 'high' and 'max'"),
        ({"messages": []}, "at least one message"),
        ({"messages": {"role": "user", "content": "x"}}, "a list of at least one message"),
        ({"messages": ["x"]}, r"messages\[0\]: a dict with a role"),
        ({"messages": [{"role": "human", "content": "x"}]}, "one of system, user, assistant, tool"),
    ],
)
def test_what_is_of_no_form_at_all_is_told(fields, told):
    """Whatever the model."""
    body = {"model": "kimi-k9", "messages": [{"role": "user", "content": "hi"}]}
    check(body)
    with pytest.raises(ConfigurationError, match=told):
        check({**body, **fields})
