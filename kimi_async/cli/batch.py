"""``kimi-async batch``."""

import asyncio
import contextlib
import signal
from collections import Counter
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from kimi_async.batch import BatchRun, Defaults, OutputFile, survey
from kimi_async.client import AsyncKimi
from kimi_async.errors import AuthenticationError, ConfigurationError
from kimi_async.events import Event, Refused, Retrying

from .gateway import GatewayOptions, currency_of
from .options import ANSWERED, FAILED, INTERRUPTED, STOPPED, USAGE, LimitOptions, on_disk, what_failed
from .progress import Progress, summary
from .terminal import Terminal, printable

AGAIN = "run the same command again to go on"


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
        input: A JSONL file or a pipe, or - for standard input.
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
    if str(output) == "-":
        raise ConfigurationError("OUTPUT is read again when a run is resumed: name a file for it")
    with on_disk(input) as source:
        if output.exists() and output.samefile(source):
            raise ConfigurationError(f"INPUT and OUTPUT are both {output}; answers need a file of their own")
        names = survey(source)

        async def run() -> int:
            watcher = _Watcher()
            async with gateway.client(rate_limits, on_event=watcher.on_event) as kimi:
                with OutputFile(output) as answers:
                    total = sum(name not in answers.answered for name in names)
                    names.clear()
                    currency = currency_of(kimi.base_url)
                    work = BatchRun(kimi, source, answers, defaults=defaults, currency=currency)
                    return await _watched(work, kimi, watcher, Progress(work, kimi, total), quiet=quiet)

        return asyncio.run(run())


async def _watched(work: BatchRun, kimi: AsyncKimi, watcher: "_Watcher", progress: Progress, *, quiet: bool) -> int:
    """Run a batch under the eyes of the user; the exit status."""
    interrupts = _Interrupts(work, watcher)
    ticker = None if quiet else asyncio.create_task(progress.show(watcher.console))
    trouble: OSError | None = None
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
    status, why = _ended(work, progress, trouble, interrupted=interrupts.count > 0)
    if why:
        watcher.say(f"{why}; {AGAIN}")
    return status


def _ended(work: BatchRun, progress: Progress, trouble: OSError | None, *, interrupted: bool) -> tuple[int, str]:
    """The exit status, and why there is more to do."""
    if trouble is not None:
        return STOPPED, f"stopped: {what_failed(trouble)}"
    if interrupted:
        return INTERRUPTED, "interrupted"
    if work.stopped_by is not None:
        status = USAGE if isinstance(work.stopped_by, AuthenticationError) else STOPPED
        return status, f"stopped: {work.stopped_by}"
    if (missing := progress.total - progress.done) > 0:
        return STOPPED, f"stopped: INPUT was changed meanwhile, {missing:,} of its lines are gone"
    return FAILED if work.tally.failed else ANSWERED, ""


class _Watcher:
    """Counts refusals and retries, and tells the user what they should know."""

    def __init__(self) -> None:
        self.console = Terminal().err
        self.counts: Counter[str] = Counter()

    def say(self, text: object) -> None:
        """A line on standard error; one that cannot be written ends no batch."""
        with contextlib.suppress(OSError):
            self.console.print(Text(printable(f"kimi-async: {text}")), soft_wrap=True)

    def on_event(self, event: Event) -> None:
        if isinstance(event, Refused):
            self.counts[f"{event.budget} refused"] += 1
        elif isinstance(event, Retrying):
            self.counts[f"{event.error} retried"] += 1
        else:
            self.say(event)


class _Interrupts:
    """The first Ctrl-C sends nothing more and finishes what is in flight; the second stops at once."""

    def __init__(self, work: BatchRun, watcher: _Watcher) -> None:
        self.count = 0
        self._work = work
        self._watcher = watcher

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
            self._watcher.say("finishing what is in flight; Ctrl-C again stops at once")
        elif self._task is not None:
            self._task.cancel()
