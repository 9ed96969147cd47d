"""A Python function as a tool: its declaration for the model, and its calls with arguments that the model wrote."""

import asyncio
import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from .errors import ConfigurationError
from .schema import Schema, accepted

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
"""What Kimi takes: "must start with a letter and can contain letters, numbers, underscores, and dashes"."""

_Fields = Mapping[str, tuple[Any, Any]]
"""``(type, default)`` of each parameter, in pydantic's terms."""


class InvalidArguments(ValueError):
    """What a model wrote is no JSON, or does not fit the function; the text tells it where."""


class PythonFunction:
    """A function that the model may call.

    Its parameters are declared with their types, ``Annotated[..., pydantic.Field(...)]`` included, and described as
    in the ``Args`` of its docstring, in Google's, NumPy's or Sphinx's style. A parameter without a type takes any JSON
    value. What ``functools.partial`` binds is neither shown to the model nor taken from it.

    Args:
        function: sync or async; also a method of an object, a partial, or an object with ``__call__``.

    Raises:
        ConfigurationError: it cannot be declared; the text says which parameter stands in the way.

    Attributes:
        name: what the model calls it.
        declaration: the function as an entry of a request's ``tools``.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function
        target = _target(function)
        self.name = _name(function, target)
        self._is_async = inspect.iscoroutinefunction(target)
        self._signature = _signature(function, self.name)
        description, of_parameters = _documentation(function, target)
        hints = _hints(target, self.name)
        self._model, schema = _declared(self.name, _fields(self.name, self._signature, hints, of_parameters))
        self.declaration: dict[str, object] = {
            "type": "function",
            "function": {
                "name": self.name,
                **({"description": description} if description else {}),
                "parameters": accepted(_with_defaults(schema, self._signature)),
            },
        }

    def __repr__(self) -> str:
        return f"<PythonFunction {self.name}{self._signature}>"

    async def call(self, arguments: str) -> str:
        """Call it with arguments as JSON text, none as ``""``; what it returns, as text for the model.

        A sync function runs in a thread, which a cancelled call cannot stop. Text is passed on as it is, all else as
        JSON: None is ``null``.

        Raises:
            InvalidArguments: the function was not called.
            Exception: whatever the function raises.
        """
        bound = self._bound(arguments)
        call = partial(self._function, *bound.args, **bound.kwargs)
        result = call() if self._is_async else await asyncio.to_thread(_in_thread, call)
        if inspect.isawaitable(result):  # also what a sync wrapper of an async function returns
            result = await typing.cast("Awaitable[object]", result)
        return str.__str__(result) if isinstance(result, str) else to_json(result, fallback=str).decode()

    def _bound(self, arguments: str) -> inspect.BoundArguments:
        """Only what the model gave: defaults are Python's own, not copies."""
        try:
            values = self._model.model_validate_json(arguments.strip() or "{}")
        except ValidationError as exc:
            raise InvalidArguments(self._complaint(exc)) from exc
        given = {
            name: getattr(values, field)
            for name, field in zip(self._signature.parameters, self._model.model_fields, strict=True)
            if field in values.model_fields_set
        }
        bound = inspect.BoundArguments(self._signature, typing.cast("Any", given))
        bound.apply_defaults()
        return bound

    def _complaint(self, error: ValidationError) -> str:
        """What pydantic found, a line for each place."""
        known = ", ".join(self._signature.parameters) or "no parameters"
        lines = [f"Invalid arguments for {self.name}:"]
        for one in error.errors(include_url=False, include_context=False, include_input=False):
            unknown = one["type"] == "extra_forbidden" and len(one["loc"]) == 1
            place = ".".join(map(str, one["loc"])) or "arguments"
            lines.append(f"- {place}: " + (f"unknown; the function takes {known}" if unknown else one["msg"]))
        return "\n".join(lines)


def _unbound(function: Callable[..., object]) -> Callable[..., object]:
    while isinstance(function, partial):
        function = function.func
    return function


def _target(function: Callable[..., object]) -> Callable[..., object]:
    """Where the type hints and the docstring are: under partials, or the ``__call__`` of an object."""
    function = _unbound(function)
    if inspect.isclass(function):
        raise ConfigurationError(f"{function.__name__} is a class: a tool is a function, or an object with __call__")
    return function if inspect.isroutine(function) else typing.cast("Any", type(function)).__call__


def _name(function: Callable[..., object], target: Callable[..., object]) -> str:
    function = _unbound(function)
    name = target.__name__ if function is target else type(function).__name__
    if name == "<lambda>":
        raise ConfigurationError("a lambda has no name that the model could call: use def")
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r}: Kimi takes names of up to 64 letters, digits, _ and -, beginning with a letter: rename it"
        )
    return name


def _signature(function: Callable[..., object], name: str) -> inspect.Signature:
    """The parameters that the model may give: those that partials bind are left out."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError) as exc:
        raise ConfigurationError(f"{name}: its signature cannot be read: {exc}; wrap it with def") from exc
    bound = function.keywords if isinstance(function, partial) else {}
    parameters = [one for one in signature.parameters.values() if one.name not in bound]
    for one in parameters:
        if one.kind in {one.VAR_POSITIONAL, one.VAR_KEYWORD}:
            stars = "*" if one.kind is one.VAR_POSITIONAL else "**"
            raise ConfigurationError(
                f"{name}: {stars}{one.name} cannot be declared: name each parameter"
                " (decorators keep their names with functools.wraps)"
            )
    return signature.replace(parameters=parameters)


def _documentation(
    function: Callable[..., object], target: Callable[..., object]
) -> tuple[str | None, Mapping[str, str]]:
    """The description in a function's docstring, and those of its parameters."""
    import docstring_parser  # noqa: PLC0415 - only who has tools needs it

    text = inspect.cleandoc(target.__doc__ or _unbound(function).__doc__ or "")
    try:
        parsed = docstring_parser.parse(text)
    except (docstring_parser.ParseError, LookupError):  # the latter escapes it where a NumPy type has no name
        return text, {}
    return parsed.description, {one.arg_name: one.description for one in parsed.params if one.description}


def _hints(target: Callable[..., object], name: str) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as exc:
        raise ConfigurationError(
            f"{name}: its type hints cannot be read: {exc}; use names that its module has at run time"
        ) from exc


def _fields(
    function: str, signature: inspect.Signature, hints: Mapping[str, Any], descriptions: Mapping[str, str]
) -> _Fields:
    """The parameters as fields. They are numbered, as pydantic has none that is called ``json`` or ``_id``."""
    return {
        f"p{number}": _field(function, one, hints.get(one.name, Any), descriptions.get(one.name))
        for number, one in enumerate(signature.parameters.values())
    }


def _field(function: str, parameter: inspect.Parameter, hint: Any, description: str | None) -> tuple[Any, Any]:
    if isinstance(parameter.default, FieldInfo):
        raise ConfigurationError(
            f"{function}: parameter {parameter.name!r}: write Annotated[..., Field(...)], not a default of Field(...)"
        )
    kind, *metadata = (hint.__origin__, *hint.__metadata__) if typing.get_origin(hint) is Annotated else (hint,)
    if parameter.default is None and kind is not Any:
        kind = kind | None
    if description:
        metadata.insert(0, Field(description=description))  # first, so that an annotated one counts
    metadata.append(Field(alias=parameter.name))
    return Annotated[(kind, *metadata)], ... if parameter.default is parameter.empty else None


_UNDECLARABLE = (PydanticUserError, NameError, TypeError)


def _declared(name: str, fields: _Fields) -> tuple[type[BaseModel], Schema]:
    """The arguments as a pydantic model, and its JSON schema."""
    try:
        return _modelled(name, fields)
    except _UNDECLARABLE as exc:
        place = ", ".join([name, *_culprits(fields.items())])
        raise ConfigurationError(
            f"{place}: {str(exc).splitlines()[0]}; a tool's parameters need types that JSON can carry"
        ) from exc


def _modelled(name: str, fields: _Fields) -> tuple[type[BaseModel], Schema]:
    config = ConfigDict(extra="forbid")
    model: type[BaseModel] = create_model(name, __config__=config, **typing.cast("dict[str, Any]", fields))
    return model, model.model_json_schema()


def _culprits(fields: Iterable[tuple[str, tuple[Any, Any]]]) -> Iterable[str]:
    for key, field in fields:
        try:
            _modelled("one", {key: field})
        except _UNDECLARABLE:
            yield f"parameter {field[0].__metadata__[-1].alias!r}"


def _with_defaults(schema: Schema, signature: inspect.Signature) -> Schema:
    """The schema with the signature's defaults, of whatever type: pydantic does not know them."""
    properties = typing.cast("dict[str, Schema]", schema.setdefault("properties", {}))
    for name, one in properties.items():
        one["default"] = signature.parameters[name].default
    return schema


def _in_thread(call: Callable[[], object]) -> object:
    """StopIteration cannot pass a future, and SystemExit would end the loop: both are the function's failure."""
    try:
        return call()
    except (StopIteration, SystemExit) as exc:
        raise RuntimeError(f"the function raised {type(exc).__name__}") from exc
