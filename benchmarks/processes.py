"""One process for each measurement: clients on one core, the gateway on another."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

from kimi_async.mock import MockSettings, spawn

P = ParamSpec("P")
R = TypeVar("R")

CLIENT, GATEWAY = 0, 1
"""Which of the cores that this process may use."""


@contextmanager
def gateway(settings: MockSettings) -> Iterator[str]:
    """The base URL of a mock gateway in a process of its own, on its own core."""
    with _pinned(GATEWAY):  # processes inherit it
        server = spawn(settings)
        base_url = server.__enter__()
    try:
        yield base_url
    finally:
        server.__exit__(None, None, None)


def measured(function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of a coroutine function that runs in a fresh process, on the clients' core.

    The process ends with the measurement: what is still open or under way then is dropped, not closed in order.

    Raises:
        RuntimeError: it failed; its traceback is on standard error.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with _pinned(CLIENT):
        process = context.Process(target=_measure, args=(sender, function, args, kwargs))
        process.start()
    sender.close()
    try:
        result: R = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__module__} failed in its process: exit status {process.exitcode}") from None
    process.join()
    return result


def _measure(
    sender: "Connection[object, object]",
    function: Callable[..., Awaitable[object]],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    async def main() -> object:
        return await function(*args, **kwargs)

    sender.send(loop.run_until_complete(main()))
    sender.close()
    os._exit(0)  # closing a thousand connections takes longer than measuring them


@contextmanager
def _pinned(core: int) -> Iterator[None]:
    """Run on one core, where the system allows to choose and has more than one."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(allowed)[core % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
