"""The stack of connections, over real sockets to a server that counts them."""

import asyncio
import gc
import socket
import ssl
import sys
import threading
from contextlib import asynccontextmanager, nullcontext

import httpx
import pytest

from kimi_async import connections
from kimi_async.connections import ConnectionStack, tell_when_closed
from kimi_async.errors import ConfigurationError

from .scripted import everything_in

pytestmark = pytest.mark.real_time

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Server:
    """Answers each request when its gate opens; remembers which connection brought which path."""

    def __init__(self):
        self.opened, self.closed, self.served = 0, 0, []
        self.gate = asyncio.Event()
        self.gate.set()
        self.answer = OK
        self.writers = []

    async def handle(self, reader, writer):
        number, self.opened = self.opened, self.opened + 1
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.served.append((number, head.split()[1].decode()))
                await self.gate.wait()
                writer.write(self.answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed += 1
            writer.close()


@asynccontextmanager
async def serving():
    """A server, its base URL, and a stack that is closed afterwards."""
    server = Server()
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    stack = ConnectionStack(verify=ssl.create_default_context())
    try:
        async with stack:
            yield server, "http://{}:{}".format(*listener.sockets[0].getsockname()), stack
        await until(lambda: server.closed == server.opened)
    finally:
        listener.close()
        for writer in server.writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


async def until(condition):
    """Give the loop turns until something holds; a second at most."""
    async with asyncio.timeout(1):
        while not condition():  # noqa: ASYNC110 - the other side of a socket sets no event
            await asyncio.sleep(0.001)


def idle(stack):
    """How many connections nobody uses."""
    return sum(map(len, stack._idle.values()))


async def get(stack, url, *, read=5.0):
    """One request, read to its end."""
    request = httpx.Request("GET", url, extensions={"timeout": httpx.Timeout(5, read=read).as_dict()})
    response = await stack.handle_async_request(request)
    try:
        return await response.aread()
    finally:
        await response.aclose()


async def test_one_after_the_other_share_a_connection():
    """Ten requests, one connection."""
    async with serving() as (server, url, stack):
        for _ in range(10):
            assert await get(stack, url) == b"ok"
        assert server.opened == 1


async def test_the_connection_used_last_is_used_next():
    """Three in flight make three connections; then one at a time keeps to one of them."""
    async with serving() as (server, url, stack):
        await at_once(server, stack, url, 3)
        for _ in range(5):
            await get(stack, f"{url}/later")
        later = [number for number, path in server.served if path == "/later"]
        assert server.opened == 3
        assert len(set(later)) == 1


async def at_once(server, stack, url, number):
    """So many requests in flight together."""
    server.gate.clear()
    had = len(server.served)
    tasks = [asyncio.create_task(get(stack, url)) for _ in range(number)]
    await until(lambda: len(server.served) == had + number)
    server.gate.set()
    assert await asyncio.gather(*tasks) == [b"ok"] * number


async def test_no_two_requests_in_flight_share_a_connection():
    """Fifty at once, twice over: fifty connections, each with one of each round."""
    async with serving() as (server, url, stack):
        for _ in range(2):
            await at_once(server, stack, url, 50)
        assert server.opened == 50
        for round_ in (server.served[:50], server.served[50:]):
            assert sorted(number for number, _ in round_) == list(range(50))


async def test_an_answer_that_is_still_being_read_keeps_its_connection():
    """The next request gets another; closing the answer unread lets its connection be closed, not mixed up."""
    async with serving() as (server, url, stack):
        unread = await stack.handle_async_request(httpx.Request("GET", url))
        assert await get(stack, url) == b"ok"
        assert server.opened == 2
        await unread.aclose()
        assert await get(stack, url) == b"ok"
        assert len(stack._all) == 2


@pytest.mark.parametrize("how", ["dropped", "garbled", "timeout", "cancelled"])
async def test_a_failed_request_does_not_spoil_the_next(how):
    """The transport connects anew; a late answer to the failed request is never taken for the next one's."""
    async with serving() as (server, url, stack):
        if how == "garbled":
            server.answer = b"nonsense\r\n\r\n"
        else:
            server.gate.clear()
        task = asyncio.create_task(get(stack, f"{url}/fails", read=0.05 if how == "timeout" else 5.0))
        await until(lambda: server.served)
        if how == "dropped":
            server.writers[0].transport.abort()
        elif how == "cancelled":
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), httpx.TransportError)
        server.answer = OK
        server.gate.set()
        assert await get(stack, f"{url}/next") == b"ok"
        assert [path for _, path in server.served] == ["/fails", "/next"]
        assert server.opened == 2
        assert len(stack._all) == 1


async def test_cancelled_while_the_answer_is_read():
    """Half a body has come; its connection is not used for another request."""
    async with serving() as (server, url, stack):
        server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
        response = await stack.handle_async_request(httpx.Request("GET", url))
        task = asyncio.create_task(response.aread())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        await response.aclose()
        server.answer = OK
        assert await get(stack, url) == b"ok"
        assert (server.opened, len(stack._all), idle(stack)) == (2, 1, 1)


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced():
    """Between two requests, unseen."""
    async with serving() as (server, url, stack):
        await get(stack, url)
        server.writers[0].close()
        await asyncio.sleep(0.01)
        assert await get(stack, url) == b"ok"
        assert server.opened == 2


async def test_closing_an_answer_twice_returns_its_connection_once():
    """Or two requests would share it."""
    async with serving() as (_server, url, stack):
        response = await stack.handle_async_request(httpx.Request("GET", url))
        await response.aread()
        await response.stream.aclose()
        assert idle(stack) == 1


async def test_all_are_told_once_when_an_answer_is_closed():
    """In order, and whether it had ended; those that ask for it later than the stack come after it."""
    async with serving() as (_server, url, stack):
        for read in (True, False):
            told = []
            response = await stack.handle_async_request(httpx.Request("GET", url))
            tell_when_closed(response, lambda ended, told=told: told.append(("first", ended, idle(stack))))
            tell_when_closed(response, lambda ended, told=told: told.append(("second", ended, idle(stack))))
            if read:
                await response.aread()
            await response.aclose()
            await response.stream.aclose()
            assert told == [("first", read, 1), ("second", read, 1)]


async def test_a_connection_goes_to_one_place():
    """A request to another scheme, host or port gets another one, and the next to the first host gets the first."""
    async with serving() as (server, url, stack):
        for place in (url, url.replace("127.0.0.1", "localhost"), url):
            assert await get(stack, place) == b"ok"
        assert [number for number, _ in server.served] == [0, 1, 0]
        with pytest.raises(httpx.UnsupportedProtocol, match="'ftp://'") as caught:
            await get(stack, "ftp://user:SECRET@kimi.test/?key=SECRET")
        assert "SECRET" not in str(caught.value)


async def test_closing_closes_all():
    """Idle ones and those in use."""
    async with serving() as (server, url, stack):
        await at_once(server, stack, url, 5)
        unread = await stack.handle_async_request(httpx.Request("GET", url))
        await stack.aclose()
        await until(lambda: server.closed == server.opened == 5)
        await unread.aclose()
        assert (idle(stack), stack._all) == (0, [])
        with pytest.raises(RuntimeError, match="were closed"):
            await get(stack, url)


@pytest.mark.parametrize("proxied", [False, True])
async def test_closing_closes_what_is_being_opened(proxied):
    """Nothing is sent over it, nor kept; a proxy's is closed as soon as its answer begins."""
    async with serving() as (server, url, _):
        stack = ConnectionStack(verify=ssl.create_default_context(), proxy=url if proxied else None)
        asking = asyncio.create_task(get(stack, url))
        await asyncio.sleep(0)
        await stack.aclose()
        with nullcontext() if proxied else pytest.raises(httpx.ConnectError):
            assert await asking == b"ok"
        await until(lambda: server.opened == server.closed == 1)
        assert len(server.served) == proxied
        assert idle(stack) == 0


async def test_a_body_without_a_length_is_cut_off_by_closing():
    """Its end is the end of the connection, but not of one that was closed on this side."""
    async with serving() as (server, url, stack):
        server.answer = b"HTTP/1.1 200 OK\r\n\r\nhalf"
        reading = asyncio.create_task(get(stack, url))
        await until(lambda: server.served)
        await asyncio.sleep(0.01)
        await stack.aclose()
        with pytest.raises(httpx.ReadError):
            await reading


@pytest.mark.parametrize("event", ["connect_tcp.complete", "start_tls.started"])
async def test_a_trace_that_fails_leaves_no_connection_open(event):
    """Nobody else knows of it yet."""

    async def trace(name, info):
        if name == f"connection.{event}":
            raise ValueError(name)

    async with serving() as (server, url, stack):
        secure = url.replace("http", "https")
        with pytest.raises(ValueError, match=event):
            await stack.handle_async_request(httpx.Request("GET", secure, extensions={"trace": trace}))
        await until(lambda: server.opened == server.closed == 1)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # of the loop that ended first
def test_the_connections_of_a_loop_that_has_ended_are_not_used_in_another():
    """As of a program that calls ``asyncio.run`` twice; the second may also close what the first has opened."""
    stack = ConnectionStack(verify=ssl.create_default_context())
    served = []

    def serve(peer):
        with peer:
            while data := peer.recv(65_536):
                served.append((peer.getpeername(), data.split()[1]))
                peer.send(OK)

    def accept():
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(peer,), daemon=True).start()

    async def ask(url):
        async with asyncio.timeout(2):
            return await get(stack, url)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        url = "http://{}:{}".format(*listener.getsockname())
        for path in ("/first", "/second"):
            assert asyncio.run(ask(url + path)) == b"ok"
        asyncio.run(stack.aclose())
        gc.collect()
        listener.shutdown(socket.SHUT_RDWR)
    assert [path for _, path in served] == [b"/first", b"/second"]
    assert len({peer for peer, _ in served}) == 2


async def test_all_connections_share_one_tls_context():
    """Loading certificates takes 20 ms; a hundred connections must not take two seconds."""
    verify = ssl.create_default_context()
    stack = ConnectionStack(verify=verify)
    connections = [stack._connection(httpx.URL("https://kimi.test")) for _ in range(3)]
    assert [connection._verify for connection in connections] == [verify] * 3
    await stack.aclose()


# -- proxies --------------------------------------------------------------------------------------------------


def set_proxies(monkeypatch, environment):
    """An environment that has these, and no others."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://api.moonshot.cn", None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "https://api.moonshot.cn", "http://proxy:3128"),
        ({"https_proxy": "http://proxy:3128"}, "https://api.moonshot.cn", "http://proxy:3128"),
        ({"HTTPS_PROXY": "proxy:3128"}, "https://api.moonshot.cn", "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://127.0.0.1:8000", None),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://127.0.0.1:8000", "http://proxy:3128"),
        ({"ALL_PROXY": "http://proxy:3128"}, "https://api.moonshot.cn", "http://proxy:3128"),
        ({"ALL_PROXY": "http://a:1", "HTTPS_PROXY": "http://b:2"}, "https://api.moonshot.cn", "http://b:2"),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "moonshot.cn"}, "https://api.moonshot.cn", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "localhost"}, "https://api.moonshot.cn", "http://p:1"),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, "http://127.0.0.1:8000", None),
    ],
)
def test_proxies_come_from_the_environment(environment, url, proxy, monkeypatch):
    """As with httpx."""
    set_proxies(monkeypatch, environment)
    assert connections._environment_proxy(httpx.URL(url)) == proxy


async def test_requests_go_through_the_environments_proxy(monkeypatch):
    """The proxy is asked for the whole URL; one that was given goes before the environment's."""
    async with serving() as (server, url, stack):
        monkeypatch.setenv("HTTP_PROXY", url)
        monkeypatch.setenv("NO_PROXY", "")
        assert await get(stack, "http://kimi.test/v1/models") == b"ok"
        async with ConnectionStack(proxy=url, verify=stack._verify) as other:
            monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
            assert await get(other, "http://kimi.test/given") == b"ok"
        assert [path for _, path in server.served] == ["http://kimi.test/v1/models", "http://kimi.test/given"]


async def test_each_host_goes_its_own_way(monkeypatch):
    """A connection that an internal host left behind serves no other, nor the proxy's the internal host."""
    async with serving() as (server, url, stack), serving() as (proxy, proxy_url, _):
        set_proxies(monkeypatch, {"HTTP_PROXY": proxy_url, "NO_PROXY": "127.0.0.1"})
        for place in (f"{url}/inside", "http://kimi.test/outside") * 2:
            assert await get(stack, place) == b"ok"
        assert server.served == [(0, "/inside")] * 2
        assert proxy.served == [(0, "http://kimi.test/outside")] * 2
        await stack.aclose()


async def test_no_proxy_can_be_asked_for(monkeypatch):
    """Whatever the environment says."""
    set_proxies(monkeypatch, {"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"})
    async with serving() as (_server, url, stack), ConnectionStack(proxy="", verify=stack._verify) as other:
        assert await get(other, url) == b"ok"
        with pytest.raises(httpx.ConnectError):
            await get(stack, url)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"ALL_PROXY": "socks5://me:SECRET@localhost:1080"},
            "ALL_PROXY='socks5://localhost:1080': .*httpx\\[socks\\]",
        ),
        ({"all_proxy": "socks5h://localhost:1080"}, "all_proxy='socks5h://localhost:1080': .*httpx\\[socks\\]"),
        ({"ALL_PROXY": "socks://me:SECRET@localhost:1080/"}, "ALL_PROXY='socks://localhost:1080/': .*socks5://"),
        ({"HTTPS_PROXY": "http://me:SECRET#1@proxy:80"}, "HTTPS_PROXY='http://proxy:80': .*percent-encode"),
        ({"HTTPS_PROXY": "me:SECRET@proxy:port"}, "HTTPS_PROXY='http://proxy:port': no URL"),
        ({"HTTPS_PROXY": "proxy:port", "ALL_PROXY": "http://b:1"}, "HTTPS_PROXY='http://proxy:port': .*'port'"),
        ({"HTTPS_PROXY": "http://:3128"}, "HTTPS_PROXY='http://:3128': .* and a host"),
    ],
)
async def test_a_proxy_that_is_none_is_told_by_its_name(environment, words, monkeypatch):
    """As our own error, which is not tried again, and without its password."""
    set_proxies(monkeypatch, environment)
    monkeypatch.setitem(sys.modules, "socksio", None)
    async with ConnectionStack(verify=ssl.create_default_context()) as stack:
        with pytest.raises(ConfigurationError, match=words) as caught:
            await get(stack, "https://kimi.test/v1/models")
        assert stack._all == []
    assert "SECRET" not in everything_in(caught.value)


async def test_a_proxy_that_was_given_is_called_so():
    """No variable is to blame."""
    async with ConnectionStack(proxy="ftp://proxy", verify=ssl.create_default_context()) as stack:
        with pytest.raises(ConfigurationError, match=r"^proxy='ftp://proxy': must begin with http://"):
            await get(stack, "https://kimi.test/v1/models")


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), ("nonsense", "CERTIFICATE")])
async def test_certificates_that_are_none_are_told_with_their_file(content, words, tmp_path, monkeypatch):
    """Python tells neither its name nor who named it."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(ConfigurationError, match=r"^SSL_CERT_FILE='.*/ca\.pem': ") as caught:
        ConnectionStack()
    assert words in str(caught.value)
