"""Under other clients: the openai SDK, httpx and httpx2, on either family's transport."""

import asyncio
import gc
import gzip
import json
import sys

import httpx
import httpx2
import openai
import pytest

from kimi_async import errors
from kimi_async.budgets import GUARD
from kimi_async.clients import limited_client
from kimi_async.exchange import TIMEOUT
from kimi_async.httpx2 import Httpx2RateLimitTransport
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits
from kimi_async.mock import MockSettings, running
from kimi_async.tokens import TokenCounter
from kimi_async.transport import COST, HANG_UP, MAX_WAIT, RateLimitTransport

from .scripted import NO_BALANCE, OVERLOADED, Body, Scripted, Step, answer, error, refused

URL = "https://kimi.test/v1/chat/completions"
MINUTE = 60 * (1 + GUARD)
ROOMY = RateLimits(concurrency=2, rpm=100, tpm=100_000, tpd=1_000_000)
HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "kimi-k2.6", "messages": HELLO, "max_tokens": 10}
LIBRARIES = {"httpx": httpx, "httpx2": httpx2}
TRANSPORTS = {"httpx": RateLimitTransport, "httpx2": Httpx2RateLimitTransport}
FAILURES = [
    "ConnectTimeout",
    "ReadTimeout",
    "WriteTimeout",
    "PoolTimeout",
    "ConnectError",
    "ReadError",
    "WriteError",
    "CloseError",
    "LocalProtocolError",
    "RemoteProtocolError",
    "ProxyError",
    "UnsupportedProtocol",
]

both = pytest.mark.parametrize("family", LIBRARIES)


@pytest.fixture
def limiter():
    """An account with room."""
    return RateLimiter(ROOMY, on_event=lambda event: None)


@pytest.fixture
def counter():
    """A character is a token."""
    counter = TokenCounter()
    counter._encode = list
    return counter


@pytest.fixture
def scripted(monkeypatch):
    """Put a scripted gateway where the connections would be."""

    def put(*steps):
        inner = Scripted(*steps)
        monkeypatch.setattr("kimi_async.transport.ConnectionStack", lambda: inner)
        return inner

    return put


@pytest.fixture
def sdk(limiter, counter):
    """The openai SDK over a limited client."""

    def make(family, *, limiter=limiter, max_wait=None, **options):
        client = limited_client(limiter, family, max_wait=max_wait, counter=counter)
        made = openai.AsyncOpenAI(api_key="sk-1", base_url="https://kimi.test/v1", http_client=client, **options)
        made._platform = "Other"  # found out in a thread otherwise, while virtual time runs on
        return made

    return make


def clock():
    """Virtual seconds since the test began."""
    return round(asyncio.get_running_loop().time() - 1000.0, 2)


async def sent(limiter):
    """Requests sent so far, once no slot is taken any more, not even by one that was hung up on."""
    await asyncio.sleep(HANG_UP)
    assert limiter.usage().concurrency.used == 0
    return limiter.usage().requests_sent


def events(*texts, done=True):
    """A streamed answer's bytes, an event each."""
    for text in texts:
        chunk = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "kimi-k2.6",
            "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
        }
        yield f"data: {json.dumps(chunk)}\n\n".encode()
    if done:
        yield b"data: [DONE]\n\n"


class Once(Body):
    """A body that can be read once, as a connection's."""

    async def __aiter__(self):
        while self.chunks:
            chunk, *self.chunks = self.chunks
            yield chunk


def streamed(*chunks, **body):
    """A step that streams."""
    return Step(headers={"Content-Type": "text/event-stream"}, content=Body(*chunks, **body))


# -- the openai SDK -------------------------------------------------------------------------------------------


@both
async def test_the_sdk_gets_its_answer(family, scripted, sdk, limiter):
    """The request is charged what it costs, and the slot comes back."""
    scripted(answer("hi there"))
    async with sdk(family) as client:
        completion = await client.chat.completions.create(**CHAT)
    assert completion.choices[0].message.content == "hi there"
    assert await sent(limiter) == 1
    assert limiter.usage().tpm.used == len("hello") + 4 + 3 + 10


@both
async def test_the_sdks_request_says_its_max_tokens(family, scripted, sdk):
    """The model's default, so that both sides reserve the same; every other header and field stays."""
    inner = scripted(answer())
    async with sdk(family) as client:
        await client.chat.completions.create(model="kimi-k2.6", messages=HELLO, extra_body={"thinking": {"a": 1}})
    request = inner.requests[0]
    assert inner.payloads[0] == {
        "model": "kimi-k2.6",
        "messages": HELLO,
        "thinking": {"a": 1},
        "max_tokens": 32_768,
    }
    assert request.headers["Authorization"] == "Bearer sk-1"
    assert request.headers["Content-Length"] == str(len(request.content))
    assert request.url == httpx.URL(URL)


@both
async def test_the_sdks_stream_holds_its_slot_to_the_end(family, scripted, sdk, limiter):
    """Not to the headers; and what follows the last event is read too."""
    scripted(streamed(*events("a", "b"), b"\n", seconds=1.0))
    async with sdk(family) as client:
        stream = await client.chat.completions.create(**CHAT, stream=True)
        assert limiter.usage().concurrency.used == 1
        assert [chunk.choices[0].delta.content async for chunk in stream] == ["a", "b"]
    assert await sent(limiter) == 1


@both
async def test_the_sdks_stream_gives_its_slot_back_when_closed(family, scripted, sdk, limiter):
    """In the middle of an answer."""
    inner = scripted(streamed(*events("a", "b", "c"), seconds=1.0))
    async with sdk(family) as client:
        async with await client.chat.completions.create(**CHAT, stream=True) as stream:
            assert (await anext(stream)).choices[0].delta.content == "a"
        assert await sent(limiter) == 1
    assert inner.bodies[0].closed == 1


@both
async def test_the_sdks_stream_gives_its_slot_back_when_dropped(family, scripted, sdk, limiter):
    """Never looked at; the garbage collector hangs up."""
    inner = scripted(streamed(*events("a", "b", "c"), seconds=1.0))
    async with sdk(family) as client:
        stream = await client.chat.completions.create(**CHAT, stream=True)
        assert limiter.usage().concurrency.used == 1
        del stream
        gc.collect()
        await asyncio.sleep(0.01)
        assert await sent(limiter) == 1
    assert inner.bodies[0].closed == 1


@both
async def test_a_body_that_makes_no_sense_is_kimis_to_refuse(family, scripted, sdk, limiter):
    """The SDK's user sees the SDK's error."""
    scripted(error(400, "invalid_request_error", "Invalid request: max_tokens"))
    async with sdk(family) as client:
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(**{**CHAT, "max_tokens": 0})
    assert await sent(limiter) == 1


@both
async def test_the_sdks_accumulating_stream(family, scripted, sdk, limiter):
    """``stream()`` puts the answer together over this transport as over its own."""
    scripted(streamed(*events("a", "b")))
    async with sdk(family) as client, client.chat.completions.stream(**CHAT) as stream:
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == "ab"
    assert await sent(limiter) == 1


@both
async def test_the_sdks_raw_responses(family, scripted, sdk, limiter):
    """Headers and the parsed answer, read at once or while it streams."""
    scripted(answer("raw"))
    async with sdk(family) as client:
        raw = await client.chat.completions.with_raw_response.create(**CHAT)
        assert raw.headers["Msh-Request-Id"] == "req-1"
        assert raw.parse().choices[0].message.content == "raw"
        async with client.chat.completions.with_streaming_response.create(**CHAT) as raw:
            assert limiter.usage().concurrency.used == 1
            assert b"raw" in await raw.read()
    assert await sent(limiter) == 2


@both
async def test_each_attempt_of_the_sdk_is_admitted(family, scripted, sdk):
    """At 1 RPM its retry after a 500 waits for the next minute like anyone else's."""
    inner = scripted(error(500, "server_error", "?"), answer())
    limiter = RateLimiter(RateLimits(concurrency=1, rpm=1))
    async with sdk(family, limiter=limiter) as client:
        await client.chat.completions.create(**CHAT)
    assert await sent(limiter) == 2
    assert inner.written == pytest.approx([0.0, MINUTE], abs=0.1)
    assert [request.headers["x-stainless-retry-count"] for request in inner.requests] == ["0", "1"]


@both
async def test_other_endpoints_pass_untouched(family, scripted, sdk, limiter):
    """Models and files cost nothing and wait for nothing; an upload's bytes arrive."""
    listing = {"object": "list", "data": [{"id": "kimi-k2.6", "object": "model", "created": 1, "owned_by": "m"}]}
    file = {"id": "f-1", "object": "file", "bytes": 3, "created_at": 1, "filename": "a", "purpose": "batch"}
    inner = scripted(*[Step(content=json.dumps(body).encode()) for body in (listing, file)])
    async with sdk(family) as client:
        assert [model.id async for model in client.models.list()] == ["kimi-k2.6"]
        assert (await client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")).id == "f-1"
    assert await sent(limiter) == 0
    upload = b"".join([chunk async for chunk in inner.requests[1].stream])
    assert b"{}\n" in upload
    assert len(upload) == int(inner.requests[1].headers["Content-Length"])


@pytest.mark.real_time
@both
async def test_the_sdks_streams_over_a_socket(family, limiter):
    """Against the mock: all the text and the usage, though the end of the body comes after "[DONE]"."""
    chat = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with running(MockSettings(limits=ROOMY, latency=0.01)) as base_url:
        http_client = limited_client(limiter, family)
        async with openai.AsyncOpenAI(api_key="sk-1", base_url=base_url, http_client=http_client) as client:
            for _ in range(3):
                stream = await client.chat.completions.create(**chat)
                chunks = [chunk async for chunk in stream]
                assert chunks[-1].usage.completion_tokens
                assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        async with httpx.AsyncClient() as observer:
            stats = (await observer.get(f"{base_url}/stats")).json()
    assert stats["admitted"] == await sent(limiter) == 3
    assert sum(stats["refused"].values()) == 0


# -- what the SDK's users see: the table of kimi_async.clients ---------------------------------------------------


@both
async def test_nobody_sees_a_budgets_refusal(family, scripted, sdk, limiter):
    """The request waits for the gateway's word, and is answered; the SDK counts one attempt."""
    inner = scripted(refused("rpm", 100), refused("concurrency", 2), answer("at last"))
    async with sdk(family, max_retries=0) as client:
        completion = await client.chat.completions.create(**CHAT)
    assert completion.choices[0].message.content == "at last"
    assert len(inner.requests) == 3
    assert await sent(limiter) == 3


@both
async def test_a_request_too_large_rises_as_it_is(family, scripted, sdk):
    """At once, unsent, with its numbers."""
    inner = scripted(answer())
    async with sdk(family) as client:
        with pytest.raises(errors.RequestTooLarge) as caught:
            await client.chat.completions.create(**{**CHAT, "max_tokens": 200_000})
    assert (caught.value.needed, caught.value.limit, caught.value.budget) == (200_012, 100_000, "tpm")
    assert (inner.requests, clock()) == ([], 0.0)


@both
async def test_a_spent_day_rises_as_it_is(family, scripted, sdk):
    """With the time that it takes to reset."""
    scripted(answer())
    limiter = RateLimiter(RateLimits(tpd=30), on_event=lambda event: None)
    async with sdk(family, limiter=limiter) as client:
        await client.chat.completions.create(**CHAT)
        with pytest.raises(errors.DailyBudgetExhausted) as caught:
            await client.chat.completions.create(**CHAT)
    assert caught.value.resets_in == pytest.approx(86_400, rel=0.01)
    assert await sent(limiter) == 1


@both
async def test_a_wait_too_long_rises_as_it_is(family, scripted, sdk):
    """``max_wait`` of the client bounds the time in line, which no timeout of the SDK does."""
    scripted(answer())
    limiter = RateLimiter(RateLimits(rpm=1))
    async with sdk(family, limiter=limiter, max_wait=30.0, timeout=1.0) as client:
        await client.chat.completions.create(**CHAT)
        with pytest.raises(errors.WaitTooLong) as caught:
            await client.chat.completions.create(**CHAT)
        assert (caught.value.budget, caught.value.max_wait) == ("rpm", 30.0)
        assert caught.value.wait == pytest.approx(MINUTE, abs=0.1)
        assert clock() == 0.0
    async with sdk(family, limiter=limiter, timeout=1.0) as client:
        await client.chat.completions.create(**CHAT)
    assert clock() == pytest.approx(MINUTE, abs=0.1)


@both
async def test_a_closed_limiter_rises_as_it_is(family, scripted, sdk, limiter):
    """Also out of the line."""
    inner = scripted(answer())
    limiter.close()
    async with sdk(family) as client:
        with pytest.raises(errors.LimiterClosed):
            await client.chat.completions.create(**CHAT)
    assert inner.requests == []


@both
async def test_a_proxy_that_is_none_rises_as_it_is(family, sdk, limiter, monkeypatch):
    """At once, and for nothing."""
    monkeypatch.setenv("https_proxy", "socks://localhost:1080")
    async with sdk(family) as client:
        with pytest.raises(errors.ConfigurationError, match="socks5://"):
            await client.chat.completions.create(**CHAT)
    assert (clock(), limiter.usage().rpm.used) == (0.0, 0)


@both
@pytest.mark.parametrize("name", FAILURES)
async def test_a_lost_connection_is_the_sdks_error(family, name, scripted, sdk, limiter):
    """Retried as the SDK does, each time admitted; the cause is the family's own error."""
    inner = scripted(Step(fails=lambda: getattr(httpx, name)("why"), at="think"))
    async with sdk(family) as client:
        with pytest.raises(openai.APIConnectionError) as caught:
            await client.chat.completions.create(**CHAT)
    assert (type(caught.value) is openai.APITimeoutError) == name.endswith("Timeout")
    assert type(caught.value.__cause__) is getattr(LIBRARIES[family], name)
    assert str(caught.value.__cause__) == "why"
    assert caught.value.__cause__.request is caught.value.request
    assert len(inner.requests) == 3
    assert await sent(limiter) <= 3


@both
@pytest.mark.parametrize("name", ["ReadError", "ReadTimeout"])
async def test_a_stream_that_breaks_is_the_sdks_error(family, name, scripted, sdk, limiter):
    """After what had arrived; not retried; the slot comes back."""
    scripted(streamed(*events("a", done=False), fails=getattr(httpx, name)("broke")))
    async with sdk(family) as client:
        stream = await client.chat.completions.create(**CHAT, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "a"
        with pytest.raises(openai.APIConnectionError) as caught:
            await anext(stream)
    assert (type(caught.value) is openai.APITimeoutError) == name.endswith("Timeout")
    assert type(caught.value.__cause__) is getattr(LIBRARIES[family], name)
    assert await sent(limiter) == 1


@both
@pytest.mark.parametrize(
    "row",
    [
        (error(429, *OVERLOADED), openai.RateLimitError, 3),
        (error(429, *NO_BALANCE), openai.RateLimitError, 1),
        (error(403, *NO_BALANCE), openai.PermissionDeniedError, 1),
        (error(400, "invalid_request_error", "Invalid request"), openai.BadRequestError, 1),
        (error(401, "incorrect_api_key_error", "Incorrect API key"), openai.AuthenticationError, 1),
        (error(404, "resource_not_found_error", "Not found the model"), openai.NotFoundError, 1),
        (error(500, "server_error", "?"), openai.InternalServerError, 3),
        (Step(504, b"<html>"), openai.InternalServerError, 3),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_another_status_is_the_sdks_error(family, row, stream, scripted, sdk):
    """With Kimi's words; retried if it passes; an empty account is asked once."""
    step, kind, attempts = row
    limiter = RateLimiter(ROOMY)
    inner = scripted(step)
    async with sdk(family, limiter=limiter) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**CHAT, stream=stream)
    assert type(caught.value) is kind
    assert caught.value.status_code == step.status
    if step.status != 504:
        assert caught.value.body == json.loads(step.content)["error"]
    assert len(inner.requests) == await sent(limiter) == attempts


# -- httpx and httpx2 themselves ------------------------------------------------------------------------------


def plain(family, limiter, counter, inner=None):
    """The family's client over its transport."""
    return LIBRARIES[family].AsyncClient(transport=TRANSPORTS[family](limiter, inner, counter=counter))


@both
async def test_a_plain_client_reads_its_answer(family, scripted, limiter, counter):
    """Body, headers, status, and what the connection says of itself; the slot is back when it was read."""
    scripted(answer("plain"))
    async with plain(family, limiter, counter) as client:
        response = await client.post(URL, json=CHAT)
    assert type(response) is LIBRARIES[family].Response
    assert response.json()["choices"][0]["message"]["content"] == "plain"
    assert (response.status_code, response.headers["msh-request-id"]) == (200, "req-1")
    assert await sent(limiter) == 1


@both
async def test_a_plain_stream_gives_its_slot_back_when_left(family, scripted, limiter, counter):
    """Read in part, or not at all."""
    inner = scripted(streamed(b"1", b"2", seconds=1.0))
    async with plain(family, limiter, counter) as client:
        async with client.stream("POST", URL, json=CHAT) as response:
            async for chunk in response.aiter_raw():
                assert chunk == b"1"
                break
        assert await sent(limiter) == 1
        async with client.stream("POST", URL, json=CHAT):
            assert limiter.usage().concurrency.used == 1
    assert await sent(limiter) == 2
    assert [body.closed for body in inner.bodies] == [2, 2]  # one and the same, closed by each answer


@both
async def test_a_cancelled_client_gives_its_slot_back(family, scripted, limiter, counter):
    """While it waits for the answer."""
    scripted(answer(think=100.0))
    async with plain(family, limiter, counter) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await client.post(URL, json=CHAT)
    assert await sent(limiter) == 1


@both
async def test_extensions_pass_both_ways(family, scripted, limiter, counter):
    """The caller's trace, timeout, cost and bound on the wait."""
    inner, seen = scripted(answer()), []

    async def trace(event, info):
        seen.append(event)

    cost, timeout = Cost(7), {"connect": 1.0, "read": 2.0, "write": 3.0, "pool": None}
    extensions = {"trace": trace, "timeout": timeout, COST: cost, MAX_WAIT: 5.0, "mine": 1}
    async with plain(family, limiter, counter) as client:
        await client.post(URL, json=CHAT, extensions=extensions)
    passed = inner.requests[0].extensions
    assert {name: passed[name] for name in ("timeout", COST, MAX_WAIT, "mine")} == {
        "timeout": timeout,
        COST: cost,
        MAX_WAIT: 5.0,
        "mine": 1,
    }
    assert "http11.send_request_body.complete" in seen
    assert limiter.usage().tpm.used == 7


@both
async def test_what_a_refusal_read_already_is_handed_on_decoded(family, scripted, limiter, counter):
    """Compressed by a proxy on the way: the transport had to read it, and the caller reads it again."""
    text = json.dumps({"error": {"type": OVERLOADED[0], "message": OVERLOADED[1]}}).encode()
    headers = {"Content-Encoding": "gzip", "Retry-After": "5"}
    scripted(*[Step(429, Once(gzip.compress(text)), headers=headers) for _ in range(2)])
    async with plain(family, limiter, counter) as client:
        response = await client.post(URL, json=CHAT)
        async with client.stream("POST", URL, json=CHAT) as again:
            assert await again.aread() == text
    assert (response.content, response.headers["Retry-After"]) == (text, "5")


@both
async def test_an_answer_compressed_on_the_way(family, scripted, limiter, counter):
    """Decoded once, by the client."""
    scripted(Step(content=gzip.compress(b'{"a": 1}'), headers={"Content-Encoding": "gzip"}))
    async with plain(family, limiter, counter) as client:
        assert (await client.post(URL, json=CHAT)).json() == {"a": 1}


@both
async def test_a_body_from_an_iterator(family, scripted, limiter, counter):
    """Read to be priced where it is a chat; passed on as it comes where it is not."""

    async def parts():
        content = json.dumps(CHAT).encode()
        yield content[:10]
        yield content[10:]

    inner = scripted(answer())
    async with plain(family, limiter, counter) as client:
        await client.post(URL, content=parts())
        await client.post("https://kimi.test/v1/files", content=parts())
    assert json.loads(b"".join([chunk async for chunk in inner.requests[0].stream])) == CHAT
    assert json.loads(b"".join([chunk async for chunk in inner.requests[1].stream])) == CHAT
    assert await sent(limiter) == 1


# -- httpx2's own connections ---------------------------------------------------------------------------------


class Inner2(httpx2.AsyncBaseTransport):
    """Answers, or fails before or in the body, and traces as httpcore2 does."""

    def __init__(self, *, fails=None, body=b"", status=200, body_fails=None):
        self.fails, self.body, self.status, self.body_fails = fails, body, status, body_fails
        self.requests, self.closed, self.bodies_closed = [], False, 0

    async def handle_async_request(self, request):
        self.requests.append(request)
        if self.fails is not None:
            raise self.fails
        await request.extensions["trace"]("http11.send_request_body.complete", {})
        extensions = {"http_version": b"HTTP/2", "reason_phrase": b"Fine"}
        return httpx2.Response(self.status, headers={"X-Here": "1"}, stream=Body2(self), extensions=extensions)

    async def aclose(self):
        self.closed = True


class Body2(httpx2.AsyncByteStream):
    """An answer's body."""

    def __init__(self, inner):
        self.inner = inner

    async def __aiter__(self):
        yield self.inner.body
        if self.inner.body_fails is not None:
            raise self.inner.body_fails

    async def aclose(self):
        self.inner.bodies_closed += 1


async def test_an_inner_transport_of_httpx2(limiter, counter):
    """Request and answer pass through both translations; the client closes it."""
    inner = Inner2(body=b'{"a": 1}')
    async with plain("httpx2", limiter, counter, inner) as client:
        response = await client.post(URL, json=CHAT, headers={"X-There": "2"})
        assert (response.json(), response.headers["x-here"]) == ({"a": 1}, "1")
        assert (response.http_version, response.reason_phrase) == ("HTTP/2", "Fine")
        assert (await sent(limiter), inner.bodies_closed) == (1, 1)
    request = inner.requests[0]
    assert type(request) is httpx2.Request
    assert (request.method, request.url, request.headers["x-there"]) == ("POST", URL, "2")
    assert json.loads(await request.aread()) == CHAT
    assert inner.closed


async def test_a_mock_transport_of_httpx2(limiter, counter):
    """One whose answers are read before they are sent."""
    async with plain("httpx2", limiter, counter, httpx2.MockTransport(lambda request: httpx2.Response(418))) as client:
        assert (await client.post(URL, json=CHAT)).status_code == 418
    assert await sent(limiter) == 1


@pytest.mark.parametrize("name", FAILURES)
async def test_errors_of_an_inner_transport_of_httpx2(name, limiter, counter):
    """Come out as they went in, with the client's request; before the body and in it."""
    error = getattr(httpx2, name)("why")
    for inner in (Inner2(fails=error), Inner2(body_fails=error)):
        async with plain("httpx2", limiter, counter, inner) as client:
            with pytest.raises(httpx2.TransportError, match="why") as caught:
                await client.post(URL, json=CHAT)
        assert type(caught.value) is type(error)
        assert caught.value.request.url == URL
        await sent(limiter)


async def test_never_connected_is_never_sent(limiter, counter):
    """The translated error still tells the limiter that nothing left: all is given back."""
    async with plain("httpx2", limiter, counter, Inner2(fails=httpx2.ConnectError("no"))) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.post(URL, json=CHAT)
    assert (limiter.usage().rpm.used, limiter.usage().tpm.used) == (0, 0)


async def test_an_error_that_httpx2_does_not_know(limiter, counter):
    """A transport's own subclass becomes the nearest that both have."""

    class Unplugged(httpx2.ConnectError):
        pass

    async with plain("httpx2", limiter, counter, Inner2(fails=Unplugged("pulled"))) as client:
        with pytest.raises(httpx2.ConnectError, match="pulled") as caught:
            await client.post(URL, json=CHAT)
    assert type(caught.value) is httpx2.ConnectError


@pytest.mark.parametrize(
    "url", ["https://例え.jp/模 a[1]/chat/completions?q=月&b=%2f", "http://a:81/chat/completions"]
)
async def test_urls_arrive_as_they_were(url, scripted, limiter, counter):
    """Host, port, path and query, whatever they are made of."""
    inner = scripted(answer())
    async with plain("httpx2", limiter, counter) as client:
        await client.post(url, json=CHAT)
    there, here = inner.requests[0].url, httpx2.URL(url)
    assert (there.raw_scheme, there.raw_host, there.port, there.raw_path) == (
        here.raw_scheme,
        here.raw_host,
        here.port,
        here.raw_path,
    )


# -- limited_client -------------------------------------------------------------------------------------------


@both
async def test_a_limited_client_is_ready(family, scripted, limiter):
    """The family's own class, patient as AsyncKimi is; it follows redirects, and closes what it has opened."""
    inner = scripted(answer())
    async with limited_client(limiter, family) as client:
        assert type(client) is LIBRARIES[family].AsyncClient
        assert client.timeout.as_dict() == TIMEOUT.as_dict()
        assert client.follow_redirects
    assert inner.closed


@both
async def test_the_sdk_takes_over_the_clients_patience(family, sdk, scripted):
    """Unless it was given a timeout of its own."""
    inner = scripted(answer())
    async with sdk(family) as client:
        await client.chat.completions.create(**CHAT)
        await client.chat.completions.create(**CHAT, timeout=3.0)
    assert inner.requests[0].extensions["timeout"] == TIMEOUT.as_dict()
    assert inner.requests[1].extensions["timeout"]["read"] == 3.0


@both
async def test_a_requests_own_bound_goes_before_the_clients(family, scripted, counter):
    """The extension of one request."""
    scripted(answer())
    limiter = RateLimiter(RateLimits(rpm=1))
    async with limited_client(limiter, family, max_wait=0.0, counter=counter) as client:
        await client.post(URL, json=CHAT)
        await client.post(URL, json=CHAT, extensions={MAX_WAIT: 100.0})
        with pytest.raises(errors.WaitTooLong):
            await client.post(URL, json=CHAT)


def test_httpx2_is_optional(limiter, monkeypatch):
    """Who asks for it without having it is told how to get it; nobody else needs it."""
    monkeypatch.setitem(sys.modules, "httpx2", None)
    monkeypatch.delitem(sys.modules, "kimi_async.httpx2")
    with pytest.raises(errors.ConfigurationError, match="pip install httpx2"):
        limited_client(limiter, "httpx2")


def test_there_are_two_families(limiter):
    """A third is refused by name."""
    with pytest.raises(errors.ConfigurationError, match="aiohttp"):
        limited_client(limiter, "aiohttp")
