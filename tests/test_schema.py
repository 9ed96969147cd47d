"""Schemas in Kimi's subset: what pydantic writes in other words, Kimi gets in its own."""

import copy
import enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from kimi_async.schema import ANY_TYPE, accepted


class Colour(enum.Enum):
    """A colour."""

    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    model_config = ConfigDict(title="A cat")
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]
    title: str = "Rex"


class Node(BaseModel):
    """A node."""

    value: int
    next: "Node | None" = Field(None, description="the rest")


class Palette(BaseModel):
    main: Colour = Field(Colour.RED, description="the main one")
    others: set[Colour] = set()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (int, {"type": "integer"}),
        (Literal["x"], {"type": "string", "enum": ["x"]}),
        (Literal[True], {"type": "boolean"}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (
            Literal["a", 1, 2, None],  # noqa: PYI061 - this is how pydantic writes one enum of many types
            {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "integer", "enum": [1, 2]}, {"type": "null"}]},
        ),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Any, {"type": ANY_TYPE}),
        (list[Any], {"type": "array", "items": {"type": ANY_TYPE}}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (Annotated[int, Field(ge=1, le=9, title="Digit")], {"type": "integer", "minimum": 1, "maximum": 9}),
    ],
)
def test_a_type_in_kimis_words(kind, expected):
    """Constants are enums of one, enums have one type, and anything is all types."""
    assert accepted(TypeAdapter(kind).json_schema()) == expected


def test_a_discriminated_union_is_any_of_its_members():
    """``oneOf`` and ``discriminator`` have no word; titles are no news, but a property of that name stays."""
    schema = accepted(TypeAdapter(Annotated[Cat | Dog, Field(discriminator="kind")]).json_schema())
    assert schema["anyOf"] == [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]
    assert schema.keys() == {"$defs", "anyOf"}
    assert schema["$defs"]["Cat"].keys() == {"properties", "required", "type"}
    assert schema["$defs"]["Dog"]["properties"]["title"] == {"type": "string", "default": "Rex"}


def test_a_described_reference_does_not_meet_its_targets_description():
    """Kimi refuses a description beside a reference: "conflicting keywords found after $ref expansion"."""
    main = accepted(Palette.model_json_schema())["properties"]["main"]
    assert main == {"anyOf": [{"$ref": "#/$defs/Colour"}], "description": "the main one"}


def test_a_recursive_model_keeps_its_definitions():
    """They stand beside the reference at the root."""
    schema = accepted(Node.model_json_schema())
    assert schema["$ref"] == "#/$defs/Node"
    assert schema["$defs"]["Node"]["properties"]["next"] == {
        "anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}],
        "description": "the rest",
    }


@pytest.mark.parametrize("default", [None, [], {}, float("inf"), float("nan"), "one", True])
def test_a_default_that_cannot_be_stated_is_left_out(default):
    """Kimi takes plain values of the declared type; the parameter is optional all the same."""
    assert accepted({"type": "number", "default": default}) == {"type": "number"}


@pytest.mark.parametrize(("kind", "default"), [("number", 1), ("number", 1.5), ("integer", 1), ("boolean", False)])
def test_a_plain_default_is_stated(kind, default):
    """The model then knows what it leaves out."""
    assert accepted({"type": kind, "default": default}) == {"type": kind, "default": default}


def nodes(schema):
    """All schemas within a schema, itself included."""
    yield schema
    for key, value in schema.items():
        if key in {"properties", "$defs"}:
            for child in value.values():
                yield from nodes(child)
        elif key in {"anyOf", "prefixItems"}:
            for child in value:
                yield from nodes(child)
        elif key in {"items", "additionalProperties"} and isinstance(value, dict):
            yield from nodes(value)


kinds = st.recursive(
    st.sampled_from(
        [int, float, str, bool, bytes, Any, None, Colour, Cat, Node, Palette, Literal["a", 1], Literal[1]]
    ),
    lambda inner: st.one_of(
        inner.map(lambda kind: list[kind]),
        inner.map(lambda kind: dict[str, kind]),
        inner.map(lambda kind: tuple[kind, int]),
        inner.map(lambda kind: kind | None if kind is not None else kind),
        inner.map(lambda kind: Annotated[kind, Field(description="what it is")]),
    ),
    max_leaves=4,
)


@given(kinds)
def test_whatever_the_type_the_schema_is_in_the_subset(kind):
    """Each level has a type, a reference or alternatives, and only a description beside the latter two."""
    given_schema = TypeAdapter(kind).json_schema()
    before = copy.deepcopy(given_schema)
    schema = accepted(given_schema)
    assert given_schema == before
    for node in nodes(schema):
        assert len(node.keys() & {"type", "anyOf", "$ref"}) == 1
        assert "type" in node or node.keys() <= {"anyOf", "$ref", "description", "$defs"}
        assert not ("$ref" in node and "description" in node)
        assert not node.keys() & {"const", "oneOf", "title", "discriminator"}
        assert len({type(value) for value in node.get("enum", [])}) <= 1
