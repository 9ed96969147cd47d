"""HTTP/1.1 on one connection: what is written, what is understood, and what is refused, however the bytes are cut.

httpcore's connection is what answers are compared with, wherever the two should agree.
"""

import asyncio
import re
import time
from dataclasses import dataclass
from itertools import pairwise

import httpcore
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_async.answer import MAX_HEAD
from kimi_async.http11 import KEEPALIVE, Http11Connection

URL = "http://kimi.test/v1/models?page=2"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Wire(httpcore.AsyncNetworkStream):
    """A stream that brings these pieces and then ends, or stays silent; what is written is kept."""

    def __init__(self, *pieces, silent=False):
        self.pieces = list(pieces)
        self.silent = silent
        self.written = []
        self.closed = False

    @property
    def stale(self):
        return self.closed or bool(self.pieces)

    async def read(self, max_bytes, timeout=None):
        if not self.pieces and self.silent:
            raise httpx.ReadTimeout(f"nothing came for {timeout} s")
        if self.closed or not self.pieces:
            self.closed = True  # by the other side
            return b""
        return self.pieces.pop(0)

    async def write(self, buffer, timeout=None):
        if self.closed:
            raise httpx.WriteError("closed")
        self.written.append(buffer)

    async def aclose(self):
        self.closed = True

    def get_extra_info(self, info):
        return self.stale if info == "is_readable" else None


def request(method="GET", url=URL, **options):
    """As clients make them."""
    return httpx.Request(method, url, **options)


async def exchange(connection, sent=None):
    """Status, reason, headers and body of one answer."""
    response = await connection.send(sent or request())
    body = await response.aread()
    return response.status_code, response.extensions["reason_phrase"], response.headers.raw, body


@dataclass(frozen=True)
class Seen:
    """What a client makes of an answer: the answer, or its error's name and text; and whether another may follow."""

    answer: object
    kept: bool


async def ours(pieces, method="GET"):
    """What this package makes of it."""
    wire = Wire(*pieces)
    connection = Http11Connection(wire)
    try:
        answer = await exchange(connection, request(method))
    except httpx.TransportError as exc:
        answer = type(exc).__name__, str(exc)
    assert connection.ready != wire.stale
    return Seen(answer, connection.ready)


CUT_OFF = "peer closed connection without sending complete message body"
WORDS = {"peer unexpectedly closed connection": f"{CUT_OFF} (incomplete chunked read)"}
"""What h11 has for the end of the connection within trailers, and what it has elsewhere in a body."""


async def httpcores(pieces, method="GET"):
    """What httpcore makes of it."""
    wire = Wire(*pieces)
    connection = httpcore.AsyncHTTP11Connection(httpcore.Origin(b"http", b"kimi.test", 80), wire, KEEPALIVE)
    try:
        response = await connection.request(method, URL, headers={"Host": "kimi.test"})
        answer = response.status, response.extensions["reason_phrase"], response.headers, response.content
    except httpcore.RemoteProtocolError as exc:
        answer = type(exc).__name__, WORDS.get(str(exc), str(exc))
    return Seen(answer, not wire.stale)


def cut(answer, places):
    """An answer in pieces, cut at these places."""
    edges = [0, *sorted({place for place in places if 0 < place < len(answer)}), len(answer)]
    return [answer[begin:end] for begin, end in pairwise(edges) if begin < end]


# -- answers that both understand ---------------------------------------------------------------------------------

names = st.sampled_from([b"Date", b"msh-request-id", b"X-Empty", b"Set-Cookie", b"SERVER"])
values = st.sampled_from([b"", b"a", b"two words", b"tab\tbed", b"caf\xe9", b'a, b; c="d"', b"  padded \t"])
headers = st.lists(st.tuples(names, values), max_size=4)
bodies = st.binary(max_size=40)


def head(status, fields, version=b"HTTP/1.1"):
    """A status line and headers."""
    return b"\r\n".join((version + b" " + status, *(b"%b:%b" % (name, value) for name, value in fields), b"", b""))


def chunked(parts, extension=b"", trailers=()):
    """A body in chunks."""
    coded = b"".join(b"%X%b\r\n%b\r\n" % (len(part), extension, part) for part in parts if part)
    return coded + b"0\r\n" + b"".join(b"%b:%b\r\n" % trailer for trailer in trailers) + b"\r\n"


@st.composite
def answers(draw):
    """Answers as servers may send them, after any number of informational ones."""
    fields = draw(headers)
    early = draw(st.lists(st.sampled_from([b"100 Continue", b"103 Early Hints"]), max_size=2))
    before = b"".join(head(status, draw(headers)) for status in early)
    status = draw(
        st.sampled_from([b"200 OK", b"200", b"200 ", b"204 No Content", b"304 Not Modified", b"429 Too Many"])
    )
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"]))
    fields += draw(st.sampled_from([[], [], [(b"Connection", b" close")], [(b"connection", b" keep-alive")]]))
    body = draw(bodies)
    framing = draw(st.sampled_from(["length", "chunks", "end"]))
    if status[:3] in {b"204", b"304"}:
        body, framing = b"", draw(st.sampled_from(["length", "none"]))
    if framing == "length":
        length = draw(st.integers(0, 9)) if status.startswith(b"304") else len(body)
        fields.append((b"Content-Length", b" %d" % length))
    elif framing == "chunks":
        fields.append((b"Transfer-Encoding", b" chunked"))
        parts = draw(st.lists(bodies, max_size=3))
        body = chunked(parts, draw(st.sampled_from([b"", b";name=value"])), draw(headers))
    return before + head(status, fields, version) + body


places = st.lists(st.integers(0, 400), max_size=12)
methods = st.sampled_from(["GET", "POST"])


@given(answers(), places, methods)
async def test_an_answer_is_what_httpcore_makes_of_it_however_it_is_cut(answer, places, method):
    """The same status, reason, headers and body, and the same decision about the connection."""
    assert await ours(cut(answer, places), method) == await httpcores([answer], method)


@given(answers())
async def test_byte_by_byte(answer):
    """Every cut at once."""
    pieces = [answer[at : at + 1] for at in range(len(answer))]
    assert await ours(pieces) == await ours([answer])


@given(answers(), st.integers(0, 400), places)
async def test_an_answer_that_breaks_off_is_told_in_httpcores_words(answer, length, places):
    """Or is complete, if it may end there."""
    part = answer[: length % len(answer)]
    assert await ours(cut(part, places)) == await httpcores([part] if part else [])


# -- answers that nobody should send ------------------------------------------------------------------------------


@st.composite
def garbled(draw):
    """An answer with a few bytes of it replaced, lost or doubled."""
    answer = bytearray(draw(answers()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(answer)))
        end = at + draw(st.integers(0, 3))
        answer[at:end] = draw(st.sampled_from([b"", b" ", b"\r", b"\n", b"\x00", b":", b"1", b"x", b"\r\n", b"\xff"]))
    return bytes(answer)


BLANK_LINES = re.compile(rb"(\A|(?<=\r\n\r\n))[\r\n]+(?=HTTP/)")
"""Before a status line; llhttp passes them over, as RFC 9112, section 2.2, wants it of servers."""


@given(garbled(), places)
async def test_a_garbled_answer_is_refused_wherever_httpcore_refuses_it(answer, places):
    """Or more often. What both take is the same to both, and cuts make no difference."""
    seen, theirs = await ours([answer]), await httpcores([BLANK_LINES.sub(b"", answer)])
    in_pieces = await ours(cut(answer, places))
    assert in_pieces.kept == seen.kept
    if seen.answer[0] == "RemoteProtocolError":
        assert in_pieces.answer[0] == "RemoteProtocolError"
    else:
        assert in_pieces.answer == seen.answer == theirs.answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"nonsense\r\n\r\n", "illegal answer"),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "switched protocols"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK, "switched protocols"),
        (head(b"200 OK", [(b"Transfer-Encoding", b"gzip, chunked")]) + chunked([b"ok"]), "other than chunked"),
        (head(b"200 OK", [(b"Transfer-Encoding", b"chunked")] * 2) + chunked([b"ok"]), "other than chunked"),
        (head(b"200 OK", [(b"Transfer-Encoding", b"identity")]) + b"ok", "other than chunked"),
        (head(b"200 OK", [(b"Content-Length", b"2"), (b"Content-Length", b"3")]) + b"ok", "illegal answer"),
        (head(b"200 OK", [(b"Content-Length", b"2"), (b"Transfer-Encoding", b"chunked")]), "illegal answer"),
        (head(b"200 OK", [(b"Content-Length", b"-2")]), "illegal answer"),
        (head(b"200 OK", [(b"Content-Length", b"9" * 40)]), "illegal answer"),
        (head(b"104 Early", [(b"Content-Length", b"2")]) + b"no" + OK, "informational answer with a body"),
        (head(b"199 Early", [(b"Content-Length", b"2")]) + b"no" + OK, "informational answer with a body"),
        (head(b"199 Early", [(b"Transfer-Encoding", b"chunked")]) + chunked([b"no"]) + OK, "answer with a body"),
        (head(b"104 Early", [(b"Transfer-Encoding", b"chunked")]) + chunked([]) + OK, "answer with a body"),
        (head(b"099 Early", []) + OK, "below 100"),
        (head(b"099 Early", [(b"Content-Length", b"2")]) + b"no" + OK, "below 100"),
        (b"HTTP/1.1 2\x0000 OK\r\n\r\n", "illegal answer"),
        (b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n", "control character"),
    ],
)
async def test_what_is_refused(answer, words):
    """With the reason; the connection is closed."""
    seen = await ours([answer])
    assert seen.answer[0] == "RemoteProtocolError"
    assert re.search(words, seen.answer[1])
    assert not seen.kept


PIECE = b"x" * 8_192
ENDLESS = {
    "line": (b"HTTP/1.1 200 ", PIECE),
    "header": (b"HTTP/1.1 200 OK\r\nA: ", PIECE),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 1_000),
    "informational": (b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 300),
    "extension": (head(b"200 OK", [(b"Transfer-Encoding", b"chunked")]) + b"1;a=", PIECE),
    "trailers": (head(b"200 OK", [(b"Transfer-Encoding", b"chunked")]) + b"0\r\n", b"A: b\r\n" * 1_000),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_nothing_but_a_body_may_be_endless(what):
    """A hundred kilobytes are enough of anything else."""
    start, more = ENDLESS[what]
    wire = Wire(start, *[more] * 100)
    with pytest.raises(httpx.RemoteProtocolError, match="without any of the body"):
        await exchange(Http11Connection(wire))
    assert wire.closed
    assert MAX_HEAD // len(more) - 2 < 100 - len(wire.pieces) < MAX_HEAD // len(more) + 2


async def test_a_large_head_and_a_larger_body_are_no_trouble():
    """Each is within its bound."""
    fields = [(b"A", b"b" * 30_000)] * 3
    answer = head(b"200 OK", [*fields, (b"Transfer-Encoding", b"chunked")]) + chunked([b"c" * 1_000] * 500)
    seen = await ours(cut(answer, range(0, len(answer), 1_000)))
    assert seen.answer[2][:3] == fields
    assert seen.answer[3] == b"c" * 500_000
    assert seen.kept


# -- one request after the other ----------------------------------------------------------------------------------


async def test_a_connection_serves_one_request_after_the_other():
    """And each finds its own answer."""
    wire = Wire(silent=True)
    connection = Http11Connection(wire)
    for body in (b"one", b"", b"three"):
        wire.pieces = [head(b"200 OK", [(b"Content-Length", b"%d" % len(body))]) + body]
        response = await connection.send(request())
        assert await response.aread() == body
        assert [part async for part in response.stream] == []  # it ended, and has nothing to do with the next one
        assert connection.ready
    assert len(wire.written) == 3
    assert not wire.closed


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\n", OK, b"more", b"\x00"])
@pytest.mark.parametrize("fields", [[(b"Content-Length", b"2")], [(b"Transfer-Encoding", b"chunked")]])
@pytest.mark.parametrize("apart", [True, False])
async def test_what_nobody_asked_for_is_no_answer_to_the_next_request(extra, fields, apart):
    """Whether it comes with an answer or after it."""
    answer = head(b"200 OK", fields) + (b"ok" if fields[0][1] == b"2" else chunked([b"ok"]))
    wire = Wire(*([answer, extra] if apart else [answer + extra]), silent=True)
    connection = Http11Connection(wire)
    assert (await exchange(connection))[-1] == b"ok"
    assert not connection.ready


@pytest.mark.parametrize(
    "fields",
    [
        [("Connection", "close")],
        [("connection", "TE , Close")],
        [("Connection", "close"), ("Connection", "TE")],
        [("Connection", "keep-alive"), ("Connection", "TE")],
        [("Connection", "closer")],
        [("X-Connection", "close")],
        [],
    ],
)
async def test_a_request_may_ask_for_the_connection_to_be_closed(fields):
    """As httpcore understands it, whatever the answer says."""
    fields = [("Host", "kimi.test"), *fields]
    wire, other = Wire(OK, silent=True), Wire(OK, silent=True)
    connection = Http11Connection(wire)
    await exchange(connection, request(headers=fields))
    theirs = httpcore.AsyncHTTP11Connection(httpcore.Origin(b"http", b"kimi.test", 80), other, KEEPALIVE)
    await theirs.request("GET", URL, headers=fields)
    assert connection.ready is not other.closed
    assert wire.closed is other.closed


async def test_an_answer_to_head_has_no_body():
    """Whatever length it tells of; llhttp would wait for it, so the connection is not used again."""
    for fields in ([(b"Content-Length", b"5")], [(b"Transfer-Encoding", b"chunked")], []):
        wire = Wire(head(b"200 OK", fields), silent=True)
        assert (await exchange(Http11Connection(wire), request("HEAD")))[-1] == b""
        assert wire.closed


async def test_it_is_not_ready_while_an_answer_is_read_nor_after_a_minute(monkeypatch):
    """Nor once the server has hung up."""
    wire = Wire(OK, silent=True)
    connection = Http11Connection(wire)
    response = await connection.send(request())
    assert not connection.ready
    assert await response.aread() == b"ok"
    assert connection.ready
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + KEEPALIVE + 1)
    assert not connection.ready
    monkeypatch.undo()
    assert connection.ready
    wire.closed = True
    assert not connection.ready


async def test_an_answer_that_is_left_closes_the_connection_unless_all_of_it_is_there():
    """Then nothing of it can be taken for the next one's."""
    for pieces, kept in (([OK[:-1]], False), ([OK], True)):
        wire = Wire(*pieces, silent=True)
        connection = Http11Connection(wire)
        response = await connection.send(request())
        await response.aclose()
        assert connection.ready is kept is not wire.closed
        with pytest.raises(httpx.StreamClosed):
            await anext(aiter(response.stream))


async def test_a_body_may_be_read_in_two_goes():
    """The openai SDK leaves a stream at its last event, and comes back for what follows."""
    wire = Wire(head(b"200 OK", [(b"Content-Length", b"6")]), b"on", b"e, ", b"t", silent=True)
    response = await Http11Connection(wire).send(request())
    async for part in response.stream:
        assert part == b"on"
        break
    assert [part async for part in response.stream] == [b"e, ", b"t"]


async def test_a_timeout_in_a_body_closes_the_connection():
    """With httpx's error; nothing more is read from it."""
    wire = Wire(OK[:-1], silent=True)
    response = await Http11Connection(wire).send(request(extensions={"timeout": {"read": 7}}))
    parts = aiter(response.stream)
    assert await anext(parts) == b"o"
    with pytest.raises(httpx.ReadTimeout, match="7 s"):
        await anext(parts)
    assert wire.closed
    with pytest.raises(httpx.StreamClosed):
        await anext(parts)


# -- requests -----------------------------------------------------------------------------------------------------


async def pieces_of(*pieces):
    """A body that comes bit by bit."""
    for piece in pieces:
        yield piece


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("GET", {}),
        ("DELETE", {"headers": {b"X-Padded": b"caf\xe9 \t b", b"x-empty": b""}}),
        ("POST", {"json": {"a": 1}}),
        ("POST", {"content": b""}),
        ("PUT", {"content": b"x" * 100_000, "params": {"q": "\u6708 \r\n"}}),
        ("POST", {"content": [b"one", b"", b"three" * 10]}),
        ("POST", {"content": [b"one", b"three"], "headers": {"Content-Length": "8"}}),
    ],
)
async def test_a_request_is_written_as_httpcore_writes_it(method, options):
    """Byte by byte; the head and what follows it in one piece."""
    if isinstance(content := options.get("content"), list):
        options = {**options, "content": pieces_of(*content)}
    whole = request(method, **options)
    wire = Wire(OK)
    await exchange(Http11Connection(wire), whole)
    again = pieces_of(*content) if isinstance(content, list) else whole.stream
    other = Wire(OK)
    connection = httpcore.AsyncHTTP11Connection(httpcore.Origin(b"http", b"kimi.test", 80), other)
    url = httpcore.URL(scheme=b"http", host=b"kimi.test", port=None, target=whole.url.raw_path)
    await connection.handle_async_request(httpcore.Request(method, url, headers=whole.headers.raw, content=again))
    assert b"".join(wire.written) == b"".join(other.written)
    assert len(wire.written) == 1 or isinstance(content, list)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("GET", [("Host", "kimi.test"), ("X-A", "b\r\nX-C: d")]),
        ("GET", [("Host", "kimi.test"), ("X-A", "b\nX-C: d")]),
        ("GET", [("Host", "kimi.test"), ("X-A", "b\x00")]),
        ("GET", [("Host", "kimi.test"), ("X-A: b\r\nX-C", "d")]),
        ("GET", [("Host", "kimi.test"), ("X A", "b")]),
        ("GET", [("Host", "kimi.test"), ("", "b")]),
        ("GET", [("Host", "kimi.test"), ("host", "other.test")]),
        ("GET", [("X-A", "b")]),
        ("POST", [("Host", "kimi.test"), ("Content-Length", "3"), ("Content-Length", "3")]),
        ("POST", [("Host", "kimi.test"), ("Content-Length", "3"), ("Transfer-Encoding", "chunked")]),
        ("POST", [("Host", "kimi.test"), ("Transfer-Encoding", "gzip")]),
        ("POST", [("Host", "kimi.test"), ("Content-Length", "+3")]),
        ("POST", [("Host", "kimi.test"), ("Content-Length", "2")]),
        ("POST", [("Host", "kimi.test"), ("Content-Length", "4")]),
        ("POST", [("Host", "kimi.test")]),
        ("GET /other HTTP/1.1\r\nX-A:", [("Host", "kimi.test")]),
        ("", [("Host", "kimi.test")]),
        ("CONNECT", [("Host", "kimi.test")]),
    ],
)
async def test_what_would_be_read_as_another_request_is_not_written(method, fields):
    """Nor is any header's value quoted: one of them is a key."""
    wire = Wire(OK)
    sent = request(method, headers=fields, stream=httpx.ByteStream(b"abc" if method == "POST" else b""))
    with pytest.raises(httpx.LocalProtocolError) as caught:
        await Http11Connection(wire).send(sent)
    assert wire.written == []
    assert wire.closed
    assert "X-C" not in str(caught.value).replace("x-a: b\\r\\nx-c", "")


@pytest.mark.parametrize("length", ["4", "7"])
async def test_a_body_of_another_length_than_was_said_closes_the_connection(length):
    """Its head has left."""
    wire = Wire(OK)
    sent = request("POST", headers={"Content-Length": length}, content=pieces_of(b"abc", b"def"))
    with pytest.raises(httpx.LocalProtocolError, match="declared Content-Length"):
        await Http11Connection(wire).send(sent)
    assert wire.closed


async def test_a_request_that_is_refused_before_it_was_read_has_its_answer():
    """A server may answer and close early; such a connection is not used again."""

    class Hasty(Wire):
        async def write(self, buffer, timeout=None):
            raise httpx.WriteError("the connection is closed")

    wire = Hasty(head(b"413 Too Large", [(b"Content-Length", b"2")]) + b"no", silent=True)
    connection = Http11Connection(wire)
    assert (await exchange(connection, request("POST", content=b"x")))[0] == 413
    assert not connection.ready
    assert wire.closed


async def test_a_trace_is_told_of_failures_too():
    """Each step that begins is completed or fails, and the closing is told of last."""
    told = []

    async def trace(event, info):
        told.append(event.removeprefix("http11."))

    with pytest.raises(httpx.RemoteProtocolError):
        await exchange(Http11Connection(Wire(OK[:-1])), request(extensions={"trace": trace}))
    assert told[-4:] == [
        "receive_response_body.started",
        "receive_response_body.failed",
        "response_closed.started",
        "response_closed.complete",
    ]
    told.clear()
    with pytest.raises(httpx.RemoteProtocolError):
        await exchange(Http11Connection(Wire()), request(extensions={"trace": trace}))
    assert told[-4:] == [
        "receive_response_headers.started",
        "receive_response_headers.failed",
        "response_closed.started",
        "response_closed.complete",
    ]


async def test_no_step_tells_a_trace_of_the_key():
    """Whoever prints what a trace tells, as httpcore's documentation does, prints no secret."""
    told = []

    async def trace(event, info):
        told.append(f"{event} {info}")

    await exchange(
        Http11Connection(Wire(OK)), request(headers={"Authorization": "SECRET"}, extensions={"trace": trace})
    )
    assert len(told) == 10
    assert "SECRET" not in "".join(told)


async def test_cancelled_wherever_it_waits_it_closes_the_connection():
    """While writing, while waiting for the head, and within the body."""

    class Slow(Wire):
        async def read(self, max_bytes, timeout=None):
            await asyncio.sleep(1)
            return await super().read(max_bytes)

        async def write(self, buffer, timeout=None):
            await asyncio.sleep(1)
            await super().write(buffer)

    for seconds in (0.5, 1.5, 2.5):
        wire = Slow(OK[:-1], b"k")
        connection = Http11Connection(wire)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await exchange(connection)
        assert wire.closed
        assert not connection.ready
