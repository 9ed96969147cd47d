"""``kimi-async chat``."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from kimi_async.client import AsyncKimi
from kimi_async.conversation import Conversation
from kimi_async.errors import (
    AuthenticationError,
    ConfigurationError,
    DailyBudgetExhausted,
    KimiError,
    QuotaExceededError,
)
from kimi_async.mock import MockSettings
from kimi_async.models import find
from kimi_async.parameters import ToolOptions

from .display import Style, problem, show_answer
from .gateway import GatewayOptions
from .options import ANSWERED, FAILED, STDIN, STOPPED, USAGE, LimitOptions, default_model
from .terminal import Terminal

MAX_TOKENS = 8_192
"""Thinking is part of it, and all of it is charged: with K3's own default, 131,072, the day of tier 0 has 11 turns;
with this one 180."""

MOCK = MockSettings(tokens_per_second=100.0, completion_ratio=0.03)
"""Answers of some 250 tokens, at the speed of a model."""


def chat(
    prompt: str | None = None,
    /,
    *,
    model: str | None = None,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    thinking: bool | None = None,
    reasoning_effort: Literal["low", "high", "max"] | None = None,
    load: Path | None = None,
    plain: Annotated[bool, Parameter(negative="")] = False,
    limits: LimitOptions = LimitOptions(),  # noqa: B008 - frozen
    gateway: GatewayOptions = GatewayOptions(),  # noqa: B008 - frozen
) -> int:
    """Answer one prompt, or hold a conversation.

    With PROMPT, or with a prompt on standard input, the answer is streamed to standard output; text that is piped
    in goes under PROMPT. Without either, in a terminal, a conversation begins: /help tells what it can do.

    Args:
        prompt: What to say; - for standard input.
        model: Default: KIMI_MODEL of the environment, else kimi-k2.6.
        system: The system prompt.
        max_tokens: Tokens of an answer, thinking included. All of it is charged against TPM and TPD. Default: 8192, or
            half of a smaller context.
        temperature: Few models take one.
        thinking: Whether to think first, for models that can do both. What they think is shown in a terminal only.
        reasoning_effort: How hard to think, for K3.
        load: Go on with a conversation that /save wrote.
        plain: No Markdown, no thinking: what a pipe gets.
        limits: What the account may do.
        gateway: Where requests go.
    """
    said = _said(prompt)
    terminal = Terminal()
    known = find(model or default_model())
    most = MAX_TOKENS if known is None else min(MAX_TOKENS, known.context // 2)
    options = ToolOptions(max_tokens=max_tokens or most, temperature=temperature, reasoning_effort=reasoning_effort)
    if thinking is not None:
        options["thinking"] = {"type": "enabled" if thinking else "disabled"}
    style = Style(terminal, options, plain=plain)

    async def run() -> int:
        async with gateway.client(limits.rate_limits(), on_event=terminal.note, mock=MOCK) as kimi:
            conversation = style.conversation(kimi, load)
            conversation.model = model or conversation.model or default_model()
            conversation.system = system or conversation.system
            if said is not None:
                return await _answer_once(kimi, conversation, said, style)
            from .session import Session  # noqa: PLC0415 - prompt_toolkit takes 60 ms, which a pipe need not wait for

            return await Session(kimi, conversation, style).run()

    return asyncio.run(run())


async def _answer_once(kimi: AsyncKimi, conversation: Conversation, prompt: str, style: Style) -> int:
    try:
        completion = await show_answer(conversation, prompt, style.display(kimi, conversation))
    except KimiError as exc:
        style.terminal.note(f"kimi-async: {problem(exc)}", style="")
        return _status(exc)
    if cut := style.cut_off(completion):
        style.terminal.note(f"kimi-async: {cut}")
    return ANSWERED


def _status(error: KimiError) -> int:
    if isinstance(error, AuthenticationError | ConfigurationError):
        return USAGE
    return STOPPED if isinstance(error, DailyBudgetExhausted | QuotaExceededError) else FAILED


def _said(prompt: str | None) -> str | None:
    """The one prompt there is; None for a conversation."""
    interactive = sys.stdin is not None and sys.stdin.isatty()
    piped = "" if sys.stdin is None or (interactive and prompt != STDIN) else _read_stdin()
    parts = [part for part in (None if prompt == STDIN else prompt, piped) if part and part.strip()]
    if parts:
        return "\n\n".join(parts)
    if prompt is not None or not interactive:
        raise ConfigurationError("nothing to say: give a prompt, or pipe one in")
    if not sys.stdout.isatty():
        raise ConfigurationError("a conversation needs a terminal; for one answer give a prompt")
    return None


def _read_stdin() -> str:
    content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"standard input is not UTF-8 at byte {exc.start + 1}") from exc
