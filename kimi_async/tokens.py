"""What a request costs: prompt tokens counted with Kimi's own vocabulary, and the ``max_tokens`` it reserves.

What is charged was found by comparison with published answers: the tokens of all contents, 4 for each message
and 3 for the beginning of the answer (K2's chat template). Whatever cannot be counted is estimated upwards.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import platformdirs

from .errors import ConfigurationError, RequestTooLarge
from .events import EventHook, VocabularyMissing, log_event
from .limits import Cost
from .models import allowance, default_max_tokens, find
from .vocabulary import MAX_RUN, encoding, pieces

MESSAGE_TOKENS = 4
"""A message beyond its content: three control tokens and the role (K2's chat_template.jinja)."""

PROMPT_TOKENS = 3
"""The generation prompt, ``<|im_assistant|>assistant<|im_middle|>``."""

TOOLS_TOKENS = 6
"""The ``tool_declare`` message around the compact JSON of the tools."""

TOOL_CALL_TOKENS = 3
"""Control tokens around one tool call; all calls of a message together take two more."""

INLINE_CHARACTERS = 10_000
"""Longer prompts are counted in a thread, where tiktoken runs without the GIL; a thread costs 0.1 ms."""

BREATH = 20_000
"""Characters counted, some 2 to 5 ms, after which the event loop gets a turn."""

REMEMBERED = 4_096
"""Texts whose counts are kept, by digest, before forgetting begins anew. What a batch or a conversation says in every
request is counted once."""

MAX_LEARNED = 256
"""A larger surplus of the bill over the count is no template's, but a search result or an image."""


class TokenCounter:
    """Counts tokens as Kimi bills them.

    The vocabulary is loaded once per process, by the first counter that needs it: 0.45 s on the very first start,
    which leaves a packed copy in ``cache_dir``, and 0.25 s afterwards. For half of that tiktoken holds the
    interpreter's lock and stalls every thread: load before the traffic starts. Without the vocabulary (a platform
    without a wheel of ``splintr-rs``) a text counts as its bytes in UTF-8, which is never too low, and one
    `VocabularyMissing` says so.

    Args:
        cache_dir: where the packed vocabulary is kept; default: the user's cache directory. It need not be
            writable.
        on_event: receives `VocabularyMissing`, once.
    """

    def __init__(self, *, cache_dir: Path | None = None, on_event: EventHook = log_event) -> None:
        self._cache_dir = cache_dir or platformdirs.user_cache_path("kimi_async")
        self._on_event = on_event
        self._encode: Callable[[str], list[int]] | None = None
        self._counted: dict[bytes, int] = {}
        self._missing = ""
        self._reported = False
        self._learned: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loading: asyncio.Future[None] | None = None
        self._line = asyncio.Lock()
        self._since_breath = 0

    def __repr__(self) -> str:
        state = "exact" if self.exact else f"upper estimates ({self._missing})" if self._missing else "not loaded"
        learned = "".join(f", {name} +{tokens}" for name, tokens in self._learned.items())
        return f"<TokenCounter {state}{learned}>"

    @property
    def exact(self) -> bool:
        """Whether the vocabulary is loaded, so that texts are counted and not estimated."""
        return self._encode is not None

    async def load(self) -> None:
        """Load the vocabulary in a thread, unless it is loaded; concurrent callers wait for the same load.

        Never raises for want of a vocabulary; see the class.
        """
        self._enter_loop()
        if not self._tried:
            if self._loading is None:
                self._loading = asyncio.ensure_future(asyncio.to_thread(self._read))
            await asyncio.shield(self._loading)
        self._report()

    def load_now(self) -> None:
        """The same without an event loop: blocks."""
        self._read()
        self._report()

    def count(self, text: str) -> int:
        """Tokens of one text, the names of special tokens in it counted as plain text, lone surrogates as U+FFFD.

        Blocks: for the load on a counter that was never loaded, and for 0.3 us a token.
        """
        if not self._tried:
            self.load_now()
        return self._count(text)

    def prompt_tokens(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        model: str = "",
    ) -> int:
        """Tokens of a whole prompt; of a malformed one, whatever it holds (Kimi will answer 400).

        Args:
            messages: as in the request. Texts, names, reasoning, tool calls and tools are counted; images and
                videos are taken at the most that ``model`` makes of one.
            tools: as in the request.
            model: whose chat template and image size hold; by default K2's template and the largest images.
        """
        prompt = _Prompt.of(messages, tools)
        return prompt.template_tokens + sum(map(self.count, prompt.texts)) + prompt.allowance(model)

    async def count_prompt(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        model: str = "",
    ) -> int:
        """The same as ``prompt_tokens``, but a long prompt is counted in a thread while the loop goes on."""
        prompt = _Prompt.of(messages, tools)
        return prompt.template_tokens + await self._sum(prompt.texts) + prompt.allowance(model)

    async def cost(self, body: Mapping[str, object]) -> Cost:
        """What the gateway will charge for a request.

        Args:
            body: the request, as sent to ``/v1/chat/completions``. If it holds ``max_tokens`` and
                ``max_completion_tokens``, the larger counts; if neither, the model's default.

        Raises:
            ConfigurationError: ``max_tokens``, ``max_completion_tokens`` or ``n`` is no positive integer.
            RequestTooLarge: prompt and answer certainly exceed the model's context, estimates left aside.
        """
        asked = max(_positive(body, "max_tokens") or 0, _positive(body, "max_completion_tokens") or 0)
        n = _positive(body, "n") or 1
        name = body.get("model")
        model = name if isinstance(name, str) else ""
        prompt = _Prompt.of(body.get("messages"), body.get("tools"), body.get("response_format"))
        counted = prompt.template_tokens + await self._sum(prompt.texts)
        prompt_tokens = counted + prompt.allowance(model) + self._learned.get(model, 0)
        max_tokens = asked or default_max_tokens(model, counted)  # it is sent: an estimate must not shorten answers
        if self.exact:
            _check_context(model, counted, max_tokens)
        return Cost(prompt_tokens, max_tokens, n)

    def learn(self, body: Mapping[str, object], *, billed: int) -> None:
        """Let an answer correct the count: what its model was billed beyond it is added to its later costs.

        One constant for each model, the largest surplus seen, never less than nothing and never more than
        ``MAX_LEARNED``: templates differ by a few tokens, and only counting too little can exceed a budget. Counts
        the prompt once more; call it where the bill is above ``Cost.prompt_tokens``, which is rare.

        Args:
            body: the request.
            billed: ``usage.prompt_tokens`` of the answer.
        """
        model = str(body.get("model"))
        prompt = _Prompt.of(body.get("messages"), body.get("tools"), body.get("response_format"))
        surplus = billed - prompt.template_tokens - sum(map(self.count, prompt.texts)) - prompt.allowance(model)
        if self._learned.get(model, 0) < surplus <= MAX_LEARNED:
            self._learned[model] = surplus

    @property
    def _tried(self) -> bool:
        return self._encode is not None or bool(self._missing)

    def _enter_loop(self) -> None:
        """Locks and futures belong to one loop; a counter may serve one after another."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._loading, self._line = loop, None, asyncio.Lock()

    def _read(self) -> None:
        if self._tried:
            return
        try:
            self._encode = encoding(self._cache_dir).encode_ordinary
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with it, an upper estimate serves
            self._missing = f"{type(exc).__name__}: {exc}"

    def _report(self) -> None:
        if self._missing and not self._reported:
            self._reported = True
            self._on_event(VocabularyMissing(self._missing))

    def _count(self, text: str) -> int:
        encoded = text.encode("utf-8", "surrogatepass")
        if self._encode is None:
            return len(encoded)
        digest = sha256(encoded).digest()
        tokens = self._counted.get(digest)
        if tokens is None:
            if len(self._counted) >= REMEMBERED:
                self._counted.clear()
            parts = (text,) if len(text) <= MAX_RUN else pieces(text)
            tokens = self._counted[digest] = sum(len(self._encode(part)) for part in parts)
        return tokens

    async def _sum(self, texts: list[str]) -> int:
        if not self._tried:
            await self.load()
        characters = sum(map(len, texts))
        if characters > INLINE_CHARACTERS:
            return await asyncio.to_thread(lambda: sum(map(self._count, texts)))
        if self._since_breath > BREATH or self._line.locked():
            await self._breathe()
        self._since_breath += characters + 150  # taking a prompt apart costs as much as counting these
        return sum(map(self._count, texts))

    async def _breathe(self) -> None:
        """Give the loop a turn; a burst of tasks passes here one by one, so that no turn counts them all."""
        self._enter_loop()
        async with self._line:
            if self._since_breath > BREATH:
                self._since_breath = 0
                await asyncio.sleep(0)


@dataclass(slots=True)
class _Prompt:
    """A prompt taken apart: texts to be counted, and what is known without counting."""

    texts: list[str] = field(default_factory=list)
    template_tokens: int = PROMPT_TOKENS
    messages: int = 0
    images: int = 0
    videos: int = 0

    @classmethod
    def of(cls, messages: object, tools: object, response_format: object = None) -> "_Prompt":
        prompt = cls()
        for message in _items(messages):
            prompt._add_message(message)
        prompt._add_tools(tools)
        prompt._add_format(response_format)
        return prompt

    def _add_format(self, response_format: object) -> None:
        """A JSON schema may be shown to the model (K3's template does so); counted for all, upwards."""
        if isinstance(response_format, Mapping) and (schema := response_format.get("json_schema")):
            self.texts.append(_compact(schema))

    def allowance(self, model: str) -> int:
        return allowance(model, messages=self.messages, images=self.images, videos=self.videos)

    def _add_message(self, message: object) -> None:
        self.messages += 1
        self.template_tokens += MESSAGE_TOKENS
        if not isinstance(message, Mapping):
            return
        self._add_content(message.get("content"))
        self._add_text(message.get("name"))
        self._add_text(message.get("reasoning_content"))
        if message.get("role") == "tool":
            self._add_text(f"## Return of {message.get('tool_call_id', '')}\n")
        self._add_tool_calls(_items(message.get("tool_calls")))
        self._add_tools(message.get("tools"))  # K3 lets a system message bring tools

    def _add_text(self, text: object) -> None:
        if text and isinstance(text, str):
            self.texts.append(text)

    def _add_content(self, content: object) -> None:
        self._add_text(content)
        for part in _items(content):
            if isinstance(part, Mapping):
                self._add_text(part.get("text"))
                self.images += "image_url" in part
                self.videos += "video_url" in part
            else:
                self._add_text(part)

    def _add_tool_calls(self, calls: Sequence[object]) -> None:
        self.template_tokens += 2 * bool(calls)
        for call in calls:
            self.template_tokens += TOOL_CALL_TOKENS
            if isinstance(call, Mapping) and isinstance(function := call.get("function"), Mapping):
                self._add_text(call.get("id"))
                self._add_text(function.get("name"))
                arguments = function.get("arguments")
                self._add_text(arguments if isinstance(arguments, str) or not arguments else _compact(arguments))

    def _add_tools(self, tools: object) -> None:
        if tools:
            self.template_tokens += TOOLS_TOKENS
            self.texts.append(_compact(tools))


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _positive(body: Mapping[str, object], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name}={value!r}: must be an integer of at least 1")
    return value


def _check_context(name: str, prompt_tokens: int, max_tokens: int) -> None:
    model = find(name)
    needed = prompt_tokens + max_tokens
    if model is None or needed <= model.context:
        return
    room = model.context - prompt_tokens
    remedy = f"lower max_tokens to at most {room:,}" if room > 0 else f"shorten the prompt by {1 - room:,} tokens"
    raise RequestTooLarge(
        f"needs {needed:,} tokens ({prompt_tokens:,} of prompt and {max_tokens:,} of max_tokens); "
        f"the context of {name} is {model.context:,}: {remedy}",
        needed=needed,
        limit=model.context,
        budget="context",
    )
