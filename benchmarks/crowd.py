"""Several processes that work at the same time, and begin only when all of them are ready."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Barrier
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

PATIENCE = 120.0
"""Seconds that one who is ready waits for the others."""


class Member:
    """One process of a crowd, as it sees itself.

    Attributes:
        place: from 0.
        count: of members.
    """

    def __init__(self, place: int, count: int, gate: Barrier) -> None:
        self.place = place
        self.count = count
        self._gate = gate

    async def gate(self) -> None:
        """Wait until all members have come here, and whoever watches them has looked; twice in all."""
        for _ in range(2):  # to come, and to go
            await asyncio.to_thread(self._gate.wait, PATIENCE)


def crowd(
    count: int,
    cores: Collection[int],
    look: Callable[[], S],
    function: Callable[Concatenate[Member, P], Awaitable[R]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> tuple[list[R], S, S]:
    """What ``count`` processes return that each run a coroutine function, and what was seen at their two gates.

    Args:
        count: of processes.
        cores: that they may use; none leaves them all.
        look: called while all members stand at a gate.
        function: gets the `Member` first; passes two gates, one before and one after what is measured.
        args: of the function.
        kwargs: likewise.

    Raises:
        RuntimeError: one of them failed; its traceback is on standard error.
    """
    context = get_context("spawn")
    gate = context.Barrier(count + 1)
    receivers: list[Connection[R, R]] = []
    processes: list[SpawnProcess] = []
    with pinned(cores):  # processes inherit it
        for place in range(count):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(sender, Member(place, count, gate), function, args, kwargs))
            process.start()
            sender.close()
            receivers.append(receiver)
            processes.append(process)
    try:
        looks = [_look(gate, look) for _ in range(2)]
        results = [receiver.recv() for receiver in receivers]
    except Exception as exc:
        raise RuntimeError(f"a process of {function.__module__} failed") from exc
    finally:
        for process in processes:
            process.join(1.0)
            process.kill()
    return results, looks[0], looks[1]


@contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """Run on these cores, where the system allows to choose."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def halves() -> tuple[set[int], set[int]]:
    """The cores for clients, and the one for a server; both empty where there is no choice."""
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) == 1:
        return set(), set()
    *clients, server = sorted(os.sched_getaffinity(0))
    return set(clients), {server}


def _look(gate: Barrier, look: Callable[[], S]) -> S:
    gate.wait(PATIENCE)
    seen = look()
    gate.wait(PATIENCE)
    return seen


def _run(
    sender: "Connection[object, object]",
    member: Member,
    function: Callable[..., Awaitable[object]],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> None:
    async def main() -> object:
        return await function(member, *args, **kwargs)

    try:
        result = asyncio.run(main())
    except BaseException:
        member._gate.abort()  # noqa: SLF001 - nobody waits for one who will not come
        raise
    sender.send(result)
    sender.close()
    os._exit(0)  # nothing is left to be done
