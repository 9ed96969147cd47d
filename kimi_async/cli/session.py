"""An interactive conversation in a terminal."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.table import Table

from kimi_async.chat import ChatCompletion
from kimi_async.client import AsyncKimi
from kimi_async.conversation import Conversation
from kimi_async.errors import ConfigurationError, KimiError
from kimi_async.limits import BUDGETS, BudgetUsage
from kimi_async.models import find, live_models, money

from .display import Style, problem, show_answer
from .gateway import SIGNS, currency_of
from .options import ANSWERED
from .terminal import in_one_line

Command = Callable[[str], Awaitable[None] | None]


@dataclass
class Spent:
    """What the answers of a session were billed."""

    answers: int = 0
    stopped: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    unpriced: int = 0


class Session:
    """Reads what the user says, shows what the model answers, until the user leaves.

    Args:
        kimi: the client.
        conversation: to begin with.
        style: of this conversation and those that /load brings.
        history: of what was typed; by default a file that only its owner can read.
    """

    def __init__(
        self, kimi: AsyncKimi, conversation: Conversation, style: Style, history: History | None = None
    ) -> None:
        self.conversation = conversation
        self.spent = Spent()
        self._kimi = kimi
        self._style = style
        self._terminal = style.terminal
        self._history = history or _history()
        self._left = False
        self._commands: dict[str, tuple[str, str, Command]] = {
            "/system": ("[TEXT]", "show or set the system prompt; - removes it", self._system),
            "/model": ("[NAME]", "show the models, or go on with another", self._model),
            "/save": ("FILE", "write the conversation", self._save),
            "/load": ("FILE", "go on with one that was saved", self._load),
            "/usage": ("", "the account's budgets, and what this session took", self._usage),
            "/clear": ("", "forget what was said", self._clear),
            "/help": ("", "this", self._help),
            "/exit": ("", "leave; so does Ctrl-D", self._exit),
        }

    async def run(self) -> int:
        """The whole session; its exit status."""
        prompts: PromptSession[str] = PromptSession(
            HTML("<b>&gt;</b> "),
            history=self._history,
            completer=_Completer(list(self._commands)),
            complete_while_typing=False,
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation="  ",
        )
        self._terminal.note(f"{self.conversation.model}; /help for commands, Alt-Enter for a new line, Ctrl-D leaves")
        while not self._left:
            try:
                text = await prompts.prompt_async()
            except EOFError:
                break
            if text.strip():
                await self._take(text)
        return ANSWERED

    async def _take(self, text: str) -> None:
        work = self._obey(text) if text.startswith("/") else self._say(text)
        try:
            done = await interruptible(work)
        except (KimiError, OSError) as exc:
            self._terminal.note(problem(exc), style="red")
            return
        if not done:
            self.spent.stopped += not text.startswith("/")
            self._terminal.note("stopped" if text.startswith("/") else "stopped; the question is taken back")

    async def _say(self, text: str) -> None:
        completion = await show_answer(self.conversation, text, self._style.display(self._kimi, self.conversation))
        self._book(completion)
        if cut := self._style.cut_off(completion):
            self._terminal.note(cut)
        self._terminal.out.print()

    def _book(self, completion: ChatCompletion) -> None:
        self.spent.answers += 1
        if (usage := completion.usage) is None:
            return
        self.spent.prompt_tokens += usage.prompt_tokens
        self.spent.completion_tokens += usage.completion_tokens
        price = money(
            completion.model,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens or 0,
            currency=currency_of(self._kimi.base_url),
        )
        self.spent.unpriced += price is None
        self.spent.money += price or 0.0

    # -- commands ---------------------------------------------------------------------------------------------

    async def _obey(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        name = name.strip()
        if name not in self._commands:
            known = " ".join(self._commands)
            self._terminal.note(f"no command {in_one_line(name)}; there are {known} (a space before / says it)")
            return
        if (waiting := self._commands[name][2](argument.strip())) is not None:
            await waiting

    def _system(self, text: str) -> None:
        if text:
            self.conversation.system = None if text == "-" else text
        self._terminal.note(f"system: {self.conversation.system or 'none'}")

    async def _model(self, name: str) -> None:
        if not name:
            self._terminal.out.print(await self._models())
            return
        self.conversation.model = name
        model = find(name)
        about = "not known here" if model is None else f"context {model.context:,}"
        retired = f", retired {model.retired}" if model and model.retired else ""
        self._terminal.note(f"model: {name} ({about}{retired})")

    async def _models(self) -> Table:
        """Those of the account, or, where Kimi does not say, those that are known to live."""
        try:
            contexts = {model.id: model.context_length for model in await self._kimi.models.list()}
        except KimiError as exc:
            self._terminal.note(f"the account's models are not to be had: {problem(exc)}")
            contexts = {name: model.context for name in live_models() if (model := find(name))}
        table = Table.grid(padding=(0, 2))
        for name, context in contexts.items():
            mark = "*" if name == self.conversation.model else " "
            table.add_row(mark, in_one_line(name), f"{context:,} tokens" if context else "")
        return table

    def _save(self, name: str) -> None:
        if not name:
            self._terminal.note("/save needs the name of a file")
            return
        self.conversation.save(_path(name))
        self._terminal.note(f"saved to {name}")

    def _load(self, name: str) -> None:
        if not name:
            self._terminal.note("/load needs the name of a file")
            return
        self.conversation = self._style.conversation(self._kimi, _path(name))
        said = sum(message.get("role") == "user" for message in self.conversation.messages)
        self._terminal.note(f"{said} turns with {self.conversation.model}")

    def _usage(self, _: str) -> None:
        usage, spent = self._kimi.limiter.usage(), self.spent
        table = Table.grid(padding=(0, 2))
        for budget in BUDGETS:
            taken: BudgetUsage = getattr(usage, budget)
            table.add_row(budget, f"{taken.used:,} / {'unlimited' if taken.limit is None else f'{taken.limit:,}'}")
        stopped = f", {spent.stopped} stopped, whose tokens are not known" if spent.stopped else ""
        table.add_row("answers", f"{spent.answers}{stopped}")
        table.add_row(
            "tokens", f"{spent.prompt_tokens:,} of prompt + {spent.completion_tokens:,} of completion billed"
        )
        unpriced = f", {spent.unpriced} answers of unknown price left out" if spent.unpriced else ""
        sign = SIGNS[currency_of(self._kimi.base_url)]
        table.add_row("money", f"{sign}{spent.money:.4f} at list price{unpriced}")
        self._terminal.out.print(table)

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        self._terminal.note("nothing was said")

    def _help(self, _: str) -> None:
        table = Table.grid(padding=(0, 2))
        for name, (argument, purpose, _command) in self._commands.items():
            table.add_row(f"{name} {argument}", purpose)
        table.add_row("Alt-Enter", "a new line; pasted lines stay together")
        table.add_row("Ctrl-C", "stops an answer, or clears the line")
        self._terminal.out.print(table)

    def _exit(self, _: str) -> None:
        self._left = True


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as exc:
        raise ConfigurationError(f"{name}: there is no such user, or no home") from exc


async def interruptible(work: Coroutine[None, None, None]) -> bool:
    """Do it, unless Ctrl-C ends it first; whether it was done."""
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(task.cancel))
    try:
        await task
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        return False
    finally:
        signal.signal(signal.SIGINT, before)
    return True


def _keys() -> KeyBindings:
    """Enter sends, Alt-Enter is a new line, Ctrl-C clears."""
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    @keys.add("<sigint>")
    def _clear(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return keys


class _Completer(Completer):
    """Names of commands, of models, of files."""

    def __init__(self, commands: list[str]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        name, space, argument = document.text_before_cursor.partition(" ")
        if not name.startswith("/"):
            return
        if not space:
            yield from _beginning_with(name, self._commands)
        elif name == "/model":
            yield from _beginning_with(argument, live_models())
        elif name in ("/save", "/load"):
            yield from self._paths.get_completions(Document(argument), complete_event)


def _beginning_with(text: str, words: Iterable[str]) -> Iterator[Completion]:
    return (Completion(word, start_position=-len(text)) for word in words if word.startswith(text))


def _history() -> History:
    """What was typed, kept for the next session where it can be kept to oneself."""
    path = platformdirs.user_state_path("kimi_async") / "chat_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return _PrivateHistory(path)


class _PrivateHistory(FileHistory):
    """A full disk ends no conversation."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError, UnicodeError):
            super().store_string(string)
