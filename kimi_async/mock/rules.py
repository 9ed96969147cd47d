"""Parameters and messages that Kimi refuses, in its words where they are known.

Texts in the wild: MoonshotAI/Kimi-K2 issue 141 (``invalid thinking``), can1357/oh-my-pi issue 827 and
UKGovernmentBEIS/inspect_ai pull request 5152 (``tool_choice``), and the error tables of Kimi's documentation.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kimi_async.models import Model
from kimi_async.parameters import MAX_STOP_BYTES, MAX_STOPS

WEB_SEARCH = "$web_search"
MEDIA = ("image_url", "video_url")

_EFFORTS = ("low", "high", "max")
_MEDIA_SCHEMES = ("data:", "ms://")
_REQUIRES_WHILE_THINKING = "kimi-k3"
"""The models that take ``tool_choice: "required"`` while they think (inspect_ai's probes, August 2026)."""


class InvalidRequest(Exception):
    """A request that gets an error before any budget is looked at.

    Attributes:
        status: of the answer.
        kind: ``error.type`` of the answer.
    """

    def __init__(self, message: str, *, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


def not_found(message: str) -> InvalidRequest:
    """Kimi's 404."""
    return InvalidRequest(message, status=404, kind="resource_not_found_error")


def thinks(model: Model, body: Mapping[str, Any]) -> bool:
    """Whether the model thinks before it answers this request.

    Raises:
        InvalidRequest: ``thinking`` makes no sense, or disables what always is.
    """
    if model.thinking == "never":
        return False
    asked = body.get("thinking")
    if asked is None:
        return True
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind not in ("enabled", "disabled"):
        raise InvalidRequest("Invalid request: thinking.type must be enabled or disabled")
    if kind == "disabled" and model.thinking == "always":
        raise InvalidRequest("invalid thinking: only type=enabled is allowed for this model")
    return bool(kind == "enabled")


def check(model: Model, body: Mapping[str, Any], *, thinking: bool) -> None:
    """Whether the model takes the request's parameters and messages.

    Args:
        model: the request's.
        body: the request: its messages are objects with a role that exists.
        thinking: whether it thinks before it answers.

    Raises:
        InvalidRequest: it does not.
    """
    _check_sampling(model, body, thinking=thinking)
    _check_stop(body.get("stop"))
    _check_tools(model, body, thinking=thinking)
    _check_response_format(body)
    _check_media(body["messages"])
    _check_partial(body["messages"])
    _check_tool_messages(body["messages"], thinking=thinking)


def _check_sampling(model: Model, body: Mapping[str, Any], *, thinking: bool) -> None:
    if body.get("reasoning_effort") not in (None, *_EFFORTS):
        raise InvalidRequest(f"Invalid request: reasoning_effort must be one of {', '.join(_EFFORTS)}")
    fixed = model.sampling
    if fixed is None:
        temperature = body.get("temperature")
        if isinstance(temperature, int | float) and not 0 <= temperature <= 1:
            raise InvalidRequest("invalid temperature: only 0 to 1 is allowed for this model")
        return
    allowed: dict[str, float] = {
        "temperature": fixed.temperature if thinking else fixed.temperature_unthinking,
        "top_p": fixed.top_p,
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
    }
    for name, value in allowed.items():
        if body.get(name, value) not in (value, None):
            raise InvalidRequest(f"invalid {name}: only {value:g} is allowed for this model")


def _check_stop(stop: object) -> None:
    stops = stops_of(stop)
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"Invalid request: stop must be at most {MAX_STOPS} strings")
    if any(len(one.encode("utf-8", "surrogatepass")) > MAX_STOP_BYTES for one in stops):
        raise InvalidRequest(f"Invalid request: each stop must be at most {MAX_STOP_BYTES} bytes")


def stops_of(stop: object) -> tuple[str, ...]:
    """The strings that end an answer.

    Raises:
        InvalidRequest: ``stop`` is no string, and no list of strings.
    """
    if stop is None:
        return ()
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise InvalidRequest("Invalid request: stop must be a string or a list of strings")
    return tuple(one for one in stops if one)


def tools_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All tools declared: the request's own, and those of system messages, which K3 lets bring some.

    Raises:
        InvalidRequest: one is no object with a function that has a name, or its parameters are no JSON schema.
    """
    declared: list[Any] = []
    for tools in (body.get("tools"), *(message.get("tools") for message in body["messages"])):
        declared += tools if isinstance(tools, list) else []
    for tool in declared:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest("Invalid request: every tool must be an object with a function that has a name")
        if not isinstance(function.get("parameters", {}), dict | None):
            raise InvalidRequest("Invalid request: the parameters of a function must be a JSON schema")
    return declared


def chosen_tool(body: Mapping[str, Any]) -> str | None:
    """The name of the only function that ``tool_choice`` allows, if it names one.

    Raises:
        InvalidRequest: ``tool_choice`` is neither a known word nor names a function.
    """
    choice = body.get("tool_choice")
    if choice is None or (isinstance(choice, str) and choice in {"auto", "none", "required"}):
        return None
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InvalidRequest("Invalid request: tool_choice must be none, auto, required or name a function")
    return name


def _check_tools(model: Model, body: Mapping[str, Any], *, thinking: bool) -> None:
    names = [tool["function"]["name"] for tool in tools_of(body)]
    chosen = chosen_tool(body)
    if chosen is not None and chosen not in names:
        raise InvalidRequest(f"Invalid request: tool_choice names {chosen}, which is not among the tools")
    if not thinking:
        return
    if chosen is not None:
        raise InvalidRequest("tool_choice 'specified' is incompatible with thinking enabled")
    if body.get("tool_choice") == "required" and not model.name.startswith(_REQUIRES_WHILE_THINKING):
        raise InvalidRequest("tool_choice 'required' is incompatible with thinking enabled")
    if WEB_SEARCH in names:
        raise InvalidRequest(f"builtin_function {WEB_SEARCH} is incompatible with thinking enabled")


def _check_response_format(body: Mapping[str, Any]) -> None:
    asked = body.get("response_format")
    if asked is None:
        return
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise InvalidRequest("Invalid request: response_format.type must be text, json_object or json_schema")
    if kind == "json_object" and body["messages"][-1].get("partial"):
        raise InvalidRequest("Invalid request: partial mode is incompatible with response_format json_object")
    wrapped = asked.get("json_schema")
    if kind == "json_schema" and not (isinstance(wrapped, dict) and isinstance(wrapped.get("schema"), dict)):
        raise InvalidRequest("Invalid request: response_format.json_schema.schema must be a JSON schema")


def media_urls(message: Mapping[str, Any]) -> Iterator[str]:
    """Where the images and videos of a message are."""
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        for kind in MEDIA:
            value = part.get(kind) if isinstance(part, dict) else None
            url = value.get("url") if isinstance(value, dict) else value
            if isinstance(url, str):
                yield url


def _check_media(messages: list[dict[str, Any]]) -> None:
    for message in messages:
        for url in media_urls(message):
            if not url[:5].lower().startswith(_MEDIA_SCHEMES):
                raise InvalidRequest(f"Invalid request: unsupported url {url[:60]}: only data: and ms:// are allowed")


def _check_partial(messages: list[dict[str, Any]]) -> None:
    for index, message in enumerate(messages):
        if message.get("partial") and (message["role"] != "assistant" or index < len(messages) - 1):
            raise InvalidRequest(
                f"Invalid request: the message at position {index} must not be partial: only the last one, "
                "with role 'assistant', may be"
            )


def _check_tool_messages(messages: list[dict[str, Any]], *, thinking: bool) -> None:
    """Every call gets its answer before anybody else speaks, and no answer comes uncalled."""
    owed: set[str] = set()
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            call_id = message.get("tool_call_id")
            if not isinstance(call_id, str) or call_id not in owed:
                raise InvalidRequest(f"Invalid request: tool_call_id {call_id or ''} is not found")
            owed.remove(call_id)
            continue
        _check_paid(owed)
        owed = set(call_ids(message))
        if message["role"] == "assistant" and not (owed or message.get("content") or message.get("partial")):
            raise InvalidRequest(f"the message at position {index} with role 'assistant' must not be empty")
        if owed and thinking and not isinstance(message.get("reasoning_content"), str):
            raise InvalidRequest(
                f"thinking is enabled but reasoning_content is missing in assistant tool call message at index {index}"
            )
    _check_paid(owed)


def _check_paid(owed: set[str]) -> None:
    if owed:
        raise InvalidRequest(
            "Invalid request: an assistant message with 'tool_calls' must be followed by tool messages responding "
            "to each 'tool_call_id'. The following tool_call_ids did not have response messages: "
            + ", ".join(sorted(owed))
        )


def call_ids(message: Mapping[str, Any]) -> Iterator[str]:
    """Ids of the tool calls that a message makes.

    Raises:
        InvalidRequest: one has no id or no function.
    """
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        call_id = call.get("id") if isinstance(call, dict) else None
        if not isinstance(call_id, str) or not isinstance(call.get("function"), dict):
            raise InvalidRequest("Invalid request: every tool call must be an object with an id and a function")
        yield call_id
