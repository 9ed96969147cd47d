"""The terminal: standard output and error, the part of it that is redrawn, and lines in passing."""

import asyncio
import contextlib
import io
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

HAS_TERMIOS = find_spec("termios") is not None  # not on Windows

REFRESH = 0.08
"""Seconds between two frames, at least."""

BUSY = 0.2
"""The share of the time that drawing may take: a block of a thousand lines is drawn less often."""

_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)])
_OBEYED = {code: None for code in _CONTROLS if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Without what a terminal would obey: all control characters but newlines and tabs."""
    return text.translate(_OBEYED)


def in_one_line(text: str) -> str:
    """Without any control character, so that it stays in its column."""
    return " ".join(text.split()).translate(_CONTROLS)


class Output(Console):
    """Standard output: when nobody reads it any more, the command ends as any program does.

    Rich would exit by itself, in whichever task wrote.
    """

    def on_broken_pipe(self) -> None:
        """Called by rich, from 13.8."""
        raise BrokenPipeError


class Aside(Console):
    """Standard error: when nobody reads it any more, the command goes on in silence."""

    def on_broken_pipe(self) -> None:
        """Called by rich, from 13.8."""
        self.quiet = True
        discard(self.file)


def discard(stream: IO[str] | None) -> None:
    """Flush what can be written; all else goes nowhere, or the interpreter would complain at its end."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError):
            os.dup2(null, stream.fileno())
        os.close(null)


class Terminal:
    """Where a command shows things: ``out`` is standard output, ``err`` standard error."""

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # an answer that the locale cannot spell is still an answer
        # Said outright, for an environment with FORCE_COLOR would make rich take a pipe for a terminal.
        out, err = (stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))
        self.out = Output(force_terminal=out, highlight=False, markup=False, emoji=False)
        self.err = Aside(force_terminal=err, stderr=True, highlight=False, markup=False, emoji=False)

    @property
    def status(self) -> Console:
        """Where to show what is only of the moment: whichever is a terminal."""
        return self.out if self.out.is_terminal else self.err

    def note(self, text: object, style: str = "dim") -> None:
        """A line in passing, on standard error.

        If both are one terminal it goes through the console that redraws, which puts it above.
        """
        console = self.out if self.out.is_terminal and self.err.is_terminal else self.err
        console.print(Text(printable(str(text)), style=style), soft_wrap=True)


class Region:
    """The last lines of a terminal, redrawn until they are finished; nothing at all elsewhere.

    Args:
        console: of the terminal.
        content: what to show; may be replaced at any time.
    """

    def __init__(self, console: Console, content: RenderableType) -> None:
        self.content = content
        self._console = console
        self._live = Live(Text(), console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def draw(self) -> None:
        """A frame, now."""
        if self._live is not None and self._live.is_started:
            self._live.update(Tail(self.content), refresh=True)

    def remove(self) -> None:
        """Leave no trace of it."""
        if self._live is not None:
            self._live.update(Text())
            self._live.stop()

    @contextlib.asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Drawn for as long as the block lasts."""
        if self._live is None:
            yield
            return
        self._live.start()
        ticker = asyncio.create_task(self._redraw())
        try:
            with contextlib.nullcontext() if self._console.stderr else unechoed():  # a pager may own the keyboard
                yield
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
            self.remove()

    async def _redraw(self) -> None:
        while True:
            began = time.perf_counter()
            self.draw()
            await asyncio.sleep(max(REFRESH, (time.perf_counter() - began) / BUSY))


class Tail:
    """As many of the last lines as the terminal has room for: what is written next is always in sight."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._content, options.update(height=None), pad=False)
        room = max(console.height - 2, 1)
        for number, line in enumerate(lines[-room:]):
            if number:
                yield Segment.line()
            yield from line


@contextlib.contextmanager
def unechoed() -> Iterator[None]:
    """What is typed meanwhile is not written into the picture; Ctrl-C works."""
    if not HAS_TERMIOS or sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    import termios  # noqa: PLC0415 - as above

    descriptor = sys.stdin.fileno()
    if not _in_foreground(descriptor):  # a job in the background would be stopped for this
        yield
        return
    before, quiet = termios.tcgetattr(descriptor), termios.tcgetattr(descriptor)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _in_foreground(descriptor: int) -> bool:
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # ENOTTY: not the terminal that controls this process
        return False
