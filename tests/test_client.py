"""The client: settings, the typed call, many prompts, and the whole of it against the mock gateway."""

import asyncio
import functools
import json
import logging
from dataclasses import replace
from itertools import count, pairwise

import httpx
import pytest

from kimi_async import retry
from kimi_async.client import BASE_URL, AsyncKimi
from kimi_async.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    EngineOverloadedError,
    KimiError,
    NotFoundError,
    ToolRoundsExceeded,
    WaitTooLong,
)
from kimi_async.events import Refused, Retrying
from kimi_async.exchange import TIMEOUT
from kimi_async.jsonl import BatchRequest
from kimi_async.ledger.memory import MemoryLedger
from kimi_async.limits import RateLimits
from kimi_async.mock import Faults, MockSettings, running
from kimi_async.models import find
from kimi_async.transport import HANG_UP

from .scripted import OVERLOADED, Scripted, Step, answer, error, everything_in

ENVIRONMENT = ("MOONSHOT_API_KEY", "KIMI_API_KEY", "MOONSHOT_BASE_URL", "KIMI_BASE_URL")
HELLO = [{"role": "user", "content": "hello"}]
SSE = {"extra_body": {"stream": True}}
WIDE = RateLimits(concurrency=100, rpm=100_000, tpm=100_000_000)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    """Whatever the developer's shell holds."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def quiet(event):
    """A hook for tests that do not ask."""


def client(*steps, **options):
    """A client of a scripted gateway, for which a character is a token."""
    inner = Scripted(*(steps or [answer()]))
    options = {"api_key": "sk-test", "model": "kimi-k2.6", "limits": WIDE, "on_event": quiet, **options}
    kimi = AsyncKimi(transport=inner, **options)
    kimi.counter._encode = list
    return kimi, inner


class Echo(httpx.AsyncBaseTransport):
    """Answers with the prompt, after as many seconds as it says; ``!`` is a bad request."""

    def __init__(self):
        self.in_flight, self.most, self.seen = 0, 0, []

    async def handle_async_request(self, request):
        scripted = Scripted(answer())
        prompt = httpx.Response(200, content=request.content).json()["messages"][-1]["content"]
        self.seen.append(prompt)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(float(prompt.strip("!") or 0))
        finally:
            self.in_flight -= 1
        scripted.steps = [error(400, "invalid_request_error", prompt) if "!" in prompt else answer(prompt)]
        return await scripted.handle_async_request(request)


def echoing(**options):
    """A client of an echo."""
    kimi, _ = client(**options)
    echo = Echo()
    kimi._transport._inner = echo
    return kimi, echo


def requests(*prompts, **options):
    """Batch requests, each called after its prompt."""
    return [
        BatchRequest(custom_id=f"id-{prompt}", body={"messages": [{"role": "user", "content": prompt}], **options})
        for prompt in prompts
    ]


# -- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "environment", "key"),
    [
        ("sk-given", {"MOONSHOT_API_KEY": "sk-moonshot", "KIMI_API_KEY": "sk-kimi"}, "sk-given"),
        (None, {"MOONSHOT_API_KEY": "sk-moonshot", "KIMI_API_KEY": "sk-kimi"}, "sk-moonshot"),
        (None, {"KIMI_API_KEY": "sk-kimi"}, "sk-kimi"),
        ("", {"MOONSHOT_API_KEY": "", "KIMI_API_KEY": "sk-kimi"}, "sk-kimi"),
    ],
)
async def test_the_key_is_the_one_given_or_the_environments(given, environment, key, monkeypatch):
    """Moonshot's name before Kimi's; an empty one is none."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kimi, inner = client(api_key=given)
    await kimi.ask("hello")
    assert inner.requests[0].headers["authorization"] == f"Bearer {key}"


def test_without_a_key_there_is_no_client():
    """Said at once, with the remedy."""
    with pytest.raises(ConfigurationError, match="MOONSHOT_API_KEY"):
        client(api_key=None)


@pytest.mark.parametrize(
    ("given", "environment", "url"),
    [
        (None, {}, BASE_URL),
        (None, {"KIMI_BASE_URL": "https://kimi.test/v1"}, "https://kimi.test/v1"),
        (
            None,
            {"MOONSHOT_BASE_URL": "https://moonshot.test/v1", "KIMI_BASE_URL": "https://k.test"},
            "https://moonshot.test/v1",
        ),
        ("http://given.test/v1/", {"MOONSHOT_BASE_URL": "https://moonshot.test/v1"}, "http://given.test/v1"),
        ("HTTPS://given.test", {}, "HTTPS://given.test"),
    ],
)
async def test_the_base_url_is_the_one_given_or_the_environments(given, environment, url, monkeypatch):
    """With or without a slash at the end."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kimi, inner = client(base_url=given)
    await kimi.ask("hello")
    assert kimi.base_url == url
    assert str(inner.requests[0].url) == str(httpx.URL(f"{url}/chat/completions"))


@pytest.mark.parametrize(
    "url", ["api.moonshot.cn/v1", "ftp://x", "https://", "http:///v1", "http://x:port", "http:\n"]
)
def test_a_base_url_that_is_none_is_told_at_once(url):
    """Not at the first request, and as our own error."""
    with pytest.raises(ConfigurationError, match="base_url="):
        client(base_url=url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("htps://user:SECRET@gw.test/v1", "'htps://gw.test/v1': must begin with https:// or http:// and a host"),
        ("https://user:SECRET#1@gw.test/v1", "'https://gw.test/v1': no URL; percent-encode"),
        ("user:SECRET@gw.test/v1", "'gw.test/v1': must begin with"),
        ("http://user:SECRET@gw.test/\udcff", "'http://gw.test/\\udcff': no URL"),
    ],
)
def test_a_base_url_that_is_none_is_shown_without_its_password(url, shown):
    """Whatever is wrong with it."""
    with pytest.raises(ConfigurationError) as caught:
        client(base_url=url)
    assert str(caught.value).startswith(f"base_url={shown}")
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_defaults():
    """Tier 0, the least that any account has; Kimi's own patience for an answer."""
    kimi, inner = client(limits=None)
    await kimi.ask("hello", max_tokens=1)
    assert kimi.limiter.limits == RateLimits.tier(0)
    assert inner.requests[0].extensions["timeout"] == TIMEOUT.as_dict()


@pytest.mark.parametrize(("timeout", "read", "connect"), [(5, 5, TIMEOUT.connect), (httpx.Timeout(7), 7, 7)])
@pytest.mark.parametrize("where", ["client", "call"])
async def test_timeouts_of_client_and_call(timeout, read, connect, where):
    """The call's go before the client's."""
    kimi, inner = client(timeout=timeout if where == "client" else 99)
    await kimi.chat.completions.create(messages=HELLO, timeout=timeout if where == "call" else None)
    used = inner.requests[0].extensions["timeout"]
    assert (used["read"], used["connect"]) == (read, connect)


@pytest.mark.parametrize(("of_client", "of_call"), [(10.0, None), (1000.0, 10.0), (None, 10.0)])
async def test_max_wait_of_client_and_call(of_client, of_call):
    """The call's goes before the client's."""
    kimi, _ = client(limits=RateLimits(rpm=1), max_wait=of_client)
    await kimi.ask("hello")
    with pytest.raises(WaitTooLong) as caught:
        await kimi.chat.completions.create(messages=HELLO, max_wait=of_call)
    assert caught.value.max_wait == 10


async def test_max_attempts_and_events():
    """Two attempts are one retry, of which the hook is told."""
    events = []
    kimi, inner = client(error(429, *OVERLOADED), max_attempts=2, on_event=events.append)
    with pytest.raises(EngineOverloadedError):
        await kimi.ask("hello")
    assert len(inner.requests) == 2
    assert [type(event) for event in events] == [Retrying]


async def test_two_clients_on_one_ledger_share_the_account():
    """One request a minute, for both together."""
    ledger = MemoryLedger()
    clients = [client(limits=RateLimits(rpm=1), ledger=ledger, max_wait=10)[0] for _ in range(2)]
    await clients[0].ask("hello")
    with pytest.raises(WaitTooLong):
        await clients[1].ask("hello")


async def test_the_block_loads_the_vocabulary_and_closes_the_connections(monkeypatch):
    """Before the traffic, and after it."""
    kimi, inner = client()
    loaded = []

    async def load():
        loaded.append(inner.closed)

    monkeypatch.setattr(kimi.counter, "load", load)
    async with kimi as entered:
        assert entered is kimi
        assert (loaded, inner.closed) == ([False], False)
    assert inner.closed


async def test_repr_tells_where_and_what_and_how_full_never_the_key():
    """A dashboard; nothing that the client shows holds the key."""
    kimi, _ = client(api_key="sk-SECRET", limits=RateLimits(rpm=60))
    assert repr(kimi) == f"<AsyncKimi {BASE_URL}, model kimi-k2.6, <RateLimiter rpm 0/60>>"
    exchange = kimi.chat.completions._exchange
    parts = [kimi, *vars(kimi).values(), kimi.chat.completions, exchange, exchange._headers, kimi.conversation()]
    assert "SECRET" not in "".join(f"{part!r}{part!s}" for part in parts)


async def test_a_mock_transport_of_httpx_serves_as_gateway():
    """Its answers have been read already; each gives its slot back all the same."""
    content = answer("mocked").content
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=content))
    kimi = AsyncKimi(api_key="sk", model="kimi-k2.6", limits=RateLimits(concurrency=1), transport=transport)
    kimi.counter._encode = list
    assert [await kimi.ask("hello", max_tokens=1) for _ in range(3)] == ["mocked"] * 3
    assert kimi.limiter.usage().concurrency.used == 0


# -- the typed call -------------------------------------------------------------------------------------------


async def test_create_leaves_out_what_it_is_not_given():
    """But for the model and max_tokens, which are made explicit; both sides reserve the same."""
    kimi, inner = client()
    await kimi.chat.completions.create(messages=HELLO)
    default = find("kimi-k2.6").default_max_tokens
    assert inner.payloads == [{"model": "kimi-k2.6", "messages": HELLO, "max_tokens": default}]
    assert kimi.limiter.usage().tpm.used == len("hello") + 7 + default


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_either_name_of_max_tokens_is_enough(name):
    """The other is not added, and what is reserved is what was said."""
    kimi, inner = client()
    await kimi.chat.completions.create(messages=HELLO, **{name: 5})
    assert inner.payloads == [{"model": "kimi-k2.6", "messages": HELLO, name: 5}]
    assert kimi.limiter.usage().tpm.used == len("hello") + 7 + 5


async def test_extra_body_goes_along_as_it_is():
    """Fields that the call does not know, and the last word on those it does."""
    kimi, inner = client()
    extra = {"thinking": {"type": "disabled"}, "max_tokens": 3}
    await kimi.chat.completions.create(messages=HELLO, max_tokens=9, extra_body=extra)
    assert inner.payloads == [{"model": "kimi-k2.6", "messages": HELLO, **extra}]
    assert kimi.limiter.usage().tpm.used == len("hello") + 7 + 3


async def test_unknown_fields_of_an_answer_are_kept():
    """Kimi adds fields faster than packages are released."""
    content = answer().content.replace(b'"index"', b'"new": 1, "index"').replace(b'"object"', b'"tier": "x", "object"')
    kimi, _ = client(Step(content=content))
    completion = await kimi.chat.completions.create(messages=HELLO)
    assert (completion.tier, completion.choices[0].new) == ("x", 1)
    assert completion.model_dump()["tier"] == "x"


async def test_an_answered_message_may_be_sent_back():
    """With just the fields it had, unknown ones and the reasoning among them, and counted like any other."""
    content = answer("hi").content.replace(b'"hi"', b'"hi", "reasoning_content": "why", "x": null')
    kimi, inner = client(Step(content=content))
    message = (await kimi.chat.completions.create(messages=HELLO, max_tokens=1)).choices[0].message
    had = kimi.limiter.usage().tpm.used
    for call in (create, complete):
        await call(kimi, [*HELLO, message])
        assert inner.payloads[-1]["messages"] == [
            *HELLO,
            {"role": "assistant", "content": "hi", "reasoning_content": "why"},
        ]
        now = kimi.limiter.usage().tpm.used
        assert now - had == 3 + (4 + len("hello")) + (4 + len("hi") + len("why")) + 1
        had = now


async def create(kimi, messages):
    """The typed call."""
    await kimi.chat.completions.create(messages=messages, max_tokens=1)


async def complete(kimi, messages):
    """The untyped one."""
    await kimi.chat.completions.send({"messages": messages, "max_tokens": 1})


async def test_a_string_is_no_list_of_messages():
    """Nor a list of prompts; each says which call takes one."""
    kimi, inner = client()
    with pytest.raises(ConfigurationError, match=r"kimi\.ask"):
        await kimi.chat.completions.create(messages="hello")
    with pytest.raises(ConfigurationError, match=r"kimi\.ask"):
        await kimi.map("hello")
    assert inner.requests == []


async def test_streams_are_refused_where_whole_answers_are_read():
    """Before anything is reserved, and with the call that streams."""
    kimi, inner = client()
    for call in (kimi.chat.completions.create(messages=HELLO, extra_body={"stream": True}), kimi.ask("hello", **SSE)):
        with pytest.raises(ConfigurationError, match=r"pass stream=True to create"):
            await call
    assert (inner.requests, kimi.limiter.usage().rpm.used) == ([], 0)


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": 3}])
async def test_no_model_is_told_with_the_remedy(body):
    """Neither in the call nor in the client."""
    kimi, _ = client(model=None)
    with pytest.raises(ConfigurationError, match="model="):
        await kimi.chat.completions.send({"messages": HELLO, **body})


@pytest.mark.parametrize("content", ["\ud800", object()])
async def test_what_is_no_json_is_told(content):
    """Half a character, or a value of Python's; nothing is sent or reserved."""
    kimi, inner = client()
    with pytest.raises(ConfigurationError, match="cannot be written as JSON"):
        await kimi.chat.completions.send({"messages": [{"role": "user", "content": content}]})
    assert (inner.requests, kimi.limiter.usage().rpm.used) == ([], 0)


async def test_a_bill_above_the_count_is_learnt():
    """Kimi billed 5 tokens more than was counted: the next request reserves them, and only once."""
    kimi, _ = client(answer(prompt_tokens=len("hello") + 7 + 5))
    used = []
    for _ in range(3):
        had = kimi.limiter.usage().tpm.used
        await kimi.ask("hello", max_tokens=1)
        used.append(kimi.limiter.usage().tpm.used - had)
    assert used == [13, 18, 18]


async def test_an_unknown_model_is_told_the_live_ones():
    """The client passes the model on for the hint."""
    kimi, _ = client(error(404, "resource_not_found_error", "Not found the model kimi-k9 or Permission denied"))
    with pytest.raises(NotFoundError, match=r"'kimi-k9'; live models are .*kimi-k2\.6"):
        await kimi.ask("hello", model="kimi-k9")


async def test_ask_is_one_prompt_and_its_text():
    """With a system message where there is one."""
    kimi, inner = client(answer("月亮"))
    assert await kimi.ask("hello", system="be brief", model="kimi-k3", max_tokens=9, temperature=1) == "月亮"
    messages = [{"role": "system", "content": "be brief"}, *HELLO]
    assert inner.payloads == [{"model": "kimi-k3", "messages": messages, "max_tokens": 9, "temperature": 1}]


# -- many prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["list", "iterator", "async"])
async def test_map_keeps_the_order_of_the_prompts(source):
    """Whichever is answered first."""
    prompts = ["3", "1", "2", "0"]

    async def generator():
        for prompt in prompts:
            yield prompt

    kimi, _ = echoing()
    given = {"list": prompts, "iterator": iter(prompts), "async": generator()}[source]
    assert await kimi.map(given, max_tokens=1) == prompts


async def test_map_raises_the_first_prompts_error_when_all_are_answered():
    """The first by place, not by time."""
    kimi, echo = echoing()
    with pytest.raises(BadRequestError, match="5!"):
        await kimi.map(["9", "5!", "1!", "20"], max_tokens=1)
    assert sorted(echo.seen) == ["1!", "20", "5!", "9"]
    assert echo.in_flight == 0


async def test_map_passes_its_options_on():
    """To every request."""
    kimi, inner = client()
    options = {"model": "kimi-k3", "max_tokens": 9, "temperature": 1}
    await kimi.map(["hello"] * 2, system="be brief", timeout=7, extra_body={"new": 1}, **options)
    messages = [{"role": "system", "content": "be brief"}, *HELLO]
    assert inner.payloads == [{"messages": messages, "new": 1, **options}] * 2
    assert [request.extensions["timeout"]["read"] for request in inner.requests] == [7, 7]


async def test_max_wait_bounds_each_request_of_map():
    """The third would wait for a minute."""
    kimi, inner = client(limits=RateLimits(rpm=2))
    with pytest.raises(WaitTooLong):
        await kimi.map(["hello"] * 3, max_tokens=1, max_wait=30)
    assert len(inner.requests) == 2


async def test_a_batch_yields_errors_beside_answers():
    """As they complete; nothing is lost, and the text of a failure raises it."""
    kimi, _ = echoing()
    results = [result async for result in kimi.batch(requests("3", "1!", "2", max_tokens=1))]
    assert [result.custom_id for result in results] == ["id-1!", "id-2", "id-3"]
    assert [type(result.error) for result in results] == [BadRequestError, type(None), type(None)]
    assert [result.text for result in results[1:]] == ["2", "3"]
    with pytest.raises(BadRequestError):
        _ = results[0].text


async def test_one_request_that_makes_no_sense_does_not_end_a_batch():
    """Each of these is that request's own error."""
    kimi, _ = echoing()
    deep = functools.reduce(lambda inner, _: [inner], range(2_000), "x")
    bad = [{"messages": [{"content": "\ud800"}]}, {"max_tokens": "many"}, {"stream": True}, {"model": 3}]
    bad += [{"messages": [{"content": deep}]}, {"tools": deep}]
    batch = [BatchRequest(custom_id=str(number), body=body) for number, body in enumerate(bad)]
    results = [result async for result in kimi.batch([*batch, *requests("1", max_tokens=1)])]
    assert [type(result.error) for result in sorted(results, key=lambda result: result.custom_id)[:6]] == [
        ConfigurationError
    ] * 6
    assert [result.text for result in results if not result.error] == ["1"]


@pytest.mark.parametrize(
    ("concurrency", "in_flight", "expected"), [(16, None, 20), (1, None, 3), (None, None, 128), (16, 5, 5)]
)
async def test_a_batch_takes_requests_as_there_is_room(concurrency, in_flight, expected):
    """The account's slots and a few in line; an endless source is fine, and is not read ahead."""
    taken = []

    def endless():
        for number in count():
            taken.append(number)
            yield from requests("10", max_tokens=1)

    kimi, echo = echoing(limits=RateLimits(concurrency=concurrency))
    results = kimi.batch(endless(), in_flight=in_flight)
    await anext(results)
    assert echo.most == min(concurrency or 128, expected)
    assert expected <= len(taken) <= 3 * expected
    await results.aclose()
    await asyncio.sleep(HANG_UP)  # the gateway has noticed by then
    assert (echo.in_flight, kimi.limiter.usage().concurrency.used, kimi.limiter.usage().waiting) == (0, 0, 0)


@pytest.mark.parametrize("in_flight", [0, -1])
async def test_a_batch_of_none_at_a_time_is_told(in_flight):
    """It would never end."""
    kimi, _ = echoing()
    with pytest.raises(ConfigurationError, match="in_flight="):
        await anext(kimi.batch(requests("1"), in_flight=in_flight))


async def test_a_source_that_fails_ends_the_batch_after_what_is_under_way():
    """A file that breaks off loses no answer."""

    def broken():
        yield from requests("3", "1", max_tokens=1)
        raise OSError("disk")

    kimi, _ = echoing()
    found = []
    with pytest.raises(OSError, match="disk"):  # noqa: PT012 - what came before it counts
        async for result in kimi.batch(broken()):
            found.append(result.text)  # noqa: PERF401 - a comprehension would lose them
    assert found == ["1", "3"]


# -- tools and conversations ----------------------------------------------------------------------------------


def depth(river: str, unit: str = "m") -> str:
    """How deep a river is.

    Args:
        river: its name.
        unit: of length.
    """
    return f"{len(river)} {unit}"


def calling(*rivers, **step):
    """A step that asks for the depths of these rivers."""
    calls = [
        {
            "id": f"depth:{n}",
            "type": "function",
            "function": {"name": "depth", "arguments": json.dumps({"river": river})},
        }
        for n, river in enumerate(rivers)
    ]
    message = {"role": "assistant", "content": "", "reasoning_content": f"{rivers}?", "tool_calls": calls}
    completion = json.loads(answer().content)
    completion["choices"] = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    return Step(content=json.dumps(completion).encode(), **step)


async def test_run_tools_asks_until_there_is_an_answer():
    """The tools in every request; calls, thinking and results in those that follow; the answer with all of it."""
    kimi, inner = client(calling("Po", "Rhine"), calling("Ob"), answer("deep"))
    final = await kimi.run_tools(HELLO, tools=[depth], model="kimi-k3", max_tokens=9, extra_body={"new": 1}, timeout=7)
    assert (final.text, final.rounds, final.request_id) == ("deep", 2, "req-1")
    for body in inner.payloads:
        assert (body["model"], body["max_tokens"], body["new"]) == ("kimi-k3", 9, 1)
        assert [tool["function"]["name"] for tool in body["tools"]] == ["depth"]
        assert body["tools"][0]["function"]["parameters"]["required"] == ["river"]
    assert [request.extensions["timeout"]["read"] for request in inner.requests] == [7] * 3
    histories = [body["messages"] for body in inner.payloads]
    assert [len(messages) for messages in histories] == [1, 4, 6]
    assert histories[2] == final.messages[:-1]
    assert [message.get("reasoning_content") for message in final.messages if message["role"] == "assistant"] == [
        "('Po', 'Rhine')?",
        "('Ob',)?",
        None,
    ]
    results = [(m["tool_call_id"], m["content"]) for m in final.messages if m["role"] == "tool"]
    assert results == [("depth:0", "2 m"), ("depth:1", "5 m"), ("depth:0", "2 m")]
    assert HELLO == [{"role": "user", "content": "hello"}]


async def test_every_round_of_tools_is_a_request_that_is_limited():
    """Each waits its turn, and is charged with the declarations and all that was said by then."""
    kimi, inner = client(calling("Po"), calling("Ob"), answer("deep"), limits=RateLimits(rpm=1))
    await kimi.run_tools("hello", tools=[depth], max_tokens=9)
    assert [round(b - a) for a, b in pairwise(inner.written)] == [60, 60]
    kimi, inner = client(calling("Po"), calling("Ob"), answer("deep"))
    await kimi.run_tools("hello", tools=[depth], max_tokens=9)
    costs = [await kimi.counter.cost(body) for body in inner.payloads]
    assert kimi.limiter.usage().tpm.used == sum(cost.tokens for cost in costs)
    assert costs[0].prompt_tokens < costs[1].prompt_tokens < costs[2].prompt_tokens


async def test_max_wait_bounds_each_round():
    """The first round was sent; the second would wait."""
    kimi, inner = client(calling("Po"), limits=RateLimits(rpm=1))
    with pytest.raises(WaitTooLong):
        await kimi.run_tools("hello", tools=[depth], max_tokens=9, max_wait=30)
    assert len(inner.requests) == 1


async def test_run_tools_gives_up_after_its_rounds_with_what_was_said():
    """So many turns with calls, and one request more."""
    kimi, inner = client(calling("Po"))
    with pytest.raises(ToolRoundsExceeded) as caught:
        await kimi.run_tools("hello", tools=[depth], max_tokens=9, max_rounds=2)
    assert len(inner.requests) == 3
    assert caught.value.messages == inner.payloads[2]["messages"]


async def test_what_run_tools_cannot_do_is_told_before_anything_is_sent():
    """Several answers, none of which it could follow alone; a tool that is none; an option that does not exist."""
    kimi, inner = client()
    with pytest.raises(ConfigurationError, match="n=2"):
        await kimi.run_tools("hello", tools=[depth], n=2, model="moonshot-v1-8k")
    with pytest.raises(ConfigurationError, match="tools: 3"):
        await kimi.run_tools("hello", tools=[3])
    with pytest.raises(ConfigurationError, match="max_rounds=0"):
        await kimi.run_tools("hello", tools=[depth], max_rounds=0)
    with pytest.raises(TypeError, match=r"run_tools\(\) .* 'max_token'"):
        await kimi.run_tools("hello", tools=[depth], max_token=9)
    assert inner.requests == []


async def test_without_tools_there_is_no_list_of_them():
    """An empty list may be refused."""
    kimi, inner = client()
    await kimi.run_tools("hello", tools=[], max_tokens=9)
    await kimi.conversation(max_tokens=9).ask("hello")
    assert inner.payloads == [{"model": "kimi-k2.6", "messages": HELLO, "max_tokens": 9}] * 2


async def test_a_conversation_is_the_clients():
    """With its model, and all that it was given; each has a history of its own."""
    kimi, inner = client(answer("A"), answer("B"))
    one, other = kimi.conversation(system="s", max_tokens=9), kimi.conversation(model="kimi-k3", max_tokens=9)
    assert (await one.ask("a"), await other.ask("b")) == ("A", "B")
    assert [(body["model"], len(body["messages"])) for body in inner.payloads] == [("kimi-k2.6", 2), ("kimi-k3", 1)]


# -- the whole of it, over sockets ----------------------------------------------------------------------------

GATEWAY = RateLimits(concurrency=8, rpm=60, tpm=30_000, minute=0.5)
BELIEVED = replace(GATEWAY, minute=0.6)  # a guard of milliseconds would be no match for a busy machine


@pytest.mark.real_time
async def test_a_batch_against_a_faulty_gateway_is_answered_whole(monkeypatch):
    """Errors, overloads, dropped connections and garbled answers: all answered, and no budget exceeded."""
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.01)
    events = []
    faults = Faults(error_5xx=0.1, overload=0.1, drop=0.1, garble=0.1)
    settings = MockSettings(limits=GATEWAY, latency=0.01, faults=faults)
    async with running(settings, count_prompt=lambda messages, tools, model: 8) as base_url:
        kimi = AsyncKimi(
            api_key="sk-SECRET",
            base_url=base_url,
            model="kimi-k2.6",
            limits=BELIEVED,
            max_attempts=20,
            on_event=events.append,
        )
        kimi.counter._encode = list
        async with kimi:
            prompts = requests(*map(str, range(60)), max_tokens=100)
            results = [result async for result in kimi.batch(prompts)]
        async with httpx.AsyncClient() as plain:
            stats = (await plain.get(f"{base_url}/stats")).json()
    assert {result.custom_id for result in results} == {f"id-{number}" for number in range(60)}
    assert [result.error for result in results] == [None] * 60
    assert sum(stats["refused"].values()) == 0
    assert sum(stats["faults"].values()) == sum(isinstance(event, Retrying) for event in events) > 0
    assert not [event for event in events if isinstance(event, Refused)]
    assert stats["peak_in_flight"] <= 8
    assert stats["max_window_requests"] <= 60
    assert stats["max_window_tokens"] <= 30_000
    assert "SECRET" not in everything_in(events)


@pytest.mark.real_time
async def test_a_wrong_key_is_told_with_the_remedy_and_shown_nowhere(caplog):
    """Whatever logs, at its most talkative."""
    caplog.set_level(logging.DEBUG)
    settings = MockSettings(latency=0, bad_keys=frozenset({"sk-SECRET"}))
    async with running(settings, count_prompt=lambda messages, tools, model: 8) as base_url:
        kimi = AsyncKimi(api_key="sk-SECRET", base_url=base_url, model="kimi-k2.6")
        kimi.counter._encode = list
        async with kimi:
            with pytest.raises(AuthenticationError, match="not interchangeable") as caught:
                await kimi.ask("hello")
    assert "SECRET" not in caplog.text
    assert "SECRET" not in everything_in(caught.value)
    assert "SECRET" not in everything_in(caplog.records)


@pytest.mark.real_time
async def test_a_server_that_is_gone_is_told_without_the_key(caplog):
    """The whole chain of causes, down to the socket's."""
    caplog.set_level(logging.DEBUG)
    async with running(MockSettings(), count_prompt=lambda messages, tools, model: 8) as base_url:
        pass
    kimi = AsyncKimi(api_key="sk-SECRET", base_url=base_url, model="kimi-k2.6", max_attempts=1)
    kimi.counter._encode = list
    async with kimi:
        with pytest.raises(APIConnectionError, match=r"no answer from 127\.0\.0\.1: ConnectError") as caught:
            await kimi.ask("hello")
    assert isinstance(caught.value, KimiError)
    assert "SECRET" not in everything_in(caught.value)
    assert "SECRET" not in everything_in(caplog.records)
    assert kimi.limiter.usage().rpm.used == 0
