"""A Python function as a tool: what the model is told of it, and what a call with its arguments does."""

import asyncio
import contextvars
import dataclasses
import datetime as dt
import enum
import functools
import json
import math
import threading
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from kimi_async.errors import ConfigurationError
from kimi_async.functions import InvalidArguments, PythonFunction
from kimi_async.schema import ANY_TYPE
from tests.conftest import run_virtual


class Unit(enum.Enum):
    """Of temperature."""

    CELSIUS = "celsius"
    KELVIN = "kelvin"


class Place(BaseModel):
    """Where."""

    city: str


@dataclasses.dataclass
class Size:
    width: int
    height: int


def google(city: str, days: int = 3):
    """The weather of a city.

    As forecast today.

    Args:
        city: its name,
            as people call it.
        days: how many.
    """


def numpy(city: str, days: int = 3):
    """The weather of a city.

    As forecast today.

    Parameters
    ----------
    city : str
        its name,
        as people call it.
    days : int
        how many.
    """


def sphinx(city: str, days: int = 3):
    """The weather of a city.

    As forecast today.

    :param city: its name,
        as people call it.
    :param days: how many.
    """


def parameters(function):
    """The properties that a function declares."""
    return PythonFunction(function).declaration["function"]["parameters"]["properties"]


@pytest.mark.parametrize("function", [google, numpy, sphinx])
def test_a_docstring_of_any_style_describes_the_function(function):
    """Its first part is the function's description, its section of arguments the parameters'."""
    assert PythonFunction(function).declaration == {
        "type": "function",
        "function": {
            "name": function.__name__,
            "description": "The weather of a city.\n\nAs forecast today.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "its name,\nas people call it."},
                    "days": {"type": "integer", "description": "how many.", "default": 3},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }


def test_a_docstring_that_no_style_fits_is_the_description():
    """Whole, whatever is in it."""

    def odd(city: str):
        """: : int"""  # noqa: D400, D415

    assert repr(PythonFunction(odd)) == "<PythonFunction odd(city: str)>"
    assert PythonFunction(odd).declaration["function"]["description"] == ": : int"


def test_a_function_without_docstring_and_parameters():
    """It has a name and an empty object."""

    def now():
        pass

    assert PythonFunction(now).declaration == {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    }


def test_annotations_say_more_than_the_docstring():
    """A Field's description counts more, and its bounds are declared."""

    def roll(
        sides: Annotated[int, Field(ge=2, description="of the die")] = 6, *, times: Annotated[int, "how often"] = 1
    ):
        """Roll dice.

        Args:
            sides: overruled.
            times: times.
        """

    assert parameters(roll) == {
        "sides": {"type": "integer", "minimum": 2, "description": "of the die", "default": 6},
        "times": {"type": "integer", "description": "times.", "default": 1},
    }


def test_types_of_all_sorts():
    """What pydantic can validate can be declared; what has no type takes anything."""

    def odd(place: Place, unit: Unit = Unit.KELVIN, tag=None, limit: int = None, mode: Literal["a", "b"] = "a"):  # noqa: RUF013
        """Odd.

        :param unit: the unit.
        """

    assert parameters(odd) == {
        "place": {"$ref": "#/$defs/Place"},
        "unit": {"anyOf": [{"$ref": "#/$defs/Unit"}], "description": "the unit."},
        "tag": {"type": ANY_TYPE},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
    }


class Station:
    """A station."""

    def measure(self, at: str) -> str:
        """Measure."""
        return f"measured {at}"

    async def __call__(self, at: str) -> str:
        return f"called {at}"

    @staticmethod
    def plain(at: str) -> str:
        return f"static {at}"


def shout(function):
    """A decorator as they should be."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@shout
async def decorated(at: str) -> str:
    """Say where."""
    return f"decorated {at}"


@functools.cache
def cached(at: str) -> str:
    """Say where."""
    return f"cached {at}"


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("function", "name", "description", "result"),
    [
        (Station().measure, "measure", "Measure.", "measured sea"),
        (Station(), "Station", "A station.", "called sea"),
        (Station.plain, "plain", None, "static sea"),
        (functools.partial(Station.measure, Station()), "measure", "Measure.", "measured sea"),
        (decorated, "decorated", "Say where.", "decorated sea"),
        (cached, "cached", "Say where.", "cached sea"),
    ],
)
async def test_whatever_can_be_called(function, name, description, result):
    """Methods, objects, partials and decorated functions are declared and called like plain functions."""
    tool = PythonFunction(function)
    assert tool.declaration["function"]["name"] == tool.name == name
    assert tool.declaration["function"].get("description") == description
    assert tool.declaration["function"]["parameters"]["properties"] == {"at": {"type": "string"}}
    assert await tool.call('{"at": "sea"}') == result


async def test_what_a_partial_binds_stays_with_the_program():
    """A key that is bound is neither declared nor taken from the model."""

    async def search(query: str, *, key: str) -> str:
        return f"{query} {key}"

    tool = PythonFunction(functools.partial(search, key="secret"))
    assert "key" not in json.dumps(tool.declaration)
    assert await tool.call('{"query": "tea"}') == "tea secret"
    with pytest.raises(InvalidArguments, match="- key: unknown; the function takes query"):
        await tool.call('{"query": "tea", "key": "mine"}')


async def test_positional_only_parameters_are_passed_by_position():
    """The model names them; Python does not."""

    async def power(base: int = 2, exponent: int = 2, /, *, plus: int = 0) -> int:
        return base**exponent + plus

    assert await PythonFunction(power).call('{"base": 3, "plus": 1}') == "10"
    assert await PythonFunction(power).call('{"exponent": 5}') == "32"


async def test_names_that_pydantic_keeps_for_itself():
    """Parameters may be called what a pydantic model's own attributes are called, or begin with an underscore."""

    async def tool(json: int, copy: int, _id: int, model_config: int, schema: int = 5, self: int = 6):
        return [json, copy, _id, model_config, schema, self]

    call = PythonFunction(tool).call('{"json": 1, "copy": 2, "_id": 3, "model_config": 4}')
    assert await call == "[1,2,3,4,5,6]"
    assert list(parameters(tool)) == ["json", "copy", "_id", "model_config", "schema", "self"]


def _args(*args):
    pass


def _kwargs(**options):
    pass


def _namespace(where: "Missing"):  # noqa: F821 - that is the point
    pass


def _lock(city: str, lock: threading.Lock):
    pass


def _callback(callback: type(print)):
    pass


def _late(unit: str = Field("celsius")):
    pass


def _long():
    pass


_args.__name__, _kwargs.__name__, _late.__name__ = "args", "kwargs", "late"
_namespace.__name__, _lock.__name__, _long.__name__ = "namespace", "lock", "x" * 65


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (_args, r"args: \*args cannot be declared: name each parameter"),
        (_kwargs, r"kwargs: \*\*options cannot be declared"),
        (_namespace, "namespace: its type hints cannot be read: name 'Missing' is not defined"),
        (_lock, "lock, parameter 'lock': .*types that JSON can carry"),
        (_late, r"late: parameter 'unit': write Annotated"),
        (_long, "'xxx+': Kimi takes names"),
        (_callback, "'_callback': Kimi takes names of up to 64 .* beginning with a letter"),
        (lambda city: city, "a lambda has no name .*use def"),
        (Place, "Place is a class"),
        (min, "min: its signature cannot be read"),
    ],
)
def test_what_cannot_be_declared_is_refused_with_the_reason(function, text):
    """Before anything is sent; the text names the function, the parameter and the remedy."""
    with pytest.raises(ConfigurationError, match=text):
        PythonFunction(function)


async def test_arguments_arrive_as_the_types_that_are_declared():
    """A model's JSON becomes models, dataclasses, enums and dates."""
    got = []

    async def book(place: Place, size: Size, unit: Unit, when: dt.datetime, tags: set[int]):
        got.append((place, size, unit, when, tags))

    arguments = {
        "place": {"city": "Oslo"},
        "size": {"width": 1, "height": 2},
        "unit": "kelvin",
        "when": "2026-01-02T03:04:05Z",
        "tags": [1, 1],
    }
    assert await PythonFunction(book).call(json.dumps(arguments)) == "null"
    when = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    assert got == [(Place(city="Oslo"), Size(1, 2), Unit.KELVIN, when, {1})]


async def test_defaults_are_pythons_own():
    """What the model leaves out is the very object of the signature, of whatever type it is."""
    default = object()
    got = []

    async def tool(thing: Any = default, number: int = "not checked"):
        got.append((thing, number))

    await PythonFunction(tool).call("")
    assert parameters(tool) == {"thing": {"type": ANY_TYPE}, "number": {"type": "integer"}}
    assert got[0][0] is default
    assert got[0][1] == "not checked"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_whatever_json_can_carry_arrives_equal(value):
    """Through a parameter without a type, and back as the result."""
    got = []

    async def tool(value):
        got.append(value)
        return [value]

    result = run_virtual(PythonFunction(tool).call(json.dumps({"value": value})))
    assert got == [value]
    assert json.loads(result) == [value]


async def weather(city: str, days: Annotated[int, Field(le=7)] = 1, place: Place | None = None):
    """A tool with something to get wrong."""
    return "sunny"


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ('{"city": "Oslo"', ["- arguments: Invalid JSON: EOF while parsing an object at line 1 column 15"]),
        ('["Oslo"]', ["- arguments: Input should be an object"]),
        ("", ["- city: Field required"]),
        (
            '{"days": 9, "town": 1, "place": {}}',
            [
                "- city: Field required",
                "- days: Input should be less than or equal to 7",
                "- place.city: Field required",
                "- town: unknown; the function takes city, days, place",
            ],
        ),
    ],
)
async def test_wrong_arguments_are_explained_to_the_model(arguments, lines):
    """Each place and what is wrong with it, and nothing else."""
    with pytest.raises(InvalidArguments) as caught:
        await PythonFunction(weather).call(arguments)
    assert str(caught.value).splitlines() == ["Invalid arguments for weather:", *lines]


class Word(enum.StrEnum):
    YES = "yes"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (Word.YES, "yes"),
        (None, "null"),
        (True, "true"),
        ({"城市": ["北京", 1.5]}, '{"城市":["北京",1.5]}'),
        (Place(city="Lima"), '{"city":"Lima"}'),
        ([Size(1, 2)], '[{"width":1,"height":2}]'),
        (dt.date(2026, 1, 2), '"2026-01-02"'),
        ([Unit.KELVIN, math.pi], '["kelvin",3.141592653589793]'),
        (slice(1, 2), '"slice(1, 2, None)"'),
    ],
)
async def test_what_a_function_returns_becomes_text(value, text):
    """Text as it is, all else as JSON, and what JSON does not know as its ``str``."""

    async def tool():
        return value

    assert await PythonFunction(tool).call("{}") == text


@pytest.mark.real_time
async def test_a_sync_function_runs_in_a_thread_with_the_callers_context():
    """The loop is not held up, and context variables are those of the call."""
    user = contextvars.ContextVar("user")

    def tool():
        return [threading.current_thread() is threading.main_thread(), user.get()]

    user.set("ann")
    assert await PythonFunction(tool).call("{}") == '[false,"ann"]'


@pytest.mark.real_time
async def test_a_stop_iteration_does_not_hang_the_call():
    """No future can carry one."""

    def first():
        return next(iter([]))

    async with asyncio.timeout(5):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await PythonFunction(first).call("{}")
