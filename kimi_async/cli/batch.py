"""``kimi-async batch``."""

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from kimi_async.batch import BatchRun, Defaults, OutputFile, survey
from kimi_async.client import AsyncKimi
from kimi_async.errors import AuthenticationError, ConfigurationError
from kimi_async.events import Event, Refused, Retrying

from .gateway import GatewayOptions
from .options import ANSWERED, FAILED, INTERRUPTED, STOPPED, USAGE, LimitOptions, on_disk
from .progress import Progress, summary


def batch(
    input: Annotated[str, Parameter(name="INPUT")],  # noqa: A002 - its name to the user
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    model: str | None = None,
    max_tokens: int | None = None,
    system: str | None = None,
    temperature: float | None = None,
    limits: LimitOptions = LimitOptions(),  # noqa: B008 - frozen
    gateway: GatewayOptions = GatewayOptions(),  # noqa: B008 - frozen
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Answer a file of prompts.

    Each line of INPUT is a request in OpenAI's or Kimi's Batch form, {"prompt": "..."}, {"messages": [...]}, or a
    JSON string. Answers are appended to OUTPUT as they come. Run the same command again to go on after a stop:
    what OUTPUT answers already is skipped, what failed is tried again.

    Args:
        input: A JSONL file, or - for standard input.
        output: The file of answers, in Batch output form.
        model: For lines that name none.
        max_tokens: For lines that set none. All of it is charged against TPM and TPD, whatever is generated.
        system: A system message for lines that have none.
        temperature: For lines that set none.
        limits: What the account may do.
        gateway: Where requests go.
        quiet: No progress and no summary.
    """
    defaults = Defaults(model=model, max_tokens=max_tokens, temperature=temperature, system=system)
    rate_limits = limits.rate_limits()
    with on_disk(input) as source:
        if output.exists() and output.samefile(source):
            raise ConfigurationError(f"INPUT and OUTPUT are both {output}; answers need a file of their own")
        names = survey(source)

        async def run() -> int:
            watcher = _Watcher()
            async with gateway.client(rate_limits, on_event=watcher.on_event) as kimi:
                with OutputFile(output) as answers:
                    total = len(names - answers.answered)
                    names.clear()
                    work = BatchRun(kimi, source, answers, defaults=defaults)
                    return await _watched(work, kimi, watcher, Progress(work, kimi, total), quiet=quiet)

        return asyncio.run(run())


async def _watched(work: BatchRun, kimi: AsyncKimi, watcher: "_Watcher", progress: Progress, *, quiet: bool) -> int:
    """Run a batch under the eyes of the user; the exit status."""
    interrupts = _Interrupts(work)
    ticker = None if quiet else asyncio.create_task(progress.show(watcher.console))
    trouble: Exception | None = None
    try:
        with interrupts:
            await work.run()
    except asyncio.CancelledError:
        if interrupts.count < 2:
            raise
    except OSError as exc:
        trouble = exc
    finally:
        if ticker is not None:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
    if not quiet:
        print(summary(work, kimi, progress, watcher.counts))
    return _status(work, interrupts, trouble, watcher.console)


def _status(work: BatchRun, interrupts: "_Interrupts", trouble: Exception | None, console: Console) -> int:
    again = "run the same command again to go on"
    if trouble is not None:
        console.print(f"kimi-async: stopped: {trouble}; {again}", markup=False, highlight=False)
        return STOPPED
    if interrupts.count:
        console.print(f"kimi-async: interrupted; {again}")
        return INTERRUPTED
    if work.stopped_by is not None:
        console.print(f"kimi-async: stopped: {work.stopped_by}; {again}", markup=False, highlight=False)
        return USAGE if isinstance(work.stopped_by, AuthenticationError) else STOPPED
    return FAILED if work.tally.failed else ANSWERED


class _Watcher:
    """Counts refusals and retries, and tells the user what they should know."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.counts: Counter[str] = Counter()

    def on_event(self, event: Event) -> None:
        if isinstance(event, Refused):
            self.counts[f"{event.budget} refused"] += 1
        elif isinstance(event, Retrying):
            self.counts[f"{event.error} retried"] += 1
        else:
            self.console.print(f"kimi-async: {event}", markup=False, highlight=False)


class _Interrupts:
    """The first Ctrl-C sends nothing more and finishes what is in flight; the second stops at once."""

    def __init__(self, work: BatchRun) -> None:
        self.count = 0
        self._work = work

    def __enter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows: there Ctrl-C stops at once
                self._loop.add_signal_handler(number, self._interrupt)

    def __exit__(self, *exc_info: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                self._loop.remove_signal_handler(number)

    def _interrupt(self) -> None:
        self.count += 1
        if self.count == 1:
            self._work.stop()
            print("kimi-async: finishing what is in flight; Ctrl-C again stops at once", file=sys.stderr)
        elif self._task is not None:
            self._task.cancel()
