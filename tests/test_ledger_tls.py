"""A ledger behind TLS: ``rediss://``, with a certificate that is checked, on both connections."""

import asyncio
import itertools
import ssl
from contextlib import asynccontextmanager

import pytest
import trustme

from kimi_async.errors import LedgerUnavailable
from kimi_async.ledger import open_ledger
from kimi_async.ledger import server as redis_server
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits

from .valkey import valkey  # noqa: F401 - a fixture

pytestmark = pytest.mark.real_time

ACCOUNTS = map("behind TLS {}".format, itertools.count())
ONE = RateLimits(concurrency=1)


@pytest.fixture(scope="module")
def authority():
    """Who signs certificates."""
    return trustme.CA()


@pytest.fixture
def url_of(authority, tmp_path, monkeypatch):
    """Makes URLs of a server that it signed for. They name the file that says so."""
    monkeypatch.setattr(redis_server, "ANSWER", 0.5)
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))

    def make(port, scheme="rediss"):
        query = f"?ssl_ca_certs={trusted}" if scheme == "rediss" else ""
        return f"{scheme}://127.0.0.1:{port}{query}"

    return make


class Front:
    """What ends TLS before a server; its connections can be cut."""

    def __init__(self, path):
        self._path = path
        self._open = set()
        self.accepted = 0

    async def serve(self, reader, writer):
        """One connection, both ways."""
        self.accepted += 1
        there_reader, there_writer = await asyncio.open_unix_connection(str(self._path))
        self._open |= {writer, there_writer}
        await asyncio.gather(_pour(reader, there_writer), _pour(there_reader, writer))
        self._open -= {writer, there_writer}

    def cut(self):
        """All connections, without a word."""
        for writer in self._open:
            writer.transport.abort()


async def _pour(reader, writer):
    try:
        while data := await reader.read(65_536):
            writer.write(data)
    except OSError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def front(server, authority, name):
    """Valkey with TLS before it, under a certificate for that name; its `Front`, and its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    it = Front(server.path)
    listening = await asyncio.start_server(it.serve, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield it, listening.sockets[0].getsockname()[1]
        it.cut()


def slots(ledger):
    """Slots in use, as far as it knows."""
    return ledger.usage().concurrency.used


async def test_an_account_behind_tls_is_the_same_account(valkey, authority, url_of):  # noqa: F811
    """What is reserved through TLS is seen past it, and a slot given back there wakes who waits here."""
    account = next(ACCOUNTS)
    async with front(valkey, authority, "127.0.0.1") as (it, port):
        here = await open_ledger(url_of(port), account=account)
        there = await open_ledger(valkey.url, account=account)
        waits, holds = RateLimiter(ONE, ledger=here), RateLimiter(ONE, ledger=there)
        held = await holds.acquire(Cost(10))
        waiting = asyncio.ensure_future(waits.acquire(Cost(20)))
        while there.view().participants[-1].place is None:
            await there.refresh()
        before = asyncio.get_running_loop().time()
        held.end()
        reservation = await waiting
        assert asyncio.get_running_loop().time() - before < 0.5  # not by its own look, a second later
        await there.refresh()
        assert there.usage().tpm.used == 30
        assert it.accepted == 2  # commands, and messages
        reservation.end()
        await here.aclose()
        await there.aclose()


async def test_a_connection_through_tls_that_was_cut_is_made_again(valkey, authority, url_of):  # noqa: F811
    """Both; nothing is entered twice or lost."""
    async with front(valkey, authority, "127.0.0.1") as (it, port):
        ledger = await open_ledger(url_of(port), account=next(ACCOUNTS))
        ledger.configure(ONE)
        charge = await ledger.reserve(Cost(10))
        it.cut()
        ledger.sent(charge)
        await ledger.refresh()
        it.cut()
        ledger.end(charge, answered=True)
        await ledger.refresh()
        assert (slots(ledger), ledger.usage().tpm.used, ledger.usage().requests_sent) == (0, 10, 1)
        await ledger.aclose()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("a stranger signed", "certificate verify failed: unable to get local issuer"),
        ("signed for another", "certificate verify failed: IP address mismatch"),
        ("no TLS there", "does not answer within"),
        ("no TLS here", "Connection closed by server"),
    ],
)
async def test_whom_it_cannot_trust_it_does_not_talk_to(valkey, authority, url_of, case, reason):  # noqa: F811
    """The error says why, and shows no password. A plain server waits for more of what it cannot read."""
    signer = trustme.CA() if case == "a stranger signed" else authority
    name = "valkey.example" if case == "signed for another" else "127.0.0.1"
    async with front(valkey, signer, name) as (_, port):
        url = url_of(valkey.port if case == "no TLS there" else port, "redis" if case == "no TLS here" else "rediss")
        with pytest.raises(LedgerUnavailable, match=f"^rediss?://127.0.0.1:.*{reason}") as raised:
            await open_ledger(url.replace("://", "://:sesame@"))
        assert "sesame" not in str(raised.value)
