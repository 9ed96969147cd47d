"""Everything that a chat request can carry, typed; and which of it a model will not take.

Messages are dicts in the form of Kimi's and OpenAI's reference, or messages that Kimi answered:

==============================================================================  =====================================
``{"role": "system", "content": "..."}``                                        so too ``user`` and ``assistant``
``{"role": "user", "content": [part, ...]}``                                    text, images and videos, see below
``{"role": "assistant", "content": "{", "partial": True}``                      partial mode: last, it is continued
``{"role": "assistant", "tool_calls": [...], "reasoning_content": "..."}``      goes back just as it came
``{"role": "tool", "tool_call_id": "...", "content": "..."}``                   what a tool returned
``{"type": "text", "text": "..."}``                                             a part
``{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}``    ``video_url`` likewise
``{"type": "image_url", "image_url": {"url": "ms://FILE_ID"}}``                 an upload of ``kimi.files``
==============================================================================  =====================================

Sources: the API reference of platform.kimi.ai, and answers with status 400 seen in 2026.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Literal, TypedDict

import httpx

from .errors import ConfigurationError
from .models import Model, Sampling, find

ROLES = ("system", "user", "assistant", "tool")
MAX_CHOICES = 5
MAX_STOPS = 5
MAX_STOP_BYTES = 32

_REQUIRED_WHILE_THINKING = "kimi-k3"
"""The models that take ``tool_choice="required"`` while they think (inspect_ai's probes, August 2026)."""


class ThinkingOption(TypedDict, total=False):
    """``{"type": "disabled"}`` for an answer without thinking; ``keep="all"`` keeps that of earlier turns."""

    type: Literal["enabled", "disabled"]
    keep: Literal["all"] | None


class StreamOptions(TypedDict, total=False):
    """``{"include_usage": True}``: a last chunk with the usage of all choices."""

    include_usage: bool


class AnswerOptions(TypedDict, total=False):
    """The parameters that every kind of chat request takes; None counts as left out.

    Fields that are not here go into ``extra_body``.
    """

    max_tokens: int | None
    """Tokens the answer may have. The gateway charges all of them at once, whatever is generated. Left out, the
    model's own default is charged and sent."""
    max_completion_tokens: int | None
    """The newer name of the same."""
    temperature: float | None
    """0 to 1; models from K2.5 on take a single value, which depends on ``thinking``."""
    top_p: float | None
    n: int | None
    """Answers to generate, 1 to 5; each is charged ``max_tokens``."""
    stop: str | Sequence[str] | None
    """Up to 5 texts of up to 32 bytes that end the answer."""
    presence_penalty: float | None
    frequency_penalty: float | None
    tool_choice: str | Mapping[str, object] | None
    """``"auto"``, ``"none"``, ``"required"``, or a function; only the first two while the model thinks, K3 the third
    too."""
    thinking: ThinkingOption | None
    """For K2.5 to K2.7, which think unless told otherwise."""
    reasoning_effort: Literal["low", "high", "max"] | None
    """For K3; its default is ``"max"``."""
    prompt_cache_key: str | None
    """Requests with the same key are more likely to find their common prefix cached."""
    safety_identifier: str | None
    """A stable, anonymous name of the end user."""
    logprobs: bool | None
    top_logprobs: int | None
    prediction: Mapping[str, object] | None
    stream_options: StreamOptions | None


class ParseOptions(AnswerOptions, total=False):
    """What ``parse`` takes, whose ``response_format`` is a pydantic model."""

    tools: Sequence[Mapping[str, object]] | None
    """Functions the model may call, and Kimi's own such as
    ``{"type": "builtin_function", "function": {"name": "$web_search"}}``."""


class ToolOptions(AnswerOptions, total=False):
    """What ``run_tools`` takes, whose ``tools`` are Python functions."""

    response_format: Mapping[str, object] | None
    """``{"type": "json_object"}``, or ``{"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}``."""


class SendOptions(TypedDict, total=False):
    """How a request is sent."""

    extra_body: Mapping[str, object] | None
    """Further fields of the request, sent as they are and not checked."""
    timeout: float | httpx.Timeout | None
    """Seconds for each read of the answer, or an ``httpx.Timeout``."""
    max_wait: float | None
    """Seconds that it may wait, in line and between attempts together."""


class TurnOptions(ToolOptions, SendOptions, total=False):
    """What a `Conversation` and its turns take."""


class ChatOptions(ParseOptions, ToolOptions, total=False):
    """What ``create``, ``stream``, ``ask`` and ``map`` take: all of it."""


def request_body(fields: Mapping[str, object], options: Mapping[str, object], *, function: str) -> dict[str, object]:
    """A request of these fields and of options, without those that are None.

    Raises:
        TypeError: an option that does not exist; ``function`` is the name of what was called with it.
    """
    for name in options.keys() - ChatOptions.__annotations__.keys():
        close = get_close_matches(name, ChatOptions.__annotations__, n=1)
        remedy = f"did you mean {close[0]}?" if close else "a field that Kimi knows and we do not goes into extra_body"
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; {remedy}")
    return {name: value for name, value in {**fields, **options}.items() if value is not None}


def check(body: Mapping[str, object]) -> None:
    """Refuse what the model would answer with a 400, and say why. What nobody knows to be wrong passes.

    Raises:
        ConfigurationError: names the parameter, what the model takes, and what to do.
    """
    model = find(str(body.get("model")))
    problems = (_thinking(body), _choices(body, model), _stops(body), _messages(body), _rules_of(body, model))
    for problem in chain(*problems):
        raise ConfigurationError(problem)


def thinks(model: Model, body: Mapping[str, object]) -> bool:
    """Whether the model will think before it answers this request."""
    thinking = body.get("thinking")
    disabled = isinstance(thinking, Mapping) and thinking.get("type") == "disabled"
    return model.thinking == "always" or (model.thinking == "optional" and not disabled)


def _thinking(body: Mapping[str, object]) -> Iterator[str]:
    thinking = body.get("thinking")
    kind = thinking.get("type") if isinstance(thinking, Mapping) else None
    if thinking is not None and kind not in ("enabled", "disabled"):
        yield f'thinking={thinking!r}: pass {{"type": "enabled"}} or {{"type": "disabled"}}'
    effort = body.get("reasoning_effort")
    if effort not in (None, "low", "high", "max"):
        yield f"reasoning_effort={effort!r}: Kimi has 'low', 'high' and 'max'"


def _choices(body: Mapping[str, object], model: Model | None) -> Iterator[str]:
    n = body.get("n")
    if isinstance(n, int) and n > MAX_CHOICES:
        yield f"n={n}: Kimi generates at most {MAX_CHOICES} answers to one request"
    elif isinstance(n, int) and n > 1 and model is not None and model.sampling is not None:
        yield f"n={n}: {model.name} gives one answer to a request; send it {n} times"


def _stops(body: Mapping[str, object]) -> Iterator[str]:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple):
        return
    if len(stops) > MAX_STOPS:
        yield f"stop: {len(stops)} texts, where Kimi takes at most {MAX_STOPS}"
    for text in stops:
        if isinstance(text, str) and len(text.encode(errors="replace")) > MAX_STOP_BYTES:
            yield f"stop: {text!r} is longer than the {MAX_STOP_BYTES} bytes that Kimi takes"


def _messages(body: Mapping[str, object]) -> Iterator[str]:
    messages = body.get("messages")
    if not isinstance(messages, list | tuple) or not messages:
        yield f"messages={messages!r}: a list of at least one message is wanted"
        return
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            yield f"messages[{number}]: a dict with a role is wanted, which is one of {', '.join(ROLES)}"
        else:
            yield from _media(message.get("content"), number)
            if message.get("partial"):
                yield from _partial(body, message, number, last=number == len(messages) - 1)


def _partial(body: Mapping[str, object], message: Mapping[str, object], number: int, *, last: bool) -> Iterator[str]:
    if not last or message.get("role") != "assistant":
        yield f"messages[{number}]: partial is for the last message, the assistant's; leave it out, or move it there"
    response_format = body.get("response_format")
    if isinstance(response_format, Mapping) and response_format.get("type") == "json_object":
        yield 'partial mode and response_format={"type": "json_object"} exclude each other; leave one out'


def _media(content: object, number: int) -> Iterator[str]:
    for part in content if isinstance(content, list | tuple) else ():
        for kind in ("image_url", "video_url"):
            if not isinstance(part, Mapping) or (value := part.get(kind)) is None:
                continue
            url = value.get("url") if isinstance(value, Mapping) else value
            if isinstance(url, str) and not url[:5].lower().startswith(("data:", "ms://")):
                yield (
                    f"messages[{number}]: {kind} {url[:60]!r}: Kimi fetches nothing from the web; send a data: URL, "
                    "or upload it with kimi.files and send ms://FILE_ID"
                )


def _rules_of(body: Mapping[str, object], model: Model | None) -> Iterator[str]:
    if model is None:
        return
    thinking = thinks(model, body)
    if model.sampling is not None:
        yield from _fixed(body, model, model.sampling, thinking=thinking)
    elif isinstance(value := body.get("temperature"), int | float) and not 0 <= value <= 1:
        yield f"temperature={value}: {model.name} takes 0 to 1"
    if thinking:
        yield from _while_thinking(body, model)


def _fixed(body: Mapping[str, object], model: Model, sampling: Sampling, *, thinking: bool) -> Iterator[str]:
    fixed = {
        "temperature": sampling.temperature if thinking else sampling.temperature_unthinking,
        "top_p": sampling.top_p,
        "presence_penalty": 0,
        "frequency_penalty": 0,
    }
    for name, only in fixed.items():
        if body.get(name) not in (None, only):
            when = f" {'with' if thinking else 'without'} thinking" if name == "temperature" else ""
            yield f"{name}={body[name]}: {model.name} takes only {only:g}{when}; leave it out"


def _while_thinking(body: Mapping[str, object], model: Model) -> Iterator[str]:
    remedy = 'pass thinking={"type": "disabled"}' if model.thinking == "optional" else "choose a model that does not"
    asked = body.get("thinking")
    if model.thinking == "always" and isinstance(asked, Mapping) and asked.get("type") == "disabled":
        yield f"thinking={asked!r}: {model.name} always thinks; leave it out, or choose a model that need not"
    choice = body.get("tool_choice")
    words = ("auto", "none", "required") if model.name.startswith(_REQUIRED_WHILE_THINKING) else ("auto", "none")
    if isinstance(choice, Mapping) or (choice == "required" and choice not in words):
        yield f"tool_choice={choice!r}: {model.name} takes only {' or '.join(words)} while it thinks; or {remedy}"
    for tool in _items(body.get("tools")):
        function = tool.get("function")
        if isinstance(function, Mapping) and function.get("name") == "$web_search":
            yield f"$web_search: not while {model.name} thinks; {remedy}"
    for message in _items(body.get("messages")):
        if message.get("tool_calls") and message.get("reasoning_content") is None:
            yield (
                f"tool_calls without reasoning_content: {model.name} wants both back, while it thinks; "
                'append the assistant\'s message just as it came, or with reasoning_content="" if it had none'
            )


def _items(value: object) -> Iterator[Mapping[str, object]]:
    return (item for item in value if isinstance(item, Mapping)) if isinstance(value, list | tuple) else iter(())
