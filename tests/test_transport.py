"""Where limiting happens: what is charged when, what is given back, and which refusals nobody sees."""

import asyncio
import gc
import json
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_async.budgets import GUARD
from kimi_async.connections import ConnectionStack
from kimi_async.errors import ConfigurationError, DailyBudgetExhausted, RequestTooLarge, WaitTooLong
from kimi_async.events import ForeignUsage, LimitAdopted, Refused
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits
from kimi_async.mock import Faults, MockSettings, running
from kimi_async.models import find
from kimi_async.tokens import TokenCounter
from kimi_async.transport import COST, HANG_UP, MAX_REFUSALS, MAX_WAIT, RateLimitTransport

from .conftest import run_virtual
from .scripted import NO_BALANCE, OVERLOADED, Body, Scripted, Step, answer, error, refused

URL = "http://kimi.test/v1/chat/completions"
MINUTE = 60 * (1 + GUARD)
COUNTED = RateLimits(concurrency=50, rpm=1000, tpm=100_000, tpd=1_000_000)


def clock():
    """The loop's time, from zero, to the tenth of a millisecond."""
    return round(asyncio.get_running_loop().time() - 1000.0, 4)


def limited(limits, *steps, events=None):
    """A limiter, a scripted gateway, and the transport between them; a character is a token."""
    limiter = RateLimiter(limits, on_event=(lambda event: None) if events is None else events.append)
    inner = Scripted(*steps)
    counter = TokenCounter()
    counter._encode = list
    return limiter, inner, RateLimitTransport(limiter, inner, counter=counter)


TEN = Cost(10)


def a_request(cost=TEN, *, name="", **extensions):
    """A chat request whose cost is known."""
    body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": name}], "max_tokens": 1}
    return httpx.Request("POST", URL, json=body, extensions={COST: cost, **extensions})


async def send(transport, cost=TEN, **options):
    """Send a request and read its answer."""
    response = await transport.handle_async_request(a_request(cost, **options))
    try:
        await response.aread()
    finally:
        await response.aclose()
    return response


def taken(limiter):
    """Slots, requests and tokens in use."""
    usage = limiter.usage()
    return usage.concurrency.used, usage.rpm.used, usage.tpm.used


# -- when the minute begins -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["http11", "http2"])
async def test_the_stamp_is_set_when_the_body_was_written(prefix):
    """Half a minute of connecting and five seconds of writing: the next may go a minute after that."""
    _limiter, inner, transport = limited(RateLimits(rpm=1), answer(connect=30, write=5, prefix=prefix), answer())
    await send(transport)
    await send(transport)
    assert inner.written == pytest.approx([35, 35 + MINUTE], abs=1e-4)


async def test_waiting_for_the_answer_does_not_move_the_stamp():
    """The gateway charged the request when it came, not when it was answered."""
    _limiter, inner, transport = limited(RateLimits(rpm=1), answer(think=50), answer())
    await send(transport)
    await send(transport)
    assert inner.written == pytest.approx([0, MINUTE], abs=1e-4)


async def test_asking_a_proxy_for_a_tunnel_is_not_sending():
    """The CONNECT is traced like a request; the TLS handshake of twenty seconds comes after it."""
    _limiter, inner, transport = limited(RateLimits(rpm=1), answer(tunnel=20), answer())
    await send(transport)
    await send(transport)
    assert inner.written == pytest.approx([20, 20 + MINUTE], abs=1e-4)


async def test_without_a_trace_the_minute_begins_when_the_answer_was_read():
    """The latest moment at which the request can have left."""
    limiter = RateLimiter(RateLimits(rpm=1))
    sent = []

    async def slow(request):
        sent.append(clock())
        await asyncio.sleep(20)
        return httpx.Response(200)

    transport = RateLimitTransport(limiter, httpx.MockTransport(slow))
    await send(transport)
    await send(transport)
    assert sent == pytest.approx([0, 20 + MINUTE], abs=1e-4)


async def test_the_callers_own_trace_is_still_called():
    """With every event, in order."""
    _limiter, _inner, transport = limited(COUNTED, refused("rpm", 1000), answer())
    events = []

    async def trace(event, info):
        events.append(event)

    await send(transport, trace=trace)
    once = [
        "connection.connect_tcp.started",
        "http11.send_request_headers.started",
        "http11.send_request_headers.complete",
        "http11.send_request_body.started",
        "http11.send_request_body.complete",
    ]
    assert events == once * 2


# -- what is given back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (Step(connect=3, fails=lambda: httpx.ConnectError("refused")), (0, 0, 0)),
        (Step(connect=3, fails=lambda: httpx.ConnectTimeout("silence")), (0, 0, 0)),
        (Step(connect=3, fails=lambda: OSError("no route")), (0, 0, 0)),
        (Step(tunnel=3, at="tunnel", fails=lambda: httpx.ProxyError("403 Forbidden")), (0, 0, 0)),
        (Step(write=3, at="write", fails=lambda: httpx.WriteError("broken")), (0, 1, 10)),
        (Step(write=3, at="write", fails=lambda: httpx.WriteTimeout("slow")), (0, 1, 10)),
        (Step(think=3, at="think", fails=lambda: httpx.ReadTimeout("slow")), (0, 1, 10)),
        (Step(think=3, at="think", fails=lambda: httpx.RemoteProtocolError("gone")), (0, 1, 10)),
        (Step(content=Body(b"{", fails=httpx.ReadError("cut"))), (0, 1, 10)),
        (answer(), (0, 1, 10)),
        (error(500, "server_error", "oops"), (0, 1, 10)),
        (error(429, *OVERLOADED), (0, 1, 10)),
        (error(429, *NO_BALANCE), (0, 1, 10)),
    ],
)
async def test_what_certainly_never_left_leaves_no_trace_and_all_else_is_charged(step, left):
    """Slots, requests and tokens in use afterwards."""
    limiter, _inner, transport = limited(COUNTED, step)
    before = limiter.usage()
    try:
        await send(transport)
    except (httpx.HTTPError, OSError):
        assert step.fails or step.content.fails
    await asyncio.sleep(HANG_UP)
    assert taken(limiter) == left
    if left == (0, 0, 0):
        assert limiter.usage() == before


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (answer(connect=10), (0, 0, 0)),
        (answer(tunnel=10), (0, 0, 0)),
        (answer(write=10), (0, 1, 10)),
        (answer(think=10), (0, 1, 10)),
        (Step(content=Body(b"{", b"}", seconds=10)), (0, 1, 10)),
        (Step(429, content=Body(b"{", b"}", seconds=10)), (0, 1, 10)),
    ],
)
async def test_cancelled_while_it_is_on_its_way(step, left):
    """Connecting gives everything back; from the first byte on tokens stay charged and only the slot is free."""
    limiter, inner, transport = limited(COUNTED, step)
    task = asyncio.create_task(send(transport))
    await asyncio.sleep(5)
    assert taken(limiter) == (1, 1, 10)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(HANG_UP)
    assert taken(limiter) == left
    assert all(body.closed for body in inner.bodies if body.seconds == 0 or step.status == 429)


async def test_cancelled_in_line_it_was_never_sent():
    """The gateway sees one request."""
    limiter, inner, transport = limited(RateLimits(concurrency=1), answer(think=10))
    first, second = (asyncio.create_task(send(transport)) for _ in range(2))
    await asyncio.sleep(5)
    second.cancel()
    await first
    assert (len(inner.requests), limiter.usage().waiting) == (1, 0)


async def test_an_inner_transport_without_trace_is_charged_unless_it_says_otherwise():
    """Errors of connecting say otherwise; nothing else does."""
    left = {}
    for exception in (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ReadError, RuntimeError):
        limiter = RateLimiter(COUNTED)
        transport = RateLimitTransport(limiter, httpx.MockTransport(raising(exception)))
        with pytest.raises(exception):
            await send(transport)
        left[exception.__name__] = taken(limiter)
    charged = (0, 1, 10)
    assert left == {
        "ConnectError": (0, 0, 0),
        "ConnectTimeout": (0, 0, 0),
        "PoolTimeout": (0, 0, 0),
        "ReadError": charged,
        "RuntimeError": charged,
    }


def raising(exception):
    """A handler that does nothing else."""

    def handle(request):
        raise exception("no")

    return handle


async def test_the_slot_is_held_until_the_answer_has_been_read():
    """A body of two chunks, three seconds each: the next request leaves after six."""
    _limiter, inner, transport = limited(
        RateLimits(concurrency=1), Step(content=Body(b"{", b"}", seconds=3)), answer()
    )
    await asyncio.gather(send(transport), send(transport))
    assert inner.written == pytest.approx([0, 6], abs=1e-4)


async def test_closing_the_answer_unread_gives_the_slot_back_once():
    """A second closing is nobody's error."""
    limiter, inner, transport = limited(COUNTED, Step(content=Body(b"{", b"}", seconds=3)))
    response = await transport.handle_async_request(a_request())
    assert taken(limiter) == (1, 1, 10)
    await response.aclose()
    await response.stream.aclose()
    await asyncio.sleep(HANG_UP)
    assert taken(limiter) == (0, 1, 10)
    assert inner.bodies[0].closed


@pytest.mark.parametrize(
    ("step", "gap"),
    [
        (Step(think=3, at="think", fails=lambda: httpx.ReadTimeout("slow")), HANG_UP),
        (Step(write=3, at="write", fails=lambda: httpx.WriteTimeout("slow")), HANG_UP),
        (Step(think=3, at="think", fails=asyncio.CancelledError), HANG_UP),
        (Step(connect=3, fails=lambda: httpx.ConnectTimeout("silence")), 0),
        (Step(think=3, at="think", fails=lambda: httpx.RemoteProtocolError("gone")), 0),
        (answer(think=3), 0),
    ],
)
async def test_after_a_hang_up_the_slot_waits_for_the_gateway_to_notice(step, gap):
    """Where we hung up on a request that had left; not where the gateway did, or the answer was whole."""
    _limiter, inner, transport = limited(RateLimits(concurrency=1), step, answer())
    await asyncio.gather(send(transport), send(transport), return_exceptions=True)
    assert inner.written[-1] == pytest.approx(3 + gap, abs=1e-4)


async def test_an_answer_that_is_closed_unread_was_hung_up_on():
    """The next request leaves when the gateway has had time to notice."""
    _limiter, inner, transport = limited(
        RateLimits(concurrency=1), Step(content=Body(b"{", b"}", seconds=3)), answer()
    )
    response = await transport.handle_async_request(a_request())
    await response.aclose()
    await send(transport)
    assert inner.written == pytest.approx([0, HANG_UP], abs=1e-4)


async def test_closing_the_transport_waits_for_no_gateway():
    """Whoever leaves the block has all slots back."""
    limiter, _inner, transport = limited(COUNTED, Step(content=Body(b"{", b"}", seconds=3)))
    async with transport:
        response = await transport.handle_async_request(a_request())
        await response.aclose()
        assert taken(limiter) == (1, 1, 10)
    assert taken(limiter) == (0, 1, 10)
    await asyncio.sleep(HANG_UP)
    assert taken(limiter) == (0, 1, 10)


def test_a_loop_that_ends_after_a_hang_up_takes_no_slot_with_it():
    """The timer of the first loop never fires; the second one finds the slot free."""
    limiter, _inner, transport = limited(
        RateLimits(concurrency=1), Step(content=Body(b"{", b"}", seconds=3)), answer()
    )

    async def leave():
        await (await transport.handle_async_request(a_request())).aclose()

    run_virtual(leave())
    run_virtual(send(transport))
    assert limiter.usage().requests_sent == 2


PHASES = ("connect", "write", "think")
ATTEMPTS = st.tuples(
    st.fixed_dictionaries(dict.fromkeys(PHASES, st.floats(0.01, 5))),
    st.none() | st.sampled_from(PHASES),  # where it fails
    st.none() | st.floats(0, 20),  # cancelled after
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ATTEMPTS, min_size=1, max_size=8))
def test_every_slot_comes_back_and_what_was_begun_is_charged(attempts):
    """Whatever fails or is cancelled, at whatever moment."""

    async def main():
        steps = [
            answer(**seconds, at=at or "connect", fails=at and (lambda: httpx.NetworkError("no")))
            for seconds, at, _ in attempts
        ]
        limiter, _inner, transport = limited(COUNTED.with_limit("concurrency", 3), *steps, answer())
        began = []

        async def trace(event, info):
            if event == "http11.send_request_headers.started":
                began.append(event)

        tasks = []
        for _, _, cancelled_after in attempts:
            tasks.append(asyncio.create_task(send(transport, trace=trace)))
            if cancelled_after is not None:
                asyncio.get_running_loop().call_later(cancelled_after, tasks[-1].cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(HANG_UP)
        assert taken(limiter) == (0, len(began), 10 * len(began))
        assert limiter.usage().waiting == 0

    run_virtual(main())


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "again_at", "left"),
    [
        (refused("rpm", 50), 1, (0, 2, 10)),
        (refused("concurrency", 50), 1, (0, 2, 10)),
        (refused("tpm", 100_000, 100_005), MINUTE, (0, 1, 10)),
    ],
)
async def test_a_refusal_for_a_budget_is_absorbed(refusal, again_at, left):
    """The caller sees the answer. The refused request counts in RPM for its minute, its tokens count once."""
    events = []
    limiter, inner, transport = limited(COUNTED.with_limit("rpm", 50), refusal, answer(), events=events)
    response = await send(transport)
    assert response.status_code == 200
    assert inner.written == pytest.approx([0, again_at], abs=0.07)
    assert inner.requests[0].content == inner.requests[1].content
    assert [type(event) for event in events if isinstance(event, Refused)] == [Refused]
    assert taken(limiter) == left


async def test_a_refused_request_keeps_its_place():
    """The first is refused and waits a minute for its room; the second, in line behind it, does so too."""
    _limiter, inner, transport = limited(RateLimits(tpm=100), refused("tpm", 100, 130, think=1), answer())
    first = asyncio.create_task(send(transport, Cost(60), name="first"))
    await asyncio.sleep(0.5)
    second = asyncio.create_task(send(transport, Cost(60), name="second"))
    await asyncio.gather(first, second)
    assert [body["messages"][0]["content"] for body in inner.payloads] == ["first", "first", "second"]
    assert inner.written == pytest.approx([0, 1 + MINUTE, 1 + 2 * MINUTE], abs=1e-3)


async def test_a_refusal_teaches_the_limit():
    """A lower one is adopted and told; the answer comes all the same."""
    events = []
    limiter, _inner, transport = limited(
        RateLimits(tpm=128_000), refused("tpm", 64_000, 64_001), answer(), events=events
    )
    await send(transport)
    assert limiter.limits.tpm == 64_000
    assert events[:2] == [LimitAdopted("tpm", 128_000, 64_000), ForeignUsage("tpm", 63_991)]


async def test_a_request_that_cannot_fit_the_limit_just_learnt_is_told_so():
    """Waiting would be for ever."""
    limiter, inner, transport = limited(RateLimits(tpm=1000), refused("tpm", 100, 910), answer())
    with pytest.raises(RequestTooLarge, match="TPM is 100"):
        await send(transport, Cost(900))
    assert (len(inner.requests), taken(limiter)[0]) == (1, 0)


async def test_an_exhausted_day_is_raised_not_waited_for():
    """With the time until it resets; nothing more is sent."""
    limiter, inner, transport = limited(
        COUNTED, refused("tpd", 1_000_000, 1_026_210, headers={"Retry-After": "36000"}), answer()
    )
    with pytest.raises(DailyBudgetExhausted) as caught:
        await send(transport)
    assert 36_000 <= caught.value.resets_in < 86_402
    assert (len(inner.requests), clock()) == (1, 0.0)
    assert taken(limiter) == (0, 1, 0)


@pytest.mark.parametrize(("kind", "message"), [OVERLOADED, NO_BALANCE, ("rate_limit_reached_error", "never heard of")])
async def test_a_429_that_names_no_budget_is_handed_on(kind, message):
    """At once, whole, and without a lesson: neither a pause nor a lower limit."""
    events = []
    limiter, inner, transport = limited(COUNTED, error(429, kind, message), events=events)
    response = await send(transport)
    assert response.status_code == 429
    assert response.json()["error"]["message"] == message
    assert (len(inner.requests), events, limiter.limits) == (1, [], COUNTED)
    assert limiter.try_acquire(Cost(10)) is not None


async def test_refused_again_and_again_it_is_handed_on():
    """After twenty refusals the pauses are whole windows; then the 429 itself is the answer."""
    limiter, inner, transport = limited(COUNTED, refused("concurrency", 50))
    response = await send(transport)
    assert (response.status_code, len(inner.requests)) == (429, MAX_REFUSALS)
    assert "max organization concurrency: 50" in response.json()["error"]["message"]
    assert taken(limiter)[0] == 0
    assert all(body.closed for body in inner.bodies)


async def test_max_wait_bounds_the_line_and_the_refusals_together():
    """Pauses of 1, 2, 4 and 8 seconds: twelve seconds of patience end before the last."""
    limiter, inner, transport = limited(COUNTED, refused("concurrency", 50))
    with pytest.raises(WaitTooLong):
        await send(transport, **{MAX_WAIT: 12.0})
    assert inner.written == pytest.approx([0, 1, 3, 7], abs=0.2)
    assert clock() == pytest.approx(7, abs=0.2)
    assert taken(limiter)[0] == 0


async def test_max_wait_bounds_the_line():
    """Refused before it begins."""
    _limiter, inner, transport = limited(RateLimits(rpm=1), answer())
    await send(transport)
    with pytest.raises(WaitTooLong):
        await send(transport, **{MAX_WAIT: 30.0})
    assert (len(inner.requests), clock()) == (1, 0.0)


@pytest.mark.parametrize("fails", [httpx.ReadError("cut"), None])
async def test_a_refusal_that_cannot_be_read_frees_its_slot_and_its_connection(fails):
    """Cut off by the network, or cancelled."""
    limiter, inner, transport = limited(COUNTED, Step(429, content=Body(b"{", b"}", seconds=2, fails=fails)))
    with pytest.raises((httpx.ReadError, TimeoutError)):
        async with asyncio.timeout(None if fails else 3):
            await send(transport)
    await asyncio.sleep(HANG_UP)
    assert taken(limiter) == (0, 1, 10)
    assert inner.bodies[0].closed


async def test_an_impossible_request_is_not_sent():
    """The numbers say why."""
    _limiter, inner, transport = limited(RateLimits(tpm=100), answer())
    with pytest.raises(RequestTooLarge):
        await send(transport, Cost(101))
    assert inner.requests == []


# -- any client -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def plain_client(*steps, limits=COUNTED):
    """An ordinary httpx client on the transport."""
    limiter, inner, transport = limited(limits, *steps)
    async with httpx.AsyncClient(transport=transport, base_url="http://kimi.test/v1") as client:
        yield client, limiter, inner


def chat_body(**options):
    """A request of 5 + 3 + 4 tokens."""
    return {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "月亮 ok"}], **options}


@pytest.mark.parametrize("options", [{}, {"max_tokens": None}, {"n": 2, "temperature": 1}])
async def test_a_missing_max_tokens_is_made_explicit(options):
    """Both sides reserve the same: the model's default, in the body and in the books; all else stays."""
    default = find("kimi-k2.6").default_max_tokens
    async with plain_client(answer()) as (client, limiter, inner):
        assert (await client.post("/chat/completions", json=chat_body(**options))).status_code == 200
    assert inner.payloads == [chat_body(**{**options, "max_tokens": default})]
    assert int(inner.requests[0].headers["content-length"]) == len(inner.requests[0].content)
    assert taken(limiter) == (0, 1, 12 + default * options.get("n", 1))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_an_explicit_body_is_sent_byte_for_byte(name):
    """Spaces and all."""
    content = json.dumps(chat_body(**{name: 7}), indent=3).encode()
    async with plain_client(answer()) as (client, limiter, inner):
        await client.post("/chat/completions", content=content)
    assert inner.requests[0].content == content
    assert taken(limiter) == (0, 1, 12 + 7)


async def test_half_a_character_is_sent_on_as_it_was_escaped():
    """JSON may hold a lone surrogate; no encoder but JSON's own can write it."""
    content = b'{"model": "kimi-k2.6", "messages": [{"role": "user", "content": "\\ud800"}]}'
    async with plain_client(answer()) as (client, _limiter, inner):
        await client.post("/chat/completions", content=content)
    assert inner.payloads[0]["messages"] == json.loads(content)["messages"]


async def test_a_streamed_body_is_framed_anew():
    """A chunked request whose body was rewritten has one length, and no transfer encoding beside it."""

    async def chunks():
        yield json.dumps(chat_body()).encode()

    async with plain_client(answer()) as (client, _limiter, inner):
        await client.post("/chat/completions", content=chunks())
    headers = inner.requests[0].headers
    assert "transfer-encoding" not in headers
    assert int(headers["content-length"]) == len(inner.requests[0].content)


async def test_headers_of_the_caller_survive_the_rewriting():
    """The key, and whatever else."""
    async with plain_client(answer()) as (client, _limiter, inner):
        await client.post("/chat/completions", json=chat_body(), headers={"Authorization": "Bearer sk", "X-Y": "z"})
    headers = inner.requests[0].headers
    assert (headers["authorization"], headers["x-y"], headers["host"]) == ("Bearer sk", "z", "kimi.test")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff"])
async def test_what_is_no_request_is_kimis_to_refuse(content):
    """Sent as it is; it costs a request and no tokens."""
    async with plain_client(error(400, "invalid_request_error", "bad")) as (client, limiter, inner):
        assert (await client.post("/chat/completions", content=content)).status_code == 400
    assert inner.requests[0].content == content
    assert taken(limiter) == (0, 1, 0)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models"),
        ("GET", "/users/me/balance"),
        ("POST", "/files"),
        ("POST", "/tokenizers/estimate-token-count"),
        ("GET", "/chat/completions"),
    ],
)
async def test_other_endpoints_pass_untouched(method, path):
    """Even with every slot taken, and without a trace in the books."""
    async with plain_client(Step(), limits=RateLimits(concurrency=1)) as (client, limiter, inner):
        held = await limiter.acquire(Cost(1))
        before = limiter.usage()
        response = await client.request(method, path, content=b"as it is")
        assert (response.status_code, inner.requests[0].content) == (200, b"as it is")
        assert "trace" not in inner.requests[0].extensions
        assert limiter.usage() == before
        held.end()


async def test_a_plain_client_reads_a_429_that_was_handed_on():
    """Read already by the transport, it is there for the client as well."""
    async with plain_client(error(429, *OVERLOADED)) as (client, _limiter, _inner):
        response = await client.post("/chat/completions", json=chat_body())
    assert response.json()["error"]["type"] == "engine_overloaded_error"


async def test_closing_closes_the_inner_transport():
    """With the block."""
    _limiter, inner, transport = limited(COUNTED, answer())
    async with transport:
        assert not inner.closed
    assert inner.closed


# -- real sockets ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def server(handle):
    """A server on a loopback port; connections that are still open at the end are cut off."""
    writers = []

    async def serve(reader, writer):
        writers.append(writer)
        await handle(reader, writer)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*listener.sockets[0].getsockname())
    finally:
        listener.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


async def silence(reader, writer):
    """Reads whatever comes and says nothing."""
    while await reader.read(65536):
        pass


def over_sockets(**options):
    """A limiter and its transport on a connection stack."""
    limiter = RateLimiter(COUNTED, on_event=lambda event: None)
    return limiter, RateLimitTransport(limiter, ConnectionStack(verify=ssl.create_default_context(), **options))


async def post(transport, base_url, *, read=5.0, trace=None):
    """One request over the wire."""
    timeout = httpx.Timeout(5.0, read=read).as_dict()
    request = httpx.Request("POST", f"{base_url}/v1/chat/completions", content=b"{}", extensions={"timeout": timeout})
    request.extensions.update({COST: Cost(10), "trace": trace})
    return await transport.handle_async_request(request)


@pytest.mark.real_time
async def test_a_request_without_a_way_out_is_charged_nothing():
    """A proxy that is none: it never left."""
    limiter, transport = over_sockets(proxy="socks://localhost:1080")
    async with transport:
        with pytest.raises(ConfigurationError, match="socks5://"):
            await post(transport, "https://kimi.test")
    assert taken(limiter) == (0, 0, 0)


@pytest.mark.real_time
async def test_httpcore_traces_what_we_rely_on():
    """A request that was written is stamped while its answer is still to come."""
    async with server(silence) as address:
        limiter, transport = over_sockets()
        async with transport:
            with pytest.raises(httpx.ReadTimeout):
                await post(transport, f"http://{address}", read=0.05)
            assert limiter.usage().requests_sent == 1
            assert taken(limiter) == (1, 1, 10)
            await asyncio.sleep(HANG_UP + 0.01)
            assert taken(limiter) == (0, 1, 10)


@pytest.mark.real_time
async def test_the_callers_own_trace_hears_of_the_answer_too():
    """Whoever stamps the departure has stepped aside by then."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await silence(reader, writer)

    events = []

    async def trace(event, info):
        events.append(event)

    async with server(serve) as address:
        limiter, transport = over_sockets()
        async with transport:
            response = await post(transport, f"http://{address}", trace=trace)
            assert limiter.usage().requests_sent == 1
            assert await response.aread() == b"ok"
    steps = "send_request_headers send_request_body receive_response_headers receive_response_body response_closed"
    names = ["connection.connect_tcp", *(f"http11.{step}" for step in steps.split())]
    assert events == [f"{name}.{phase}" for name in names for phase in ("started", "complete")]


@pytest.mark.real_time
async def test_a_port_that_nobody_listens_on_costs_nothing():
    """Connecting fails before anything is written."""
    async with server(silence) as address:
        pass
    limiter, transport = over_sockets()
    async with transport:
        with pytest.raises(httpx.ConnectError):
            await post(transport, f"http://{address}")
    assert limiter.usage().requests_sent == 0
    assert taken(limiter) == (0, 0, 0)


@pytest.mark.real_time
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore leaves its socket to the GC
async def test_cancelled_in_the_tls_handshake_it_costs_nothing():
    """The other side accepts and then keeps still."""
    greeted = asyncio.Event()

    async def greet(reader, writer):
        await reader.read(1)
        greeted.set()
        await silence(reader, writer)

    async with server(greet) as address:
        limiter, transport = over_sockets()
        async with transport:
            task = asyncio.create_task(post(transport, f"https://{address}"))
            await greeted.wait()
            assert taken(limiter) == (1, 1, 10)
            task.cancel()
            await asyncio.wait([task])
            assert taken(limiter) == (0, 0, 0)
    del task
    gc.collect()


@pytest.mark.real_time
async def test_a_proxy_that_refuses_the_tunnel_costs_nothing():
    """Its CONNECT is traced as a request; ours never left."""

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        await silence(reader, writer)

    async with server(refuse) as address:
        limiter, transport = over_sockets(proxy=f"http://{address}")
        async with transport:
            with pytest.raises(httpx.ProxyError, match="403"):
                await post(transport, "https://kimi.test")
    assert taken(limiter) == (0, 0, 0)


GATEWAY = RateLimits(concurrency=4, rpm=20, tpm=2_000, minute=0.5)
BELIEVED = replace(GATEWAY, minute=0.6)  # a guard of milliseconds would be no match for a busy machine
BODY = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}


async def through_the_gateway(believed, *, settings, requests):
    """Statuses of many requests at once through a plain client, and what the gateway saw."""
    limiter = RateLimiter(believed, on_event=lambda event: None)
    counter = TokenCounter()
    counter._encode = list
    async with running(settings, count_prompt=lambda messages, tools, model: 12) as base_url:
        transport = RateLimitTransport(limiter, counter=counter)
        headers = {"Authorization": "Bearer sk-test"}
        async with httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers, timeout=10) as client:
            answers = await asyncio.gather(*(client.post("/chat/completions", json=BODY) for _ in range(requests)))
            stats = (await client.get("/stats")).json()
    return [response.status_code for response in answers], stats


@pytest.mark.real_time
async def test_a_client_that_knows_its_limits_is_never_refused():
    """Twice a minute's requests: all answered, no budget exceeded, and no refusal seen by the gateway."""
    settings = MockSettings(limits=GATEWAY, latency=0.01)
    statuses, stats = await through_the_gateway(BELIEVED, settings=settings, requests=40)
    assert statuses == [200] * 40
    assert sum(stats["refused"].values()) == 0
    assert stats["peak_in_flight"] <= 4
    assert stats["max_window_requests"] <= 20
    assert stats["max_window_tokens"] <= 2_000


@pytest.mark.real_time
@pytest.mark.parametrize(("budget", "limit"), [("concurrency", 4), ("rpm", 20), ("tpm", 2_000)])
async def test_a_client_that_does_not_know_a_limit_learns_it_unseen(budget, limit):
    """The gateway refuses; no caller ever sees a 429."""
    unlimited = RateLimits(minute=0.5)
    settings = MockSettings(limits=unlimited.with_limit(budget, limit), latency=0.01)
    statuses, stats = await through_the_gateway(unlimited, settings=settings, requests=30)
    assert statuses == [200] * 30
    assert stats["refused"][budget] > 0
    assert stats["admitted"] == 30


@pytest.mark.real_time
async def test_faults_of_the_gateway_cost_what_they_cost():
    """An overloaded gateway keeps the charge; the plain client sees each 429 that is no budget's."""
    settings = MockSettings(limits=GATEWAY, latency=0, faults=Faults(overload=1.0))
    statuses, stats = await through_the_gateway(BELIEVED, settings=settings, requests=10)
    assert statuses == [429] * 10
    assert (stats["admitted"], stats["faults"]) == (10, {"overload": 10})
