"""One process for each measurement: clients on one core, the gateway on another."""

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec, TypeVar

from kimi_async.mock import MockSettings, spawn

from . import venvs
from .contenders import CONTENDERS
from .contenders.contract import Account, Outcome, Request
from .lanes import Lane

P = ParamSpec("P")
R = TypeVar("R")

CLIENT, GATEWAY = 0, -1
"""Which of the cores that this process may use: the last one is the gateway's, as in `crowd.halves`."""

IMPORTS = 120.0
"""Seconds that a contender may take to be imported and opened; as many are, at times, as there are lanes."""

SPARE = 30.0
"""Seconds beside those that a scenario has patience for: then a process is killed that does not stop itself."""


GRACE = 2.0
"""Seconds that it takes at most to end, after its answer or its failure."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What one contender made of one file of requests.

    Attributes:
        outcomes: in the order of the requests.
        cpu: seconds of its process, user and system, from when it was ready to send.
        peak_memory: bytes that it had resident at most, the interpreter and its imports included.
        imported: seconds that the import of its packages took.
    """

    outcomes: tuple[Outcome, ...]
    cpu: float
    peak_memory: int
    imported: float

    @property
    def answered(self) -> int:
        """Requests."""
        return sum(outcome.answered for outcome in self.outcomes)

    @property
    def seconds(self) -> float:
        """From the first submission to the end of the last request, answered or given up."""
        first = min((outcome.submitted for outcome in self.outcomes), default=0.0)
        return max((outcome.finished for outcome in self.outcomes), default=0.0) - first


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


def contest(
    name: str, account: Account, requests: Sequence[Request], *, patience: float, lane: Lane | None = None
) -> Contest:
    """What a contender makes of requests that are all submitted at once, in a fresh process on the clients' core.

    Args:
        name: in `contenders.CONTENDERS`; the process runs in its environment.
        account: what it is told.
        requests: in the order of submission.
        patience: seconds, after which it is stopped; what is unanswered then is lost.
        lane: where it waits, imported and opened, for those that begin with it.

    Raises:
        Stopped: the lane was stopped.
        FileNotFoundError: its environment has not been made.
        RuntimeError: its process failed; the message ends with what it printed.
    """
    job = {
        "contender": name,
        "account": asdict(account),
        "requests": [asdict(request) for request in requests],
        "patience": patience,
    }
    result = json.loads(_worker(name, json.dumps(job), lane or Lane(), timeout=_longest(name, patience)))
    outcomes = tuple(Outcome(**outcome) for outcome in result.pop("outcomes"))
    return Contest(outcomes, **result)


def _longest(name: str, patience: float) -> float:
    return CONTENDERS[name].settling + patience + SPARE


def _worker(name: str, job: str, lane: Lane, *, timeout: float) -> str:
    """What the worker answers. It runs in an empty folder: some packages read settings from where they are."""
    with TemporaryDirectory() as folder, (Path(folder) / "stderr").open("w+", errors="replace") as printed:
        process = subprocess.Popen(
            [venvs.python(name), "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            encoding="utf-8",
            cwd=folder,
            env=environment(),
            start_new_session=True,  # Ctrl-C in the terminal is for us
        )
        lane.watch(process)
        answer = ""
        with suppress(BrokenPipeError), process:  # whoever hears nothing any more has said why
            try:
                if _said(process, job, timeout=IMPORTS):
                    _pin(process.pid, CLIENT)  # no sooner: while it imports, only real minutes are under way
                    lane.ready()
                    answer = _said(process, "begin", timeout=timeout)
            finally:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
                process.kill()
        lane.check()
        if not answer:
            printed.seek(0)
            raise RuntimeError(f"{name} failed in its process: exit status {process.returncode}\n{printed.read()}")
        return answer


def _said(process: "subprocess.Popen[str]", line: str, *, timeout: float) -> str:
    """The line that a process answers to one; nothing if it ends before, or is killed after so many seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    end = threading.Timer(timeout, process.kill)
    end.daemon = True
    end.start()
    try:
        print(line, file=process.stdin, flush=True)
        return process.stdout.readline()
    finally:
        end.cancel()


def isolate() -> None:
    """Have this process, and all that it starts, live in that `environment`."""
    kept = environment()
    os.environ.clear()
    os.environ.update(kept)


def environment() -> dict[str, str]:
    """Without what would make a contender go elsewhere, or by other settings than those that it is told."""
    foreign = ("OPENAI_", "LITELLM_", "MOONSHOT_", "KIMI_", "PYTHON")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and not name.lower().endswith("_proxy")
    }
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else its import asks the network for prices
    return {**kept, **local, "PYTHONPATH": str(Path(__file__).parent.parent)}


@contextmanager
def _pinned(core: int) -> Iterator[None]:
    """Run on one core, where the system allows to choose and has more than one."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _only(core))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _pin(pid: int, core: int) -> None:
    """Keep a process, with all threads that it has and will have, on one core from now on, as in `_pinned`."""
    if hasattr(os, "sched_setaffinity"):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), _only(core))


def _only(core: int) -> set[int]:
    allowed = sorted(os.sched_getaffinity(0))
    return {allowed[core % len(allowed)]}
