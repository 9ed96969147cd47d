"""A 429's text, understood.

Kimi says which budget refused only in prose, in wordings that changed over the years and from one route to
the next. They are all parsed here, and nowhere else.
"""

import re
from dataclasses import dataclass
from typing import Literal

from .limits import Budget


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the gateway said when it refused.

    Attributes:
        kind: ``"budget"`` for one of the account's four limits, ``"overloaded"`` when Kimi's cluster is busy,
            ``"quota"`` when there is no money on the account, or nothing left of a subscription to Kimi Code.
        budget: which limit, if ``kind`` is ``"budget"``.
        scope: whose limit, in Kimi's words: ``"organization"``, ``"project"``, ``"user+model"``; None unsaid.
        limit: the limit as the gateway states it; None where it does not.
        current: tokens in the gateway's window, or requests if the budget is RPM, the refused one included; None
            where unsaid.
        organization: the account's own name at Kimi, ``org-…``, which the text begins with; None unsaid.
        retry_after: seconds the gateway asks to wait, from the header or else the text; None where unsaid.
            For RPM the text always says 1, which is not enough: a window needs up to a minute.
    """

    kind: Literal["budget", "overloaded", "quota"]
    budget: Budget | None = None
    scope: str | None = None
    limit: int | None = None
    current: int | None = None
    retry_after: float | None = None
    organization: str | None = None


SUBSCRIPTION = "access_terminated_error"
"""``error.type`` of a 403 from Kimi Code, a product of its own at api.kimi.com: the subscription's hours or week are
used up, or the client is none of those that it serves."""

_SCOPE = r"(?P<scope>organization|project|user|user\+model|project\+model)"
_BUDGETS: tuple[tuple[Budget | None, re.Pattern[str]], ...] = (
    ("concurrency", re.compile(rf"{_SCOPE} max concurrency: ?(?P<limit>\d+)")),
    ("concurrency", re.compile(rf"max (?:{_SCOPE} )?concurrency: ?(?P<limit>\d+)")),
    ("rpm", re.compile(rf"(?:{_SCOPE}(?: \([^)]*\))? )?max RPM: ?(?P<limit>\d+)")),
    ("rpm", re.compile(r"max request(?: per minute reached)?: ?(?P<limit>\d+)")),
    (
        None,  # the text itself names TPM or TPD
        re.compile(
            rf"{_SCOPE}(?: \([^)]*\))? (?P<budget>TPM|TPD) rate limit"
            r"(?:, current: ?(?P<current>\d+))?(?:, limit: ?(?P<limit>\d+))?"
        ),
    ),
    # A burst, measured against no stated budget; spreading the requests out is what helps.
    ("rpm", re.compile(rf"{_SCOPE} rate limit exceeded", re.IGNORECASE)),
)
_QUOTA = re.compile(
    r"insufficient balance|exceeded (?:your )?current (?:token )?quota|reached your (?:[^.]* )?usage limit",
    re.IGNORECASE,
)
_ORGANIZATION = re.compile(r"\borg-\w+")
_AFTER = re.compile(r"after (\d+) seconds?")


def parse_refusal(message: str, *, type: str | None = None, retry_after: float | None = None) -> Refusal:  # noqa: A002
    """Classify the error of a 429, or of the 403 that once meant an empty account.

    Args:
        message: ``error.message`` of the answer, or its whole text where that is missing.
        type: ``error.type``.
        retry_after: the ``Retry-After`` header in seconds.

    A text that nobody has seen yet counts as ``"overloaded"``: backing off helps whatever it was, and no
    budget is touched on a guess.
    """
    if retry_after is None and (said := _AFTER.search(message)):
        retry_after = float(said[1])
    organization = found[0] if (found := _ORGANIZATION.search(message)) else None
    if type == "exceeded_current_quota_error" or _QUOTA.search(message):
        return Refusal("quota", retry_after=retry_after, organization=organization)
    if type == "engine_overloaded_error":
        return Refusal("overloaded", retry_after=retry_after)
    for budget, pattern in _BUDGETS:
        if match := pattern.search(message):
            numbers = match.groupdict()
            named: Budget = budget or ("tpm" if numbers["budget"] == "TPM" else "tpd")
            return Refusal(
                "budget",
                budget=named,
                scope=(numbers.get("scope") or "").lower() or None,
                limit=_number(numbers.get("limit")),
                current=_number(numbers.get("current")),
                retry_after=retry_after,
                organization=organization,
            )
    return Refusal("overloaded", retry_after=retry_after)


def _number(digits: str | None) -> int | None:
    return None if digits is None else int(digits[:18])  # of thousands of digits Python makes no number
