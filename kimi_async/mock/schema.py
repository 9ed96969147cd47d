"""A value for a JSON schema: what the model makes up when it must answer in one."""

from collections.abc import Callable, Mapping
from math import ceil, floor
from typing import Any

JsonSchema = Mapping[str, Any]

DEEPEST = 8
"""Levels of ``$ref`` after which a schema that holds itself gets its shortest value."""

_NAMED = {
    "city": "Beijing",
    "location": "Beijing",
    "place": "Beijing",
    "country": "China",
    "language": "English",
    "name": "Chang'e",
    "title": "The moon",
    "query": "the moon",
    "question": "How far is the moon?",
    "text": "The moon rose over a calm sea.",
    "expression": "1 + 1",
    "url": "https://example.com/moon",
    "path": "moon.txt",
    "timezone": "Asia/Shanghai",
}
_FORMATS = {
    "date-time": "2026-11-23T20:00:00Z",
    "date": "2026-11-23",
    "time": "20:00:00Z",
    "duration": "PT1H",
    "email": "moon@example.com",
    "uri": "https://example.com/moon",
    "uuid": "6d6f6f6e-0000-4000-8000-000000000000",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "binary": "moon",
}
_WORD = "moon"


def example(schema: JsonSchema) -> object:
    """The same valid value for the same schema, with every property but those that have a default.

    It knows what pydantic and the openai SDK write: types, ``enum``, ``const``, ``anyOf``, ``oneOf``, ``allOf``,
    ``$ref`` into the schema itself, objects, arrays, formats and bounds. ``pattern``, ``not`` and conditions are
    ignored.

    Args:
        schema: of any type; an empty one takes a string.

    Raises:
        ValueError: it is malformed, or must hold itself without end.
    """
    try:
        return _Writer(schema).value(schema, "")
    except (TypeError, AttributeError, LookupError, RecursionError) as exc:
        raise ValueError(f"no value fits the JSON schema: {exc}") from exc


class _Writer:
    def __init__(self, root: JsonSchema) -> None:
        self._root = root
        self._depth = 0

    def value(self, schema: Any, name: str) -> object:
        if not isinstance(schema, Mapping):
            return _WORD  # true: anything
        given = [*(schema.get("examples") or ()), *(schema.get("enum") or ())]
        if "const" in schema or given:
            return schema.get("const", given[0] if given else None)
        for keyword, write in (("$ref", self._referred), ("anyOf", self._chosen), ("oneOf", self._chosen)):
            if schema.get(keyword):
                return write(schema[keyword], name)
        return self.value(_merged(schema), name) if schema.get("allOf") else self._typed(schema, name)

    def _referred(self, pointer: str, name: str) -> object:
        target: Any = self._root
        for step in pointer.removeprefix("#").strip("/").split("/"):
            key = step.replace("~1", "/").replace("~0", "~")
            target = target.get(key, {}) if key and isinstance(target, Mapping) else target
        self._depth += 1
        try:
            return self.value(target, name)
        finally:
            self._depth -= 1

    def _chosen(self, choices: list[Any], name: str) -> object:
        """The first that is not null; null, if there is one, where a schema that holds itself must end."""
        nulls = [choice for choice in choices if isinstance(choice, Mapping) and choice.get("type") == "null"]
        others = [choice for choice in choices if choice not in nulls]
        return self.value(others[0], name) if others and not (nulls and self._too_deep) else None

    def _typed(self, schema: JsonSchema, name: str) -> object:
        writers: dict[str, Callable[[], object]] = {
            "object": lambda: self._object(schema),
            "array": lambda: self._array(schema, name),
            "integer": lambda: _integer(schema),
            "number": lambda: _number(schema),
            "boolean": lambda: True,
            "null": lambda: None,
        }
        return writers.get(_type(schema), lambda: _string(schema, name))()

    def _object(self, schema: JsonSchema) -> dict[str, object]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or ()
        found = {
            name: self.value(of, name)
            for name, of in properties.items()
            if name in required or not (self._too_deep or (isinstance(of, Mapping) and "default" in of))
        }
        more = schema.get("additionalProperties")
        if not properties and isinstance(more, Mapping):
            return {_WORD: self.value(more, _WORD)}
        return found

    def _array(self, schema: JsonSchema, name: str) -> list[object]:
        found = [self.value(of, name) for of in schema.get("prefixItems") or ()]
        wanted = 0 if found or self._too_deep or schema.get("maxItems") == 0 else 1
        least = max(schema.get("minItems", 0), wanted)
        items = schema.get("items", {})
        while len(found) < least:
            found.append(self.value(items, name))
        return found

    @property
    def _too_deep(self) -> bool:
        return self._depth > DEEPEST


def _type(schema: JsonSchema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind is None and "properties" in schema:
        return "object"
    if kind is None and "items" in schema:
        return "array"
    return str(kind or "string")


def _merged(schema: JsonSchema) -> JsonSchema:
    """``allOf`` as one schema; references in it are left, as pydantic wraps a single one only."""
    parts = [{key: value for key, value in schema.items() if key != "allOf"}, *schema["allOf"]]
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if key == "properties":
                merged[key] = {**merged.get(key, {}), **value}
            elif key == "required":
                merged[key] = [*merged.get(key, []), *value]
            else:
                merged[key] = value
    return merged


def _integer(schema: JsonSchema) -> int:
    """1, or what is nearest to it."""
    step = int(schema.get("multipleOf", 1))
    value = -(-1 // step) * step
    lowest = [ceil(schema["minimum"])] if "minimum" in schema else []
    lowest += [floor(schema["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in schema else []
    highest = [floor(schema["maximum"])] if "maximum" in schema else []
    highest += [ceil(schema["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in schema else []
    value = max([value, *(-(-bound // step) * step for bound in lowest)])
    return int(min([value, *(bound // step * step for bound in highest)]))


def _number(schema: JsonSchema) -> float:
    """1.5, or something between the bounds."""
    lowest = schema.get("minimum", schema.get("exclusiveMinimum"))
    highest = schema.get("maximum", schema.get("exclusiveMaximum"))
    value = 1.5
    if lowest is not None and highest is not None:
        value = (lowest + highest) / 2
    elif lowest is not None:
        value = max(value, lowest + 1)
    elif highest is not None:
        value = min(value, highest - 1)
    step = schema.get("multipleOf")
    return value if step is None else float(ceil(value / step) * step)


def _string(schema: JsonSchema, name: str) -> str:
    text = _FORMATS.get(schema.get("format", "")) or _NAMED.get(name.lower(), _WORD)
    text = text.ljust(schema.get("minLength", 0), ".")
    return text[: schema.get("maxLength")]
