"""JSON schemas as Kimi accepts them: pydantic's, put into the words of "Moonshot flavored JSON schema" (MFJS).

Kimi checks the schemas of tools and of ``response_format``, and refuses some that are valid elsewhere with a 400:
``type`` or a constraint beside ``anyOf``, and a ``description`` beside a ``$ref`` whose target has one too. Others it
ignores. The subset is https://github.com/MoonshotAI/walle/blob/main/docs/mfjs-spec.md and its comparison with draft
2020-12. What has no word in it, such as ``pattern`` or ``format``, is left in: the model reads it, and nobody
enforces it but pydantic.
"""

import math
from collections.abc import Mapping

Schema = dict[str, object]

ANY_TYPE = ["string", "number", "boolean", "object", "array", "null"]
"""``type`` of a value that may be anything; Kimi does not take ``{}`` for that inside ``properties``."""

BESIDE_ANY_OF = {"anyOf", "$ref", "description", "$defs"}
"""All that may stand on one level with ``anyOf`` or ``$ref``."""

JSON_TYPES = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"}
"""``type`` of the values that an ``enum`` or a ``default`` may hold."""

VALUELESS = ("null", "boolean")
"""Types whose values no ``enum`` may list."""

DROPPED = {"title", "discriminator"}
"""Names that say nothing new, and OpenAPI's hint for parsers."""


def accepted(schema: Mapping[str, object]) -> Schema:
    """The same schema in Kimi's subset; the one given is not changed.

    ``oneOf`` becomes ``anyOf``, ``const`` an ``enum`` of one, an ``enum`` of several types one of each, a reference
    with a description an ``anyOf`` of one. Titles go, and so do defaults that are no plain value of the declared type
    or stand beside ``anyOf``.
    """
    node = {_renamed(key): _child(key, value) for key, value in schema.items() if key not in DROPPED}
    if "$ref" in node and "description" in node:
        node["anyOf"] = [{"$ref": node.pop("$ref")}]
    if "type" not in node and "enum" in node:
        node = _by_type(node)
    if "anyOf" in node or "$ref" in node:
        return {key: value for key, value in node.items() if key in BESIDE_ANY_OF}
    if node.setdefault("type", ANY_TYPE) in VALUELESS:
        node.pop("enum", None)
    if not _fits(node.get("default"), node["type"]):
        node.pop("default", None)
    return node


def _renamed(keyword: str) -> str:
    return {"oneOf": "anyOf", "const": "enum"}.get(keyword, keyword)


def _child(keyword: str, value: object) -> object:
    if keyword == "const":
        return [value]
    if keyword in {"properties", "$defs"} and isinstance(value, Mapping):
        return {name: accepted(child) for name, child in value.items()}
    if keyword in {"anyOf", "oneOf", "prefixItems"} and isinstance(value, list):
        return [accepted(child) for child in value]
    if keyword in {"items", "additionalProperties"} and isinstance(value, Mapping):
        return accepted(value)
    return value


def _by_type(node: Schema) -> Schema:
    """An ``enum`` of several types as one branch for each: Kimi wants all of one type."""
    values = node.pop("enum")
    assert isinstance(values, list)
    types: dict[str, list[object]] = {}
    for value in values:
        types.setdefault(_type_of(value), []).append(value)
    branches = [accepted({"type": name, "enum": options}) for name, options in types.items()]
    return {**node, "anyOf": branches} if len(branches) > 1 else {**node, **branches[0]}


def _type_of(value: object) -> str:
    return JSON_TYPES.get(type(value), "string")


def _fits(default: object, kind: object) -> bool:
    """Whether a default is one that Kimi takes: a plain value of the one type that is declared."""
    if isinstance(default, float) and not math.isfinite(default):
        return False
    return JSON_TYPES.get(type(default)) == kind or (type(default) is int and kind == "number")
