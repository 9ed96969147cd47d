"""The tree of errors is as drawn, and every promised name is there."""

import re

import pytest

import kimi_async
from kimi_async import errors
from kimi_async.errors import KimiError

PROMISED = """
    AsyncKimi RateLimits RateLimiter RateLimitTransport TokenCounter Cost BatchRequest BatchResult open_ledger
    KimiError ConfigurationError RequestTooLarge WaitTooLong DailyBudgetExhausted
    APIConnectionError APITimeoutError APIStatusError BadRequestError AuthenticationError
    PermissionDeniedError NotFoundError RateLimitError EngineOverloadedError
    QuotaExceededError InternalServerError InvalidResponseError
""".split()  # noqa: SIM905 - a list of names reads best without quotes

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == errors.__name__
}


BARE = {"status_code": 400, "type": None, "request_id": None, "retry_after": None, "body": ""}
NO_BUDGET = {"budget": None, "scope": None, "limit": None, "current": None}


def drawn():
    """Class and parent of each line of the picture, by its indentation."""
    path, tree = [], {}
    for line in errors.__doc__.splitlines():
        if match := re.fullmatch(r"    ([│├└─ ]*)(\w+)( +\S.*)?", line):
            depth, name = len(match[1]) // 4, match[2]
            del path[depth:]
            tree[name] = path[-1] if path else None
            path.append(name)
    return tree


def test_the_picture_shows_the_class_tree():
    """Every class with its base, none missing, none invented."""
    bases = {name: cls.__bases__[0].__name__ for name, cls in CLASSES.items()}
    assert drawn() == {**bases, "KimiError": None}
    assert all(len(cls.__bases__) == 1 for cls in CLASSES.values())


def test_statuses_in_the_picture_are_those_of_the_docstrings():
    """A class whose line begins with a status says the same in its own words."""
    for line in errors.__doc__.splitlines():
        if match := re.search(r"(\w+) {2,}(\d(?:\d\d|xx))\b", line):
            assert errors.__dict__[match[1]].__doc__.startswith(match[2])


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_error_is_exported(name):
    """What can be raised can be caught by a public name."""
    assert getattr(kimi_async, name) is CLASSES[name]
    assert name in kimi_async.__all__


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_name_is_exported(name):
    """The contract of the package."""
    assert name in kimi_async.__all__


def test_all_is_sorted_and_true():
    """Each once, in order, and there; and nothing else that looks public."""
    assert kimi_async.__all__ == sorted(set(kimi_async.__all__))
    values = {name: getattr(kimi_async, name) for name in kimi_async.__all__}
    assert all(value.__module__.startswith("kimi_async.") for value in values.values())
    classes = {name for name, value in vars(kimi_async).items() if isinstance(value, type)}
    assert classes <= set(kimi_async.__all__)


@pytest.mark.parametrize(
    ("error", "numbers"),
    [
        (errors.RequestTooLarge("m", needed=2, limit=1, budget="tpm"), {"needed": 2, "limit": 1, "budget": "tpm"}),
        (errors.WaitTooLong("m", wait=2, max_wait=1, budget="rpm"), {"wait": 2, "max_wait": 1, "budget": "rpm"}),
        (errors.DailyBudgetExhausted("m", resets_in=3.5), {"resets_in": 3.5}),
        (errors.InvalidResponseError("m", body="x"), {"body": "x"}),
        (
            errors.RateLimitError("m", status_code=429, type="t", request_id="r", retry_after=1.0, body="b"),
            {"status_code": 429, "type": "t", "request_id": "r", "retry_after": 1.0, "body": "b", **NO_BUDGET},
        ),
        (
            errors.RateLimitError("m", status_code=429, budget="tpm", scope="project", limit=100, current=1410),
            {**BARE, "status_code": 429, "budget": "tpm", "scope": "project", "limit": 100, "current": 1410},
        ),
        (errors.BadRequestError("m", status_code=400), {**BARE, "limit": None, "requested": None}),
        (
            errors.BadRequestError("m", status_code=400, limit=262_144, requested=274_613),
            {**BARE, "limit": 262_144, "requested": 274_613},
        ),
    ],
)
def test_errors_carry_their_numbers(error, numbers):
    """As attributes, beside the prose."""
    assert isinstance(error, KimiError)
    assert str(error) == "m"
    assert vars(error) == numbers
