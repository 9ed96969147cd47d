"""A conversation with the model: what was said, turn by turn, and as much of it as fits sent along."""

import asyncio
import errno
import math
import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self, Unpack

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .chat import ChatCompletion, as_messages, plain
from .completions import Chat
from .errors import ConfigurationError
from .limiter import RateLimiter
from .models import find
from .parameters import SendOptions, TurnOptions, request_body
from .stream import TextStream
from .tokens import TokenCounter
from .tools import Tool, Toolbox, converse, for_round

Messages = list[Mapping[str, object]]

_CALLING: "ContextVar[tuple[Conversation, ...]]" = ContextVar("conversations whose tools are called", default=())


class Client(Protocol):
    """What a conversation needs of `AsyncKimi`."""

    chat: Chat
    counter: TokenCounter
    limiter: RateLimiter
    model: str | None


@dataclass(slots=True)
class _Turn:
    """A message of the user, and all that came of it. ``tokens`` is its length for each model it was counted for."""

    messages: Messages
    tokens: dict[str, int] = field(default_factory=dict)


def _with_role(message: dict[str, object]) -> dict[str, object]:
    if not isinstance(message.get("role"), str):
        raise ValueError("a message without a role")  # noqa: TRY004 - pydantic wants this one
    return message


class _Saved(BaseModel):
    """The file's form."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    system: str | None
    model: str | None
    turns: list[Annotated[list[Annotated[dict[str, object], AfterValidator(_with_role)]], Field(min_length=1)]]


class Conversation:
    """Turns of user and model, each answer building on what was said before; see ``AsyncKimi.conversation``.

    ::

        conversation = kimi.conversation(system="Be brief.")
        await conversation.ask("Name a river.")
        await conversation.ask("Where does it rise?")

    Sent along is the system prompt and, of the latest turns, as many whole ones as fit: into the model's context and
    into TPM, with ``max_tokens`` for the answer. ``messages`` keeps all of them. A turn that fails, whose stream is
    not read to its end, or whose answer is empty, leaves the conversation as it was. Two turns at once take place one
    after the other.

    Args:
        kimi: the client.
        system: the system prompt.
        model: by default the client's.
        tools: Python functions that the model may call, as in ``AsyncKimi.run_tools``; only ``ask`` runs them.
        **options: of every turn, such as ``max_tokens``.

    Raises:
        ConfigurationError: a tool that cannot be declared.
        TypeError: an option that does not exist.

    Attributes:
        system: may be changed, for the turns to come.
        model: likewise.
    """

    def __init__(
        self,
        kimi: Client,
        *,
        system: str | None = None,
        model: str | None = None,
        tools: Sequence[Tool] = (),
        **options: Unpack[TurnOptions],
    ) -> None:
        self.system = system
        self.model = model or kimi.model
        self._kimi = kimi
        self._toolbox = Toolbox(tools)
        self._options = options
        self._request({}, function="conversation")  # a mistake in the options is told at once
        self._turns: list[_Turn] = []
        self._line = asyncio.Lock()
        self._speaking: asyncio.Task[object] | None = None

    def __repr__(self) -> str:
        return f"<Conversation with {self.model}, {len(self._turns)} turns>"

    @property
    def messages(self) -> Messages:
        """All that was said, the system prompt first; a copy."""
        return deepcopy(
            [*as_messages([], self.system), *(message for turn in self._turns for message in turn.messages)]
        )

    def clear(self) -> None:
        """Forget all turns."""
        self._turns.clear()

    async def ask(self, content: str | Sequence[Mapping[str, object]], **options: Unpack[TurnOptions]) -> str:
        """Say something, and return the text of the answer.

        Args:
            content: a text, or parts such as images; see ``kimi_async.parameters``.
            **options: for this turn, in place of the conversation's.

        Raises:
            KimiError: what ``chat.completions.create`` and ``run_tools`` raise.
        """
        async with self._one_at_a_time():
            fields, sending = self._request(options, function="ask")
            messages, said = await self._fitting(content, fields, sending)

            async def send(conversation: Messages) -> ChatCompletion:
                body = {**for_round(fields, conversation), "messages": conversation}
                return await self._kimi.chat.completions.send(body, **sending)

            if not self._toolbox.declarations:
                completion = await send(messages)
                self._keep([said, plain(completion.choices[0].message)])
                return completion.text
            token = _CALLING.set((*_CALLING.get(), self))
            try:
                answer = await converse(send, messages, self._toolbox)
            finally:
                _CALLING.reset(token)
            self._keep([said, *answer.messages[len(messages) :]])
            return answer.text

    @asynccontextmanager
    async def stream(
        self, content: str | Sequence[Mapping[str, object]], **options: Unpack[TurnOptions]
    ) -> AsyncIterator[TextStream]:
        """Say something, and read the answer as it comes; leaving the block early takes the turn back.

        Raises:
            ConfigurationError: the conversation has tools.
            KimiError: what ``chat.completions.stream`` raises.
        """
        if self._toolbox.declarations:
            raise ConfigurationError("a conversation with tools does not stream; use ask")
        async with self._one_at_a_time():
            fields, sending = self._request(options, function="stream")
            messages, said = await self._fitting(content, fields, sending)
            body = {**fields, "messages": messages}
            async with await self._kimi.chat.completions.open(body, **sending) as chunks:
                yield TextStream(chunks)
                if chunks.exhausted:
                    self._keep([said, plain(chunks.completion.choices[0].message)])

    def _keep(self, messages: Messages) -> None:
        """Remember a turn; not one without an answer, which Kimi would refuse to read again (400, seen in 2026)."""
        if _says_something(messages[-1]):
            self._turns.append(_Turn(messages))

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        task = asyncio.current_task()
        if self in _CALLING.get() or (self._line.locked() and self._speaking is task):
            raise ConfigurationError(
                "this turn would wait for itself: leave the stream's block before the next turn, and let no tool speak"
                " in the conversation that calls it"
            )
        async with self._line:
            self._speaking = task
            yield

    def _request(self, options: TurnOptions, *, function: str) -> tuple[dict[str, object], SendOptions]:
        """A turn's request but for its messages, and how to send it."""
        merged: TurnOptions = {**self._options, **options}
        sending: SendOptions = {
            "extra_body": merged.pop("extra_body", None),
            "timeout": merged.pop("timeout", None),
            "max_wait": merged.pop("max_wait", None),
        }
        tools = self._toolbox.declarations or None
        fields = request_body({"model": self.model, "tools": tools}, merged, function=function)
        if tools and fields.get("n") not in (None, 1):
            raise ConfigurationError(f"n={fields['n']!r}: a tool loop follows one answer")
        return fields, sending

    async def _fitting(
        self, content: str | Sequence[Mapping[str, object]], fields: Mapping[str, object], sending: SendOptions
    ) -> tuple[Messages, Mapping[str, object]]:
        """The messages to send: system prompt, the latest turns that fit, and the new one; and that by itself."""
        said = {"role": "user", "content": deepcopy(content)}  # the caller may go on with the parts
        system = as_messages([], self.system)
        request = {**fields, "messages": [*system, said], **(sending.get("extra_body") or {})}
        model = str(request.get("model", ""))
        room = await self._room(request, model)
        kept: list[_Turn] = []
        for past in reversed(self._turns):
            room -= 0 if math.isinf(room) else await self._tokens(past, model)
            if room < 0:
                break
            kept.append(past)
        return [*system, *(message for past in reversed(kept) for message in past.messages), said], said

    async def _room(self, request: Mapping[str, object], model: str) -> float:
        """Tokens for earlier turns, beside the rest of the request and its answer."""
        known, limits = find(model), self._kimi.limiter.limits
        budgets = [budget for budget in (limits.tpm, limits.tpd) if budget is not None]
        if known is None and not budgets:
            return math.inf
        cost = await self._kimi.counter.cost(request)
        room: list[float] = [budget - cost.tokens for budget in budgets]
        if known is not None:
            room.append(known.context - cost.prompt_tokens - cost.max_tokens)
        return min(room)

    async def _tokens(self, turn: _Turn, model: str) -> int:
        if model not in turn.tokens:
            counter = self._kimi.counter
            empty = await counter.count_prompt([], model=model)
            turn.tokens[model] = await counter.count_prompt(turn.messages, model=model) - empty
        return turn.tokens[model]

    def save(self, path: str | Path) -> None:
        """Write everything said to a JSON file that only its owner can read; all of it or, on an error, nothing.

        Raises:
            OSError: it cannot be written.
            ConfigurationError: a message holds what JSON cannot.
        """
        target = Path(path)
        turns = [[dict(message) for message in turn.messages] for turn in self._turns]
        try:
            content = _Saved(version=1, system=self.system, model=self.model, turns=turns).model_dump_json(indent=1)
        except ValueError as exc:  # PydanticSerializationError is one
            raise ConfigurationError(f"the conversation cannot be written as JSON: {exc}") from exc
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(target.parent))
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=target.parent, delete=False) as copy:
            try:
                copy.write(content)
                copy.flush()
                os.fsync(copy.fileno())  # or a crash of the machine could leave an empty file in the old one's place
                Path(copy.name).replace(target)
            except BaseException:
                Path(copy.name).unlink(missing_ok=True)
                raise

    @classmethod
    def load(
        cls,
        kimi: Client,
        path: str | Path,
        *,
        model: str | None = None,
        tools: Sequence[Tool] = (),
        **options: Unpack[TurnOptions],
    ) -> Self:
        """Go on with a conversation from the file that ``save`` wrote; tools and options are given anew.

        Args:
            kimi: the client.
            path: of the file.
            model: by default the one it was saved with.
            tools: as for a new conversation.
            **options: likewise.

        Raises:
            ConfigurationError: the file holds something else.
            OSError: it cannot be read.
        """
        try:
            saved = _Saved.model_validate_json(Path(path).read_bytes())
        except ValidationError as exc:
            error = exc.errors()[0]
            where = ".".join(map(str, error["loc"]))
            problem = f"{where}: {error['msg']}" if where else error["msg"]
            raise ConfigurationError(f"{path} is no saved conversation: {problem}") from exc
        conversation = cls(kimi, system=saved.system, model=model or saved.model, tools=tools, **options)
        for messages in saved.turns:
            conversation._keep(list(messages))
        return conversation


def _says_something(message: Mapping[str, object]) -> bool:
    return bool(message.get("role") != "assistant" or message.get("content") or message.get("tool_calls"))
