"""What the model says: prose of the length that was drawn, unless the request asks for tool calls or for JSON.

Everything that follows from the request alone is decided once, in its `Script`; how long, how often and whether it
is cut short by ``max_tokens`` comes with each `Reply`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from pydantic_core import to_json

from .rules import WEB_SEARCH, InvalidRequest, call_ids, chosen_tool, stops_of, tools_of
from .schema import example

# 17 and 15 tokens in Kimi's vocabulary, and no more when repeated: nothing merges across their ends.
SENTENCE, _SENTENCE_TOKENS = "月光落在潮水上，海面很安静。The moon rose over a calm sea. ", 17
THOUGHT, _THOUGHT_TOKENS = "The user asks about the moon, 让我先想一想潮汐与月光。", 15

_THINKING_SHARE = 3  # one token of three is a thought
_BYTES_PER_TOKEN = 4  # of made-up JSON and quoted results, whose tokens nobody counts


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call: its arguments are JSON, or the first part of it where ``max_tokens`` ended the answer."""

    identity: str
    name: str
    arguments: str
    kind: Literal["function", "builtin_function"] = "function"


class Reply(NamedTuple):  # made for every request, in a fifth of a frozen dataclass's time
    """One choice of an answer.

    Attributes:
        content: empty with tool calls.
        tokens: of the whole answer, thinking included; never more than ``max_tokens``.
        finish_reason: ``"stop"``, ``"length"`` or ``"tool_calls"``.
        reasoning: what was thought; empty if nothing was.
        reasoning_tokens: those of them.
        tool_calls: in the order of their declaration.
    """

    content: str
    tokens: int
    finish_reason: str
    reasoning: str = ""
    reasoning_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Script:
    """What a request makes the model say.

    Attributes:
        thinks: whether it thinks first.
        text: the answer, word for word; None for prose.
        tool_calls: the answer, in place of text.
        stops: what ends a text before it appears in it.
    """

    thinks: bool = False
    text: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    stops: tuple[str, ...] = ()

    def reply(self, drawn: int, max_tokens: int) -> Reply:
        """One choice.

        Args:
            drawn: tokens of an answer in prose; what is said word for word has its own length.
            max_tokens: the most that it may have.
        """
        reply = (
            self._prose(drawn, max_tokens) if self.text is None and not self.tool_calls else self._given(max_tokens)
        )
        return _stopped(reply, self.stops) if self.stops else reply

    def _prose(self, drawn: int, max_tokens: int) -> Reply:
        reason = "length" if drawn == max_tokens else "stop"
        if not self.thinks:
            return Reply(prose(drawn), drawn, reason)
        thought = drawn // _THINKING_SHARE
        return Reply(prose(drawn - thought), drawn, reason, thoughts(thought), thought)

    def _given(self, max_tokens: int) -> Reply:
        text = self.text or ""
        needed = tokens_of(text) if text else sum(call_tokens(call) for call in self.tool_calls)
        thought = max(1, needed // (_THINKING_SHARE - 1)) if self.thinks else 0
        if needed + thought <= max_tokens:
            reason = "tool_calls" if self.tool_calls else "stop"
            return Reply(text, needed + thought, reason, thoughts(thought), thought, self.tool_calls)
        thought = min(thought, max_tokens // _THINKING_SHARE)
        said = (max_tokens - thought) / needed
        calls = tuple(_cut_calls(self.tool_calls, said))
        return Reply(_first(text, said), max_tokens, "length", thoughts(thought), thought, calls)


PROSE = Script()
"""What a model that does not think says to a plain prompt."""


def script(body: Mapping[str, Any], *, thinking: bool) -> Script:
    """What a valid request makes the model say.

    Raises:
        InvalidRequest: nothing fits a JSON schema in it.
    """
    messages = body["messages"]
    stops = stops_of(body.get("stop"))
    if messages[-1]["role"] == "user" and (calls := tuple(_calls(body))):
        return Script(thinking, tool_calls=calls)
    text = _json(body.get("response_format")) or _quotes(messages)
    if text is not None and messages[-1].get("partial"):
        text = text.removeprefix(_text(messages[-1].get("content"))) or None
    return Script(thinking, text=text, stops=stops)


def prose(tokens: int) -> str:
    """A text of about that many tokens: exactly so for multiples of 17."""
    return _repeated(SENTENCE, _SENTENCE_TOKENS, tokens)


def thoughts(tokens: int) -> str:
    """The same of a model that thinks: exactly so for multiples of 15."""
    return _repeated(THOUGHT, _THOUGHT_TOKENS, tokens)


def tokens_of(text: str) -> int:
    """Tokens that a text is taken to have."""
    return max(1, -(-len(text.encode()) // _BYTES_PER_TOKEN))


def call_tokens(call: ToolCall) -> int:
    """The same of a tool call."""
    return tokens_of(call.name) + tokens_of(call.arguments)


def _repeated(sentence: str, size: int, tokens: int) -> str:
    whole, rest = divmod(tokens, size)
    part = -(-rest * len(sentence) // size)
    return sentence * whole + sentence[:part]


def _calls(body: Mapping[str, Any]) -> Iterator[ToolCall]:
    """One of every tool declared, or of the one chosen; ids go on counting through a conversation, as Kimi's do."""
    if body.get("tool_choice") == "none":
        return
    chosen = chosen_tool(body)
    number = sum(len(list(call_ids(message))) for message in body["messages"])
    for tool in tools_of(body):
        function = tool["function"]
        name = function["name"]
        if chosen is not None and name != chosen:
            continue
        if tool.get("type") == "builtin_function":
            yield ToolCall(f"{name}:{number}", name, _builtin_arguments(name), "builtin_function")
        else:
            # A schema without a type is one of an object here: arguments always are.
            arguments = _example({"type": "object", **(function.get("parameters") or {})})
            yield ToolCall(f"{name}:{number}", name, arguments)
        number += 1


def _builtin_arguments(name: str) -> str:
    if name != WEB_SEARCH:
        return "{}"
    return '{"search_result":{"search_id":"mock-search-0"},"usage":{"total_tokens":1024}}'


def _json(response_format: Mapping[str, Any] | None) -> str | None:
    kind = response_format["type"] if response_format else "text"
    if kind == "json_object":
        return to_json({"answer": SENTENCE.strip()}).decode()
    return _example(response_format["json_schema"]["schema"]) if response_format and kind == "json_schema" else None


def _example(schema: Mapping[str, Any]) -> str:
    try:
        return to_json(example(schema)).decode()
    except ValueError as exc:
        raise InvalidRequest(f"Invalid request: {exc}") from exc


def _quotes(messages: list[dict[str, Any]]) -> str | None:
    """The results that the last messages bring, if they bring any, each after the name of its tool."""
    results = []
    for message in reversed(messages):
        if message["role"] != "tool":
            break
        results.append((message["tool_call_id"], _text(message.get("content"))))
    if not results:
        return None
    calls = messages[-len(results) - 1].get("tool_calls") or ()
    names = {call["id"]: call["function"].get("name") for call in calls}
    return (
        "According to my tools: " + "; ".join(f"{names[call]} says {text}" for call, text in reversed(results)) + "."
    )


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _first(text: str, share: float) -> str:
    return text[: int(len(text) * share)]


def _cut_calls(calls: tuple[ToolCall, ...], share: float) -> Iterator[ToolCall]:
    """The first of the calls, the last of them incomplete."""
    left = int(sum(map(call_tokens, calls)) * share)
    for call in calls:
        needed = call_tokens(call)
        if left < needed:
            yield replace(call, arguments=_first(call.arguments, left / needed))
            return
        yield call
        left -= needed


def _stopped(reply: Reply, stops: tuple[str, ...]) -> Reply:
    ends = [at for stop in stops if (at := reply.content.find(stop)) >= 0]
    if not ends:
        return reply
    content = reply.content[: min(ends)]
    said = reply.tokens - reply.reasoning_tokens
    tokens = reply.reasoning_tokens + -(-said * len(content) // len(reply.content))
    return reply._replace(content=content, tokens=max(1, tokens), finish_reason="stop")
