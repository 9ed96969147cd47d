"""Sockets on asyncio's transports: what goes through, what breaks, and as which error."""

import asyncio
import socket
import ssl
import struct
from contextlib import asynccontextmanager, nullcontext

import httpx
import pytest
import trustme

from kimi_async.connections import ConnectionStack
from kimi_async.network import READ_AHEAD, connect_tcp

pytestmark = pytest.mark.real_time

BIG = bytes(range(256)) * 8192  # 2 MiB: more than any socket buffer takes at once


async def echo(reader, writer):
    """Send everything back."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def silence(reader, writer):
    """Take nothing, say nothing."""
    await asyncio.Event().wait()


@asynccontextmanager
async def connected(behave, **tls):
    """A stream to a server on loopback that behaves like that."""
    tasks = []

    async def remember(reader, writer):
        tasks.append((asyncio.current_task(), writer))
        await behave(reader, writer)

    server = await asyncio.start_server(remember, "127.0.0.1", 0, limit=2**10, **tls)
    stream = await connect_tcp("127.0.0.1", server.sockets[0].getsockname()[1], timeout=5)
    try:
        yield stream
    finally:
        await stream.aclose()
        server.close()
        for task, writer in tasks:
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)


@pytest.fixture(scope="module")
def certificates():
    """A server's context, and one of a client that trusts it."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def read_all(stream, number):
    """So many bytes, in whatever pieces they come."""
    parts = []
    while number:
        parts.append(await stream.read(16_384, timeout=5))
        number -= len(parts[-1])
    return b"".join(parts)


async def both_ways(stream):
    """Write and read at once, as a server that answers early wants it."""
    _, echoed = await asyncio.gather(stream.write(BIG, timeout=5), read_all(stream, len(BIG)))
    assert echoed == BIG


async def test_what_is_written_arrives_and_comes_back():
    """Two megabytes, with the brakes of both sides."""
    async with connected(echo) as stream:
        await both_ways(stream)


async def test_and_so_it_does_encrypted(certificates):
    """The same over TLS."""
    server, client = certificates
    async with connected(echo, ssl=server) as raw:
        stream = await raw.start_tls(client, "localhost", timeout=5)
        assert isinstance(stream.get_extra_info("ssl_object"), ssl.SSLObject)
        await both_ways(stream)
        await stream.aclose()


async def test_a_certificate_that_is_not_trusted_is_a_connect_error(certificates):
    """With OpenSSL's words."""
    async with connected(echo, ssl=certificates[0]) as raw:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await raw.start_tls(ssl.create_default_context(), "localhost", timeout=5)


async def test_a_handshake_that_never_ends_times_out(certificates):
    """The server says nothing."""
    async with connected(silence) as raw:
        with pytest.raises(httpx.ConnectTimeout, match="no TLS handshake"):
            await raw.start_tls(certificates[1], "localhost", timeout=0.05)


async def test_nobody_listening_is_a_connect_error():
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(httpx.ConnectError):
        await connect_tcp("127.0.0.1", port, timeout=5)


@pytest.mark.parametrize(
    ("host", "port"), [("api..kimi.test", 443), (f"{'x' * 64}.kimi.test", 443), ("127.0.0.1", 65_536)]
)
async def test_a_place_that_cannot_exist_is_a_connect_error(host, port):
    """Whatever Python calls it."""
    with pytest.raises(httpx.ConnectError):
        await connect_tcp(host, port, timeout=5)


@pytest.mark.parametrize("name", ["api..kimi.test", ".kimi.test"])
async def test_and_so_is_a_name_that_no_certificate_can_have(certificates, name):
    """The connection is closed."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # asyncio logs what it raises
    async with connected(silence, ssl=certificates[0]) as raw:
        with pytest.raises(httpx.ConnectError):
            await raw.start_tls(certificates[1], name, timeout=5)
        await asyncio.sleep(0)
        assert raw._connection.transport.is_closing()


async def test_a_connection_lost_right_after_its_handshake_is_a_connect_error(certificates, monkeypatch):
    """There is no transport then."""

    async def lost(*arguments, **options):
        return None

    async with connected(silence) as raw:
        monkeypatch.setattr(asyncio.get_running_loop(), "start_tls", lost)
        with pytest.raises(httpx.ConnectError):
            await raw.start_tls(certificates[1], "localhost", timeout=5)


async def test_a_connect_that_takes_too_long_is_a_connect_timeout(monkeypatch):
    """Whatever holds it up."""

    async def never(*arguments, **options):
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    with pytest.raises(httpx.ConnectTimeout):
        await connect_tcp("kimi.test", 443, timeout=0.01)


async def test_nothing_to_read_is_a_read_timeout():
    """And the connection can still be read from, once something comes."""
    async with connected(echo) as stream:
        with pytest.raises(httpx.ReadTimeout):
            await stream.read(10, timeout=0.01)
        await stream.write(b"hello", timeout=5)
        assert await stream.read(10, timeout=5) == b"hello"


async def test_each_read_has_its_own_timeout():
    """Though one alarm serves them all: one that was set for later is set anew, and one that rings early, again."""
    async with connected(echo) as stream:
        for timeout in (5, 0.02, None, 0.03, 5):
            await stream.write(b"hello", timeout=5)
            assert await stream.read(10, timeout=timeout) == b"hello"
            if timeout == 0.02:
                with pytest.raises(httpx.ReadTimeout, match=r"0\.02 s"):
                    await stream.read(10, timeout=timeout)
        late = asyncio.create_task(stream.read(10, timeout=0.2))
        await asyncio.sleep(0.1)  # the alarm for 0.03 s rings
        assert not late.done()
        await stream.write(b"late", timeout=5)
        assert await late == b"late"


async def test_a_read_without_a_timeout_has_none():
    """Not that of the read before it either, whose alarm is still to ring."""
    async with connected(echo) as stream:
        await stream.write(b"hello", timeout=5)
        assert await stream.read(10, timeout=0.05) == b"hello"
        patient = asyncio.create_task(stream.read(10, timeout=None))
        await asyncio.sleep(0.1)
        assert not patient.done()
        await stream.write(b"late", timeout=5)
        assert await patient == b"late"


async def test_a_closed_connection_leaves_no_alarm_behind():
    """Or each would be kept for a quarter of an hour."""
    async with connected(echo) as stream:
        await stream.write(b"hello", timeout=5)
        assert await stream.read(10, timeout=900) == b"hello"
        alarm = stream._connection._alarm
        assert not alarm.cancelled()
        await stream.aclose()
        await asyncio.sleep(0.01)
        assert alarm.cancelled()
        assert stream._connection._alarm is None


async def test_a_server_that_takes_nothing_is_a_write_timeout():
    """Once all buffers on the way are full."""
    async with connected(silence) as stream:
        with pytest.raises(httpx.WriteTimeout):
            await stream.write(BIG * 8, timeout=0.05)


async def test_and_so_it_is_encrypted(certificates):
    """What TLS has taken is not written yet: it waits in the transport below."""
    async with connected(silence, ssl=certificates[0]) as raw:
        stream = await raw.start_tls(certificates[1], "localhost", timeout=5)
        with pytest.raises(httpx.WriteTimeout):
            await stream.write(BIG * 8, timeout=0.05)
        await stream.aclose()


async def test_a_write_over_tls_ends_with_the_connection(certificates):
    """And not with its timeout."""
    async with connected(silence, ssl=certificates[0]) as raw:
        stream = await raw.start_tls(certificates[1], "localhost", timeout=5)
        writing = asyncio.create_task(stream.write(BIG * 8, timeout=5))
        await asyncio.sleep(0.05)
        await stream.aclose()
        with pytest.raises(httpx.WriteError, match="closed on this side"):
            await writing


async def test_a_request_over_tls_is_written_long_before_its_answer(certificates):
    """Each of three, on one connection, whose server takes three times as long as a write may."""
    clock, written, answered = asyncio.get_running_loop().time, [], []

    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            await asyncio.sleep(0.3)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def trace(event, info):
        if event == "http11.send_request_body.complete":
            written.append(clock())

    server = await asyncio.start_server(serve, "localhost", 0, ssl=certificates[0])
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}/"
    timeout = httpx.Timeout(5, write=0.1)
    async with httpx.AsyncClient(transport=ConnectionStack(verify=certificates[1]), timeout=timeout) as client:
        for _ in range(3):
            assert (await client.get(url, extensions={"trace": trace})).text == "ok"
            answered.append(clock())
    server.close()
    assert all(after - before > 0.2 for before, after in zip(written, answered, strict=True))


async def test_a_reset_is_a_read_error_after_what_had_arrived():
    """Linger of zero makes the server's close a reset."""

    async def reset(reader, writer):
        await reader.read(1)
        peer = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with connected(reset) as stream:
        await stream.write(b"x", timeout=5)
        with pytest.raises(httpx.ReadError):
            await stream.read(10, timeout=5)
        with pytest.raises(httpx.WriteError):
            await stream.write(b"x", timeout=5)


async def test_the_end_is_no_bytes_and_makes_an_idle_connection_readable():
    """What came before it is read first."""

    async def leave(reader, writer):
        writer.write(b"bye")
        writer.close()

    async with connected(leave) as stream:
        assert await read_all(stream, 3) == b"bye"
        assert await stream.read(10, timeout=5) == b""
        assert stream.get_extra_info("is_readable")


async def test_reading_ahead_is_bounded():
    """A fast server waits for a slow reader."""

    async def pour(reader, writer):
        writer.write(BIG)
        await writer.drain()
        await reader.read()

    async with connected(pour) as stream:
        slow = b""
        for _ in range(8):
            slow += await stream.read(1, timeout=5)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(stream._connection.received) <= READ_AHEAD + 2**18
        assert slow + await read_all(stream, len(BIG) - len(slow)) == BIG


@pytest.mark.parametrize("event", ["byte", "end"])
async def test_what_the_loop_had_no_turn_to_tell_is_seen_as_well(event):
    """As of a program that was busy with something else while its server hung up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = await connect_tcp(*listener.getsockname(), timeout=5)
        with listener.accept()[0] as peer:
            assert not stream.stale
            if event == "byte":
                peer.send(b"x")
            else:
                peer.close()
            assert stream.stale
        await stream.aclose()


@pytest.mark.parametrize("encrypted", [False, True])
async def test_what_this_side_closes_has_not_ended(certificates, encrypted):
    """A body that goes on to the end of the connection would else count as complete."""
    async with connected(silence, ssl=certificates[0] if encrypted else None) as stream:
        if encrypted:
            await stream.start_tls(certificates[1], "localhost", timeout=5)
        reading = asyncio.create_task(stream.read(10, timeout=5))
        await asyncio.sleep(0.01)
        await stream.aclose()
        with pytest.raises(httpx.ReadError, match="closed on this side"):
            await reading


class Trace:
    """Notes what httpcore's trace extension is told: each name, and what comes with it where that is plain."""

    def __init__(self):
        self.told = []

    async def __call__(self, event, info):
        plain = {name: value if isinstance(value, str | int | float) else ... for name, value in info.items()}
        self.told.append((event, {name: plain[name] for name in plain if name not in UNUSED}))


UNUSED = {"local_address", "socket_options"}


@pytest.mark.parametrize(
    ("scheme", "trusted", "events"), [("http", True, 12), ("https", True, 14), ("https", False, 4), ("none", True, 2)]
)
async def test_a_trace_is_told_of_connecting_what_httpcore_would_tell_it(certificates, scheme, trusted, events):
    """The steps are taken here, and told of as if httpcore took them, whether they succeed or fail."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()
        writer.close()

    tls = certificates[0] if scheme == "https" else None
    server = await asyncio.start_server(serve, "localhost", 0, ssl=tls)
    url = f"{scheme.replace('none', 'http')}://localhost:{server.sockets[0].getsockname()[1]}/"
    if scheme == "none":
        server.close()
    verify = certificates[1] if trusted else ssl.create_default_context()
    told = []
    for transport in (ConnectionStack(verify=verify), httpx.AsyncHTTPTransport(verify=verify)):
        trace = Trace()
        async with httpx.AsyncClient(transport=transport, timeout=5) as client:
            with nullcontext() if events > 4 else pytest.raises(httpx.ConnectError):
                await client.get(url, extensions={"trace": trace})
        told.append([one for one in trace.told if one[0] != "connection.close"])
    server.close()
    await asyncio.sleep(0.01)
    assert told[0] == told[1]
    assert len(told[0]) == events


async def test_a_whole_request_over_tls_on_one_connection(certificates):
    """Through the stack, twice; the second finds the first one's connection."""
    connections = 0

    async def serve(reader, writer):
        nonlocal connections
        connections += 1
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    server = await asyncio.start_server(serve, "localhost", 0, ssl=certificates[0])
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}/"
    async with ConnectionStack(verify=certificates[1]) as stack, httpx.AsyncClient(transport=stack) as client:
        assert [(await client.get(url)).text for _ in range(2)] == ["ok", "ok"]
    server.close()
    assert connections == 1
