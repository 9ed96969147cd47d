"""The gateway on a loopback socket: for the command line, on a test's own loop, and as a process of its own."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from kimi_async.tokens import TokenCounter

from .exchange import ABORT
from .gateway import Gateway
from .requests import CountPrompt
from .settings import MockSettings

LOOPBACK = "127.0.0.1"

_BACKLOG = 4_096  # connections that a client may open in one burst
_KEEP_ALIVE = 75  # seconds; nginx's default. uvicorn's 5 would close connections between two requests at RPM 3.


class _AbortableProtocol(HttpToolsProtocol):
    """uvicorn's, with an ASGI extension that closes the connection: ASGI itself has no way to say nothing."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}


@asynccontextmanager
async def running(
    settings: MockSettings,
    *,
    host: str = LOOPBACK,
    port: int = 0,
    count_prompt: CountPrompt | None = None,
) -> AsyncIterator[str]:
    """Serve on the running loop for as long as the block lasts.

    It uses uvicorn's HTTP protocol without ``uvicorn.Server``, whose signal handlers and ticks a test's loop
    does not want, and which would wait for requests in flight at the end; here they are cut off.

    Args:
        settings: of the gateway.
        host: address to listen on.
        port: 0 takes a free one.
        count_prompt: counts tokens; default Kimi's vocabulary, which takes about half a second to load.

    Yields:
        The base URL for clients, such as ``http://127.0.0.1:8000/v1``; statistics are at ``/stats`` under it.

    Raises:
        OSError: the address is taken.
    """
    gateway = Gateway(settings, count_prompt or await _kimi_vocabulary(), clock=time.monotonic)
    config = uvicorn.Config(
        gateway,
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
    )
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: _AbortableProtocol(config, state, {}), host, port, backlog=_BACKLOG
    )
    try:
        yield f"http://{host}:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # the turn in which the connections are closed
        if state.tasks:
            await asyncio.wait(state.tasks)


def serve(
    settings: MockSettings,
    host: str = LOOPBACK,
    port: int = 0,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until interrupted, on uvloop where there is one.

    Args:
        settings: of the gateway.
        host: address to listen on.
        port: 0 takes a free one.
        on_ready: called once with the base URL, as soon as connections are accepted.

    Raises:
        KeyboardInterrupt: how it ends.
        OSError: the address is taken.
    """

    async def serve_forever() -> None:
        async with running(settings, host=host, port=port) as base_url:
            if on_ready is not None:
                on_ready(base_url)
            await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
        runner.run(serve_forever())


@contextmanager
def spawn(settings: MockSettings, *, port: int = 0) -> Iterator[str]:
    """Serve from a process of its own, which dies with the block or with this process, whichever ends first.

    Args:
        settings: of the gateway.
        port: 0 takes a free one.

    Yields:
        The base URL, once connections are accepted. Blocks until then, about a second.

    Raises:
        RuntimeError: the process ended before it was ready; what it said is on standard error.
    """
    command = [sys.executable, "-m", "kimi_async.mock", str(port)]
    # A session of its own: Ctrl-C in the terminal is for us, and our requests in flight still want their answers.
    with subprocess.Popen(  # noqa: S603 - our own
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            # The pipe stays open as the child's sign that we live: the system closes it however we end.
            process.stdin.write(settings.to_json() + b"\n")
            process.stdin.flush()
            base_url = process.stdout.readline().decode().strip()
            if not base_url:
                raise RuntimeError(f"the mock gateway did not start: exit status {process.wait()}")
            yield base_url
        finally:
            process.kill()


async def _kimi_vocabulary() -> CountPrompt:
    counter = TokenCounter()
    await counter.load()
    return lambda messages, tools, model: counter.prompt_tokens(messages, tools, model=model)


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not there on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
