"""A streamed answer as it comes: rendered in a terminal, or plain."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from kimi_async.chat import ChatCompletion
from kimi_async.client import AsyncKimi
from kimi_async.conversation import Conversation
from kimi_async.errors import StreamBroken
from kimi_async.limiter import RateLimiter
from kimi_async.parameters import ToolOptions

from .blocks import split_blocks
from .terminal import Region, Terminal, in_one_line, printable

THOUGHT = "dim"


class Display(Protocol):
    """Takes an answer piece by piece, inside of ``shown``."""

    def think(self, text: str) -> None:
        """A piece of what the model thinks."""
        ...

    def say(self, text: str) -> None:
        """A piece of the answer."""
        ...

    @asynccontextmanager
    def shown(self) -> AsyncIterator[None]:
        """The time of one answer; at its end, however it ends, all that came is there to stay."""
        ...


async def show_answer(conversation: Conversation, prompt: str, display: Display) -> ChatCompletion:
    """Say something in a conversation and show what comes.

    Raises:
        KimiError: what ``Conversation.stream`` and its stream raise; what had come until then is shown.
    """
    async with display.shown(), conversation.stream(prompt) as stream:
        async for chunk in stream.chunks:
            for choice in chunk.choices:
                display.think(choice.delta.reasoning_content or "")
                display.say(choice.delta.content or "")
            await asyncio.sleep(0)  # or chunks that are there already would keep Ctrl-C waiting
        return stream.completion


class Waiting:
    """What is shown until something comes: what the request waits for, and how long."""

    def __init__(self, limiter: RateLimiter, model: str) -> None:
        self._limiter = limiter
        self._model = model
        self._spinner = Spinner("dots", style="dim")

    @property
    def text(self) -> str:
        """Such as ``waiting 17 s for rpm``."""
        usage = self._limiter.usage()
        if not usage.waiting:
            return f"asking {self._model}"
        seconds = "" if usage.next_in is None else f" {usage.next_in:.0f} s"
        return f"waiting{seconds} for {usage.binding or 'the turn'}"

    def __rich__(self) -> RenderableType:
        self._spinner.update(text=Text(self.text, style="dim"))
        return self._spinner


class PlainDisplay:
    """The answer just as it is, for pipes and files; what the model thinks is left out.

    Args:
        terminal: gets the answer on standard output, and what it waits for wherever there is a screen.
        waiting: what to show until something comes.
    """

    def __init__(self, terminal: Terminal, waiting: Waiting) -> None:
        self._out = terminal.out
        self._region = Region(terminal.status, waiting)
        self._last = ""

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """See `Display`."""
        async with self._region.shown():
            try:
                yield
            finally:
                if self._last not in ("", "\n"):
                    self._write("\n")

    def think(self, text: str) -> None:
        """See `Display`."""

    def say(self, text: str) -> None:
        """See `Display`."""
        if text:
            self._region.remove()
            self._write(printable(text) if self._out.is_terminal else text)

    def _write(self, text: str) -> None:
        self._out.file.write(text)
        self._out.file.flush()
        self._last = text[-1:]


class MarkdownDisplay:
    """The answer rendered, under what the model thought.

    Finished blocks are printed for good. Only the last one, which may still change, is redrawn: of one that is higher
    than the terminal just the end, until it is finished and printed in full.
    """

    def __init__(self, terminal: Terminal, waiting: Waiting) -> None:
        self._console = terminal.out
        self._region = Region(terminal.out, waiting)
        self._thought = ""
        self._answer = ""
        self._begun = False

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """See `Display`."""
        async with self._region.shown():
            try:
                yield
            finally:
                self._region.content = ""
                self._finish_thought()
                self._print_block(self._answer)

    def think(self, text: str) -> None:
        """See `Display`."""
        if not text:
            return
        lines, newline, self._thought = (self._thought + printable(text)).rpartition("\n")
        self._region.content = Text(self._thought, style=THOUGHT)
        if newline:
            self._print(Text(lines, style=THOUGHT))

    def say(self, text: str) -> None:
        """See `Display`."""
        if not text:
            return
        self._region.content = ""
        self._finish_thought()
        piece = printable(text)
        self._answer += piece
        if "\n" in piece or "\r" in piece:  # nothing else finishes a block
            finished, self._answer = split_blocks(self._answer)
            for block in finished:
                self._print_block(block)
        self._region.content = self._spaced(Block(self._answer))

    def _finish_thought(self) -> None:
        if self._thought.strip():
            self._print(Text(self._thought, style=THOUGHT))
        self._thought = ""

    def _print_block(self, text: str) -> None:
        if text.strip():
            self._region.content = ""
            self._print(self._spaced(Block(text)))

    def _spaced(self, block: "Block") -> RenderableType:
        return Group("", block) if self._begun else block

    def _print(self, content: RenderableType) -> None:
        self._console.print(content)
        self._begun = True


class Block:
    """A block of Markdown without the empty lines that rich puts before and after some."""

    def __init__(self, text: str) -> None:
        self._markdown = Markdown(text, hyperlinks=False)  # an address that can be seen is one that can be judged

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._markdown, options, pad=False)
        while lines and not _has_text(lines[0]):
            del lines[0]
        while lines and not _has_text(lines[-1]):
            del lines[-1]
        for line in lines:
            yield from line
            yield Segment.line()


def _has_text(line: list[Segment]) -> bool:
    return any(segment.text.strip() or (segment.style and segment.style.bgcolor) for segment in line)


@dataclass(frozen=True)
class Style:
    """How conversations are held and shown.

    Args:
        terminal: where.
        options: of every turn.
        plain: without Markdown.
    """

    terminal: Terminal
    options: ToolOptions
    plain: bool = False

    def conversation(self, kimi: AsyncKimi, load: Path | None = None) -> Conversation:
        """A new one, or the one in a file.

        Raises:
            ConfigurationError: the file holds something else.
            OSError: it cannot be read.
        """
        return kimi.conversation(**self.options) if load is None else Conversation.load(kimi, load, **self.options)

    def display(self, kimi: AsyncKimi, conversation: Conversation) -> Display:
        """For one answer."""
        waiting = Waiting(kimi.limiter, conversation.model or "")
        plain = self.plain or not self.terminal.out.is_terminal
        return PlainDisplay(self.terminal, waiting) if plain else MarkdownDisplay(self.terminal, waiting)

    def cut_off(self, completion: ChatCompletion) -> str:
        """What is to say of an answer that did not end by itself; empty for others."""
        reason = completion.choices[0].finish_reason
        if reason == "length":
            return f"cut off at {self.options.get('max_tokens'):,} tokens; --max-tokens raises that"
        return "" if reason in ("stop", None) else f"ended by {reason}"


def problem(error: Exception) -> str:
    """An error in one line."""
    text = in_one_line(str(error)) or type(error).__name__
    return f"{text}; what is shown is incomplete" if isinstance(error, StreamBroken) else text
