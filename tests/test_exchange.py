"""One request, tried until it is answered."""

import asyncio
import gzip
import logging

import httpx
import pytest

from kimi_async import exchange
from kimi_async.completions import whole
from kimi_async.errors import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    EngineOverloadedError,
    InternalServerError,
    InvalidResponseError,
    KimiError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RequestTooLarge,
    WaitTooLong,
)
from kimi_async.events import Retrying, log_event
from kimi_async.exchange import TIMEOUT, Call, Exchange, timeouts
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits
from kimi_async.responses import EXCERPT
from kimi_async.transport import COST, RateLimitTransport

from .scripted import NO_BALANCE, OVERLOADED, Body, Scripted, Step, answer, error, everything_in, refused

KEY = "sk-SECRET0123456789"
BUSY = error(429, *OVERLOADED)


def clock():
    """The loop's time, from zero, to the tenth of a millisecond."""
    return round(asyncio.get_running_loop().time() - 1000.0, 4)


def scripted(*steps, key=KEY, max_attempts=8, events=None, limits=None):
    """An exchange with a scripted gateway, with a limiter between them if there are limits."""
    inner = Scripted(*steps)
    hook = (lambda event: None) if events is None else events.append
    transport = inner if limits is None else RateLimitTransport(RateLimiter(limits, on_event=hook), inner)
    made = Exchange(
        transport,
        base_url="http://kimi.test/v1",
        api_key=key,
        timeout=TIMEOUT,
        max_attempts=max_attempts,
        on_event=hook,
    )
    return made, inner


async def complete(made, *, timeout=None, max_wait=None):
    """Send the request."""
    call = Call(
        path="/chat/completions",
        content=b'{"x": 1}',
        cost=Cost(10),
        model="kimi-k2.6",
        timeout=timeout,
        max_wait=max_wait,
    )
    return await made.send(call, whole)


@pytest.fixture
def longest_waits(monkeypatch):
    """Jitter at its longest: half a second, one, two, four."""
    monkeypatch.setattr(exchange.random, "random", lambda: 1.0)


# -- one attempt ----------------------------------------------------------------------------------------------


async def test_an_answer_is_read():
    """With the id that Kimi's support asks for."""
    made, inner = scripted(answer("月亮"))
    completion = await complete(made)
    assert (completion.text, completion.request_id) == ("月亮", "req-1")
    assert inner.bodies[0].closed


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", None])
async def test_an_answer_that_a_proxy_compressed_is_read(encoding):
    """Nobody asked for it."""
    step = answer("月亮")
    if encoding:
        step.content, step.headers = gzip.compress(step.content), {"Content-Encoding": encoding}
    made, inner = scripted(step)
    assert (await complete(made)).text == "月亮"
    assert inner.bodies[0].closed


async def test_an_answer_that_was_read_already_is_taken_as_it_is():
    """By a transport that has no streams, such as httpx's own mock."""
    made, _ = scripted(answer())
    made._transport = httpx.MockTransport(lambda request: httpx.Response(200, content=answer("月亮").content))
    assert (await complete(made)).text == "月亮"


@pytest.mark.parametrize(
    ("base_url", "host"),
    [
        ("https://api.moonshot.cn/v1", "api.moonshot.cn"),
        ("https://Kimi.test:443/v1", "kimi.test"),
        ("http://user:secret@kimi.test:8000/v1", "kimi.test:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("https://月.test", "xn--7ov.test"),
    ],
)
async def test_the_host_header_is_the_one_that_httpx_makes(base_url, host):
    """It is made once for all requests."""
    inner = Scripted(answer())
    timeout = httpx.Timeout(5)
    made = Exchange(inner, base_url=base_url, api_key=KEY, timeout=timeout, max_attempts=1, on_event=print)
    await complete(made)
    assert inner.requests[0].headers["host"] == httpx.Request("GET", base_url).headers["host"] == host


async def test_what_is_sent():
    """The content as it is, the key in its header, and nothing compressed or kept in cookies."""
    made, inner = scripted(answer())
    await complete(made)
    (request,) = inner.requests
    assert (request.method, str(request.url)) == ("POST", "http://kimi.test/v1/chat/completions")
    assert request.content == b'{"x": 1}'
    assert dict(request.headers) == {
        "host": "kimi.test",
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "accept": "*/*",
        "user-agent": "kimi-async",
        "content-length": "8",
    }


@pytest.mark.parametrize(
    ("call", "method", "url", "content_type"),
    [
        (Call(method="GET", path="/files", params={"purpose": "file-extract"}), "GET", "?purpose=file-extract", None),
        (Call(method="DELETE", path="/files"), "DELETE", "", None),
        (
            Call(path="/files", content=b"--x", content_type="multipart/form-data; boundary=x"),
            "POST",
            "",
            "boundary=x",
        ),
    ],
)
async def test_other_endpoints_are_asked_the_same_way(call, method, url, content_type):
    """With the key; what is no chat request has its own query and content, and no cost."""
    made, inner = scripted(answer())
    await made.send(call, whole)
    (request,) = inner.requests
    assert (request.method, str(request.url)) == (method, f"http://kimi.test/v1/files{url}")
    assert (request.content, request.extensions[COST]) == (call.content, None)
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert (content_type or "application/json") in request.headers["content-type"]
    assert len(request.headers.get_list("content-type")) == 1
    assert request.headers.get("content-length") == (str(len(call.content)) if method == "POST" else None)


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [
        (None, TIMEOUT),
        (5.0, httpx.Timeout(connect=10.0, write=60.0, read=5.0, pool=None)),
        (httpx.Timeout(3.0), httpx.Timeout(3.0)),
    ],
)
async def test_timeouts_reach_the_connection(timeout, expected):
    """A number bounds the reads alone."""
    made, inner = scripted(answer())
    await complete(made, timeout=timeout)
    assert inner.requests[0].extensions["timeout"] == expected.as_dict()
    assert timeouts(expected) is expected


def all_subclasses(cls):
    """The class and everything derived from it."""
    return [cls, *(deeper for sub in cls.__subclasses__() for deeper in all_subclasses(sub))]


@pytest.mark.parametrize("exception", all_subclasses(httpx.RequestError), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("when", ["sending", "reading"])
async def test_every_exception_of_httpx_is_translated(exception, when):
    """Timeouts to one error, all others to another; the original is its cause, and its name is told."""
    cut = Step(content=Body(b"{", fails=exception("boom")))
    step = cut if when == "reading" else Step(fails=lambda: exception("boom"))
    made, inner = scripted(step, max_attempts=1)
    expected = APITimeoutError if issubclass(exception, httpx.TimeoutException) else APIConnectionError
    with pytest.raises(APIConnectionError, match=f"{exception.__name__}: boom") as caught:
        await complete(made)
    assert type(caught.value) is expected
    assert type(caught.value.__cause__) is exception
    assert all(body.closed for body in inner.bodies)


async def test_an_exception_without_words_is_told_by_its_name():
    """Timeouts of httpx have no text."""
    made, _ = scripted(Step(fails=lambda: httpx.ReadTimeout("")), max_attempts=1)
    with pytest.raises(APITimeoutError, match=r"no answer in time: ReadTimeout$"):
        await complete(made)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"<html>upstream connect error</html>", b'{"choices": []}', b'{"id": 1}', b"\xff"],
)
async def test_a_garbled_answer_is_tried_again_and_then_told(content):
    """Status 200 is no promise; the error holds what came instead."""
    made, inner = scripted(Step(200, content + b" " * 1000), max_attempts=3)
    with pytest.raises(InvalidResponseError, match="status 200, but no chat completion") as caught:
        await complete(made)
    assert len(inner.requests) == 3
    assert caught.value.body == (content + b" " * 1000).decode(errors="replace")[:EXCERPT]


# -- several attempts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        Step(fails=lambda: httpx.ConnectError("refused")),
        Step(at="think", fails=lambda: httpx.ReadTimeout("slow")),
        Step(content=Body(b"{", fails=httpx.ReadError("cut"))),
        error(500, "server_error", "oops"),
        Step(504, b"<html>504 Gateway Time-out</html>"),
        BUSY,
        error(429, "rate_limit_reached_error", "never heard of"),
        Step(200, b"{"),
    ],
)
@pytest.mark.usefixtures("longest_waits")
async def test_failures_that_pass_are_waited_out(failure):
    """Twice, then an answer: the same request three times, half a second and a second apart."""
    events = []
    made, inner = scripted(failure, failure, answer(), events=events)
    assert (await complete(made)).text == "hello"
    assert clock() == 1.5
    assert [request.content for request in inner.requests] == [b'{"x": 1}'] * 3
    assert [(event.attempt, event.delay) for event in events] == [(1, 0.5), (2, 1.0)]


@pytest.mark.parametrize(
    ("failure", "exception"),
    [
        (error(400, "invalid_request_error", "Invalid request"), BadRequestError),
        (error(401, "invalid_authentication_error", "Invalid Authentication"), AuthenticationError),
        (error(403, "permission_denied_error", "not open"), PermissionDeniedError),
        (error(403, "exceeded_current_quota_error", "exceeded current quota"), QuotaExceededError),
        (error(404, "resource_not_found_error", "Not found the model"), NotFoundError),
        (error(429, *NO_BALANCE), QuotaExceededError),
    ],
)
async def test_failures_that_last_are_raised_at_once(failure, exception):
    """One request, no wait."""
    made, inner = scripted(failure)
    with pytest.raises(exception):
        await complete(made)
    assert (len(inner.requests), clock()) == (1, 0.0)


@pytest.mark.parametrize("max_attempts", [1, 3])
async def test_the_last_failure_is_raised(max_attempts):
    """After so many attempts."""
    made, inner = scripted(error(500, "x", "first"), error(503, "x", "later"), max_attempts=max_attempts)
    with pytest.raises(InternalServerError, match="500: first" if max_attempts == 1 else "503: later"):
        await complete(made)
    assert len(inner.requests) == max_attempts


async def test_a_retry_is_announced_before_its_wait():
    """With what failed; a hook that looks at the clock sees the moment of the failure."""
    seen = []
    made, _ = scripted(BUSY, answer())
    made._on_event = lambda event: seen.append((clock(), event))
    await complete(made)
    ((at, event),) = seen
    assert at == 0.0
    assert event == Retrying(1, event.delay, "EngineOverloadedError", f"429: {OVERLOADED[1]}")
    assert clock() == pytest.approx(event.delay, abs=1e-4)


async def test_jitter_spreads_the_attempts():
    """No two waits alike: many clients that failed together do not come back together."""
    delays = []
    for _ in range(20):
        made, _ = scripted(BUSY, answer())
        made._on_event = lambda event: delays.append(event.delay)
        await complete(made)
    assert len(set(delays)) == 20
    assert all(0 <= delay <= 0.5 for delay in delays)


@pytest.mark.parametrize(("asked", "max_wait", "again_at"), [(20, None, 20), (60, None, 60), (90, 100, 90)])
async def test_retry_after_is_obeyed(asked, max_wait, again_at):
    """For a minute without the caller's word, or for as long as the caller said."""
    made, inner = scripted(error(429, *OVERLOADED, headers={"Retry-After": str(asked)}), answer())
    await complete(made, max_wait=max_wait)
    assert inner.written == pytest.approx([0, again_at], abs=1e-4)


@pytest.mark.parametrize(("asked", "max_wait"), [(61, None), (90, 80), (1, 0.5)])
async def test_retry_after_beyond_patience_is_raised_at_once(asked, max_wait):
    """Nobody wants to wait silently; the error says how long."""
    made, inner = scripted(error(429, *OVERLOADED, headers={"Retry-After": str(asked)}), answer())
    with pytest.raises(EngineOverloadedError) as caught:
        await complete(made, max_wait=max_wait)
    assert (caught.value.retry_after, len(inner.requests), clock()) == (asked, 1, 0.0)


@pytest.mark.usefixtures("longest_waits")
async def test_max_wait_bounds_the_waits_together():
    """Half a second and a second are within two; two more are not: the failure is raised, not waited for."""
    made, inner = scripted(BUSY)
    with pytest.raises(EngineOverloadedError):
        await complete(made, max_wait=2)
    assert inner.written == pytest.approx([0, 0.5, 1.5], abs=1e-4)
    assert clock() == 1.5


async def test_max_wait_bounds_line_and_retries_together():
    """Two a minute; the third attempt would stand in line for a minute."""
    made, inner = scripted(BUSY, limits=RateLimits(rpm=2))
    with pytest.raises(WaitTooLong):
        await complete(made, max_wait=30)
    assert len(inner.requests) == 2
    assert clock() < 30


async def test_a_slow_failure_leaves_no_time_to_wait():
    """The answer took 100 seconds and was an error; a retry would come after the minute the caller gave."""
    made, inner = scripted(error(500, "x", "oops", think=100), answer())
    with pytest.raises(InternalServerError):
        await complete(made, max_wait=60)
    assert (len(inner.requests), clock()) == (1, 100.0)


async def test_each_attempt_is_charged():
    """The gateway charged the failed ones as well; nothing else is touched."""
    limits = RateLimits(concurrency=5, rpm=100, tpm=1000)
    made, _ = scripted(BUSY, error(500, "x", "oops"), answer(), limits=limits)
    await complete(made)
    limiter = made._transport.limiter
    usage = limiter.usage()
    assert (usage.concurrency.used, usage.rpm.used, usage.tpm.used, limiter.limits) == (0, 3, 30, limits)


async def test_a_failed_connect_is_not_charged():
    """Tried again, and charged once."""
    made, _ = scripted(Step(fails=lambda: httpx.ConnectError("refused")), answer(), limits=RateLimits(rpm=100))
    await complete(made)
    assert made._transport.limiter.usage().rpm.used == 1


async def test_refusals_for_a_budget_are_no_attempts():
    """The transport takes them back to the line, whatever max_attempts says."""
    events = []
    made, inner = scripted(refused("rpm", 100), answer(), max_attempts=1, limits=RateLimits(rpm=100), events=events)
    assert (await complete(made)).text == "hello"
    assert len(inner.requests) == 2
    assert not [event for event in events if isinstance(event, Retrying)]


async def test_the_limiters_own_errors_pass():
    """They are Kimi errors already, and no wait helps."""
    made, inner = scripted(answer(), limits=RateLimits(tpm=5))
    with pytest.raises(RequestTooLarge):
        await complete(made)
    assert inner.requests == []


@pytest.mark.parametrize("step", [answer(connect=100), answer(think=100), BUSY])
async def test_cancelling_is_never_taken_for_a_failure(step):
    """On its way or between two attempts: nothing more is sent."""
    made, inner = scripted(step, max_attempts=10**9, limits=RateLimits(concurrency=1))
    task = asyncio.create_task(complete(made))
    await asyncio.sleep(50)
    task.cancel()
    await asyncio.wait([task])
    had = len(inner.requests)
    await asyncio.sleep(500)
    assert task.cancelled()
    assert len(inner.requests) == had
    assert made._transport.limiter.usage().concurrency.used == 0


# -- the key --------------------------------------------------------------------------------------------------

FAILURES = [
    Step(fails=lambda: httpx.ConnectError("refused")),
    Step(at="think", fails=lambda: httpx.ReadTimeout("slow")),
    Step(content=Body(b"{", fails=httpx.DecodingError("gzip"))),
    Step(content=b"no gzip", headers={"Content-Encoding": "gzip"}),
    error(401, "invalid_authentication_error", "Invalid Authentication"),
    error(500, "server_error", "oops"),
    Step(200, b"garbled"),
    BUSY,
]


@pytest.mark.parametrize("failure", FAILURES)
async def test_the_key_is_in_no_error_event_or_log(failure, caplog):
    """Through everything that an error holds: attributes, causes, contexts, tracebacks as printed."""
    caplog.set_level(logging.DEBUG)
    events = []
    made, _ = scripted(failure, max_attempts=2, events=events, limits=RateLimits())
    with pytest.raises(KimiError) as caught:
        await complete(made)
    for event in events:
        log_event(event)
    assert "SECRET" not in everything_in(caught.value)
    assert "SECRET" not in everything_in(events)
    assert "SECRET" not in everything_in(caplog.records)
    assert "SECRET" not in repr(made)


def test_the_search_would_find_it():
    """In a header deep inside a cause, for one."""
    failure = APIConnectionError("no answer")
    request = httpx.Request("GET", "http://x", headers={"Authorization": KEY})
    failure.__cause__ = httpx.ReadError("cut", request=request)
    assert "SECRET" in everything_in(failure)


@pytest.mark.parametrize(
    "key",
    ["sk-SECRET\nX-Evil: 1", "sk-SECRET\r\n\r\nGET /", "sk SECRET", "sk-SECRET\x00", "密钥SECRET", "SECRET\u2028x"],
)
def test_a_key_that_no_header_can_carry_is_refused_unseen(key):
    """Before anything is sent; h11 would quote it in its error."""
    with pytest.raises(ConfigurationError, match="copy it again") as caught:
        scripted(answer(), key=key)
    assert "SECRET" not in everything_in(caught.value)


@pytest.mark.parametrize("key", [None, "", "  \n"])
def test_no_key_is_told_with_the_remedy(key):
    """Where it is looked for."""
    with pytest.raises(ConfigurationError, match="MOONSHOT_API_KEY"):
        scripted(answer(), key=key)


async def test_a_keys_trailing_newline_is_no_part_of_it():
    """Keys are read from files."""
    made, inner = scripted(answer(), key=f"{KEY}\n")
    await complete(made)
    assert inner.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timeout_that_is_none_is_told(seconds):
    """Before anything is sent with it."""
    with pytest.raises(ConfigurationError, match="above 0 seconds"):
        timeouts(seconds)
