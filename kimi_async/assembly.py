"""Chunks of a streamed answer, put together to the answer that would have come in one piece."""

from collections.abc import Sequence

from .chat import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CompletionUsage,
    Delta,
    FunctionCall,
    Message,
    ToolCall,
    ToolCallDelta,
)


class Assembly:
    """The answer so far. Chunks are taken in one by one, so looking at it often is cheap."""

    def __init__(self) -> None:
        self.chunks = 0
        self._choices: dict[int, _Choice] = {}
        self._usage: CompletionUsage | None = None
        self._first = ChatCompletionChunk()
        self._fingerprint: str | None = None

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Take in the next chunk."""
        if not self.chunks:
            self._first = chunk
        self.chunks += 1
        self._usage = chunk.usage or self._usage
        self._fingerprint = chunk.system_fingerprint or self._fingerprint
        for piece in chunk.choices:
            self._choices.setdefault(piece.index, _Choice(piece.index)).add(piece)

    def whole(self, request_id: str | None = None) -> ChatCompletion:
        """A chat completion of the chunks so far.

        Its ``usage`` is that of the last chunk, which ``include_usage`` asks for; without it, that of the choices'
        finish chunks, where the prompt is counted once and what the choices generated is added. The two are never
        added to each other: Kimi sends both.
        """
        first = self._first
        choices = [self._choices[index].whole() for index in sorted(self._choices)] or [Choice(message=Message())]
        completion = ChatCompletion(
            id=first.id,
            object="chat.completion",
            created=first.created,
            model=first.model,
            choices=choices,
            usage=self._usage or _usage_of(choices),
            system_fingerprint=self._fingerprint,
        )
        completion._request_id = request_id  # noqa: SLF001 - set once, here
        return completion


def usage_of(chunks: Sequence[ChatCompletionChunk]) -> CompletionUsage | None:
    """The last usage that any chunk has: that of all choices if it was asked for, else that of one."""
    for chunk in reversed(chunks):
        for usage in (chunk.usage, *(choice.usage for choice in chunk.choices)):
            if usage is not None:
                return usage
    return None


class _Choice:
    """One of the answers, as far as it has come."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._role = "assistant"
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._finish_reason: str | None = None
        self._usage: CompletionUsage | None = None
        self._logprobs: list[object] = []

    def add(self, piece: ChunkChoice) -> None:
        delta: Delta = piece.delta
        self._role = delta.role or self._role
        if delta.content is not None:
            self._content.append(delta.content)
        if delta.reasoning_content is not None:
            self._reasoning.append(delta.reasoning_content)
        for call in delta.tool_calls or ():
            self._call_of(call).add(call)
        self._finish_reason = piece.finish_reason or self._finish_reason
        self._usage = piece.usage or self._usage
        if piece.logprobs is not None and isinstance(content := piece.logprobs.get("content"), list):
            self._logprobs += content

    def _call_of(self, piece: ToolCallDelta) -> "_Call":
        """Without an index an id begins a call, and what has none goes on with the last."""
        if piece.index is None:
            index = max(self._calls, default=-1)
            return self._calls.setdefault(index + 1 if piece.id or index < 0 else index, _Call())
        return self._calls.setdefault(piece.index, _Call())

    def whole(self) -> Choice:
        """Fields that no chunk had stay unset, so that the message goes back to Kimi as it came."""
        message = Message(role=self._role)
        if self._content or not self._calls:
            message.content = "".join(self._content)
        if self._reasoning:
            message.reasoning_content = "".join(self._reasoning)
        if self._calls:
            message.tool_calls = [self._calls[index].whole() for index in sorted(self._calls)]
        logprobs: dict[str, object] | None = {"content": self._logprobs} if self._logprobs else None
        return Choice(
            index=self._index,
            message=message,
            finish_reason=self._finish_reason,
            usage=self._usage,
            logprobs=logprobs,
        )


class _Call:
    """One call of a tool, as far as it has come."""

    def __init__(self) -> None:
        self._id = ""
        self._type = "function"
        self._name = ""
        self._arguments: list[str] = []

    def add(self, piece: ToolCallDelta) -> None:
        self._id = piece.id or self._id
        self._type = piece.type or self._type
        if piece.function is not None:
            self._name = piece.function.name or self._name
            self._arguments.append(piece.function.arguments or "")

    def whole(self) -> ToolCall:
        function = FunctionCall(name=self._name, arguments="".join(self._arguments))
        return ToolCall(id=self._id, type=self._type, function=function)


def _usage_of(choices: list[Choice]) -> CompletionUsage | None:
    usages = [choice.usage for choice in choices if choice.usage is not None]
    if len(usages) < 2:
        return usages[0] if usages else None
    prompt_tokens = max(usage.prompt_tokens for usage in usages)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return CompletionUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        cached_tokens=max((usage.cached_tokens for usage in usages if usage.cached_tokens is not None), default=None),
    )
