"""The tool loop: ask, run the tools that the model calls, send back what they say, until it answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Self

from pydantic import Field

from .chat import ChatCompletion, MessageInput, ToolCall, plain
from .errors import ConfigurationError, InvalidResponseError, KimiError, ToolRoundsExceeded
from .functions import InvalidArguments, PythonFunction

Tool = Callable[..., object] | Mapping[str, object]
"""A Python function, sync or async, or the declaration of one of Kimi's own functions, passed on as it is."""

MAX_ROUNDS = 20
"""Turns with calls before the loop gives up: more than a task takes, and an end for a model that runs in circles."""


class ToolAnswer(ChatCompletion):
    """The final answer of a tool loop. ``usage`` is that of its last request.

    Attributes:
        messages: the whole conversation: what was asked, all calls and their results, and this answer.
        rounds: turns in which the model called tools; one request more was sent.
    """

    messages: list[Mapping[str, object]] = Field(default_factory=list, exclude=True, repr=False)
    rounds: int = Field(default=0, exclude=True)

    @classmethod
    def of(cls, completion: ChatCompletion, messages: list[Mapping[str, object]], rounds: int) -> Self:
        """An answer with its history; the completion's own fields are neither copied nor validated again."""
        answer = cls.model_construct(completion.model_fields_set, **dict(completion))
        answer.messages, answer.rounds = messages, rounds
        answer._request_id = completion.request_id  # noqa: SLF001 - a field of this very class
        return answer


class Toolbox:
    """The tools that a model may call.

    Args:
        tools: Python functions, and declarations of functions that Kimi runs itself, such as
            ``{"type": "builtin_function", "function": {"name": "$web_search"}}``.

    Raises:
        ConfigurationError: a tool that cannot be declared, or two of one name.

    Attributes:
        declarations: for a request's ``tools``, in the order given.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        if callable(tools) or isinstance(tools, str | Mapping):
            raise ConfigurationError(f"tools is a list of functions, not {tools!r}")
        self.declarations: list[dict[str, object]] = []
        self._tools: dict[str, PythonFunction | None] = {}  # None for those that Kimi runs
        for tool in tools:
            self._add(tool)

    def __repr__(self) -> str:
        return f"<Toolbox {', '.join(self._tools) or 'empty'}>"

    def _add(self, tool: Tool) -> None:
        if isinstance(tool, Mapping):
            name, function, declaration = _builtin_name(tool), None, dict(tool)
        elif callable(tool):
            function = PythonFunction(tool)
            name, declaration = function.name, function.declaration
        else:
            raise ConfigurationError(f"tools: {tool!r} is neither a function nor the declaration of one")
        if name in self._tools:
            raise ConfigurationError(f"two tools are named {name!r}: rename one")
        self._tools[name] = function
        self.declarations.append(declaration)

    async def answer(self, calls: Sequence[ToolCall]) -> list[dict[str, object]]:
        """Run all calls of one turn at the same time; a tool message for each, in their order.

        Whatever goes wrong is told to the model as the content of its message, so that it can do better: a tool that
        does not exist, arguments that do not fit, an exception of the function. Cancelling cancels all of them.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._content(call)) for call in calls]
        return [_message(call, task.result()) for call, task in zip(calls, tasks, strict=True)]

    async def _content(self, call: ToolCall) -> str:
        name, arguments = call.function.name, call.function.arguments
        if name not in self._tools:
            return f"Unknown tool {name!r}; the tools are: {', '.join(self._tools) or 'none'}"
        function = self._tools[name]
        if function is None:  # Kimi does the work when it gets its own arguments back
            return arguments
        try:
            return await function.call(arguments)
        except InvalidArguments as exc:
            return str(exc)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return "CancelledError"  # of something that the function waited for
        except Exception as exc:  # noqa: BLE001 - the model is told, as it is the one that called
            return f"{type(exc).__name__}: {exc}".removesuffix(": ")


async def converse(
    ask: Callable[[list[Mapping[str, object]]], Awaitable[ChatCompletion]],
    messages: Sequence[MessageInput],
    toolbox: Toolbox,
    max_rounds: int = MAX_ROUNDS,
) -> ToolAnswer:
    """Ask, answer the model's calls, and ask again, until it calls no more.

    What the model said goes back as it came, with its ``reasoning_content``, which thinking models require beside
    calls, be it empty.

    Args:
        ask: sends one request with these messages and the toolbox's declarations.
        messages: the conversation so far; not changed.
        toolbox: what the model may call.
        max_rounds: turns with calls that are answered, at least 1.

    Raises:
        ToolRoundsExceeded: the model called tools once more after ``max_rounds`` turns. Those last calls were not
            run and are not in the error's ``messages``, so that one can go on from there.
        ConfigurationError: ``max_rounds`` below 1.
        InvalidResponseError: a call was cut off at ``max_tokens``.
        KimiError: whatever ``ask`` raises. Its ``messages`` are the conversation so far, as those of the one above.
    """
    if max_rounds < 1:
        raise ConfigurationError(f"max_rounds={max_rounds}: must be at least 1")
    conversation = [plain(message) for message in messages]
    for rounds in range(max_rounds + 1):
        try:
            completion = await ask(list(conversation))
        except KimiError as exc:
            exc.messages = conversation  # tools have run, which nobody wants to run again
            raise
        message = completion.choices[0].message
        if message.tool_calls and completion.choices[0].finish_reason == "length":
            cut = InvalidResponseError(
                "the model was cut off at max_tokens in the middle of a call; raise it", body=message.content or ""
            )
            cut.messages = conversation
            raise cut
        if not message.tool_calls:
            return ToolAnswer.of(completion, [*conversation, plain(message)], rounds)
        if rounds < max_rounds:
            conversation.append({"reasoning_content": "", **plain(message)})
            conversation += await toolbox.answer(message.tool_calls)
    raise ToolRoundsExceeded(
        f"no answer after {max_rounds} rounds of tool calls: raise max_rounds, or see in .messages what it tries",
        rounds=max_rounds,
        messages=conversation,
    )


def for_round(fields: Mapping[str, object], conversation: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """A request's fields for its next round: a choice that forces the model to call holds for the first one only."""
    choice = fields.get("tool_choice")
    forced = choice == "required" or isinstance(choice, Mapping)
    called = bool(conversation) and conversation[-1].get("role") == "tool"
    return {name: value for name, value in fields.items() if not (name == "tool_choice" and forced and called)}


def _builtin_name(declaration: Mapping[str, object]) -> str:
    function = declaration.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if declaration.get("type") == "builtin_function" and isinstance(name, str) and name:
        return name
    raise ConfigurationError(
        f"tools: the declaration of {name or 'a function'!r} has no Python function to run: pass the function itself;"
        ' only Kimi\'s own, of type "builtin_function", are given as declarations'
    )


def _message(call: ToolCall, content: str) -> dict[str, object]:
    """The tool message. Half of a surrogate pair, as in odd file names, cannot be sent and is escaped."""
    text = content.encode(errors="backslashreplace").decode()
    return {"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": text}
