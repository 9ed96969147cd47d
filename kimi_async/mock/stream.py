"""A completion as server-sent events, in the chunks and with the usage that Kimi's streaming guide describes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from pydantic_core import to_json

from .answers import Usage
from .replies import Reply, ToolCall, call_tokens
from .requests import ChatRequest

HEADERS = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"))
DONE = b"data: [DONE]\n\n"

GARBLED = b"data: <html>upstream connect error</html>\n\n"
"""A chunk that is no JSON."""


@dataclass(frozen=True, slots=True)
class ChunkStream:
    """All chunks of one completion, encoded as events; ``[DONE]`` is not among them.

    Args:
        request: what was asked.
        identity: of the answer.
        replies: one for each choice; they take turns.
        usage: of the whole.
        tokens_per_chunk: of content, of thinking and of arguments.
    """

    request: ChatRequest
    identity: str
    replies: tuple[Reply, ...]
    usage: Usage
    tokens_per_chunk: int

    def __len__(self) -> int:
        """Chunks, the one with the whole usage included."""
        return sum(self._size(reply) for reply in self.replies) + self.request.include_usage

    def __iter__(self) -> Iterator[bytes]:
        """What is the same in all chunks is encoded once: a chunk costs its text and a join."""
        choices = [self._choice(index, reply) for index, reply in enumerate(self.replies)]
        if len(choices) == 1:
            yield from choices[0]
        else:
            for turn in zip_longest(*choices):
                yield from (event for event in turn if event is not None)
        if self.request.include_usage:
            yield self._beginning + b'[],"usage":' + to_json(self.usage.content()) + b"}\n\n"

    def middle(self, throw: float) -> int:
        """A number of chunks that is neither none nor all, by a throw in [0, 1)."""
        return 1 + int(throw * (len(self) - 1))

    @property
    def _beginning(self) -> bytes:
        head = {
            "id": f"chatcmpl-{self.identity}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": self.request.model,
        }
        return b"data: " + to_json(head)[:-1] + b',"choices":'

    @property
    def _end(self) -> bytes:
        """Usage is null in ordinary chunks if a last one will have it, and absent otherwise."""
        return b',"usage":null}\n\n' if self.request.include_usage else b"}\n\n"

    def _choice(self, index: int, reply: Reply) -> Iterator[bytes]:
        beginning, end = self._beginning + b'[{"index":%d,"delta":' % index, b',"finish_reason":null}]' + self._end
        yield beginning + b'{"role":"assistant","content":""}' + end
        for before, text, pieces, after in self._texts(reply):
            before, after = beginning + before, after + end  # noqa: PLW2901 - once for all pieces
            if not pieces:
                yield before + text.encode() + after
            for piece in _split(text, pieces):
                yield b"".join((before, to_json(piece), after))
        usage = to_json(self.usage.of_one(reply.tokens).content())
        finish = b'{},"finish_reason":%b,"usage":%b}]' % (to_json(reply.finish_reason), usage)
        yield beginning + finish + self._end

    def _texts(self, reply: Reply) -> Iterator[tuple[bytes, str, int, bytes]]:
        """What is said: the JSON before and after each piece of a text, and in how many pieces it goes.

        No pieces means that the text is JSON and goes as it is.
        """
        if reply.reasoning:
            yield b'{"reasoning_content":', reply.reasoning, self._pieces(reply.reasoning_tokens), b"}"
        if reply.content:
            yield b'{"content":', reply.content, self._pieces(reply.tokens - reply.reasoning_tokens), b"}"
        for number, call in enumerate(reply.tool_calls):
            open_call = b'{"tool_calls":[{"index":%d,' % number
            yield open_call, _opening(call), 0, b"}]}"
            if call.arguments:
                yield open_call + b'"function":{"arguments":', call.arguments, self._pieces(call_tokens(call)), b"}}]}"

    def _size(self, reply: Reply) -> int:
        texts = self._texts(reply)
        return 2 + sum(min(pieces, len(text)) if pieces else 1 for _, text, pieces, _ in texts)

    def _pieces(self, tokens: int) -> int:
        return max(1, -(-tokens // self.tokens_per_chunk))


def _opening(call: ToolCall) -> str:
    """The first fragment of a call, without its index and braces."""
    named = {"id": call.identity, "type": call.kind, "function": {"name": call.name, "arguments": ""}}
    return to_json(named).decode()[1:-1]


def _split(text: str, pieces: int) -> Iterator[str]:
    """A text in that many parts, or in characters if it has fewer."""
    pieces = min(pieces, len(text))
    size = len(text)
    for number in range(pieces):
        yield text[number * size // pieces : (number + 1) * size // pieces]
