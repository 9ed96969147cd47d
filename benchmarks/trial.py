"""One contender, one file of requests, one gateway: what the scenarios about limits have in common."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from random import Random
from typing import TypedDict

import httpx

from kimi_async import RateLimits
from kimi_async.mock import MockSettings

from .contenders import CONTENDERS
from .contenders.contract import Account, Outcome, Request
from .lanes import Lane, side_by_side
from .processes import contest, gateway
from .results import LOST, OURS, Observation, Plan

LIMITS = RateLimits(concurrency=40, rpm=60, tpm=30_000, minute=6.0)
"""The account that most scenarios are about. In a minute of 6 s the half percent of it that ``kimi_async`` keeps as
its guard is 30 ms, more than a system usually takes to give a process its turn; and what 130 requests cost a client's
processor, which is not scaled with the minute, stays below a percent of two minutes."""

LATENCY = 0.2
"""Seconds: 2 of a real minute's."""

PATIENCE = 2.0
"""Times the ideal, after which a contender is stopped..."""

RETRIES = 10.0
"""...and so many seconds more, since advised waits of whole seconds are not scaled with the minute."""

NO_NEWS = frozenset({"httpx, unlimited connections"})
"""Contenders that do the same as another one with so few connections."""


class Stats(TypedDict):
    """What is used here of the gateway's statistics."""

    refused: dict[str, int]
    max_window_requests: int
    max_window_tokens: int
    billed_again: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it, on both sides.

    Attributes:
        outcomes: in the order of the requests.
        seconds: from the first submission to the end of the last request.
        stats: of the gateway.
        limits: of the gateway.
        looked: when the gateway was asked for its statistics, on its clock.
    """

    outcomes: Sequence[Outcome]
    seconds: float
    stats: Stats
    limits: RateLimits
    looked: float = 0.0

    @property
    def lost(self) -> int:
        """Requests that were not answered."""
        return sum(not outcome.answered for outcome in self.outcomes)

    @property
    def refused(self) -> int:
        """Attempts that the gateway refused, whatever the budget."""
        return sum(self.stats["refused"].values())

    @property
    def most(self) -> float:
        """The most requests, or tokens, in any sliding minute, as a ratio to the limit: the larger of the two."""
        requests, tokens = self.stats["max_window_requests"], self.stats["max_window_tokens"]
        return max(requests / (self.limits.rpm or 1), tokens / (self.limits.tpm or 1))

    @property
    def begin(self) -> float:
        """The first submission, on the gateway's clock."""
        return min(outcome.submitted for outcome in self.outcomes)


def trial(
    name: str,
    requests: Sequence[Request],
    settings: MockSettings,
    *,
    patience: float,
    told: RateLimits | None = None,
    lane: Lane | None = None,
) -> Trial:
    """Let a contender send requests to a gateway of its own.

    Args:
        name: of the contender.
        requests: all submitted at once.
        settings: of the gateway.
        patience: seconds.
        told: what the contender is told about the account; default the truth.
        lane: where it waits for those that begin with it.
    """
    with gateway(settings) as base_url:
        return at(base_url, name, requests, settings, patience=patience, told=told, lane=lane)


def at(
    base_url: str,
    name: str,
    requests: Sequence[Request],
    settings: MockSettings,
    *,
    patience: float,
    told: RateLimits | None = None,
    beside: AbstractContextManager[object] | None = None,
    lane: Lane | None = None,
) -> Trial:
    """The same at a gateway that runs already, with whatever else goes on meanwhile."""
    with beside or nullcontext():
        found = contest(name, account(base_url, told or settings.limits), requests, patience=patience, lane=lane)
        stats: Stats = httpx.get(f"{base_url}/stats", trust_env=False).json()
        looked = time.monotonic()
    return Trial(found.outcomes, found.seconds, stats, settings.limits, looked)


def account(base_url: str, limits: RateLimits) -> Account:
    """What a contender is told.

    Raises:
        ValueError: a limit is None; not everybody knows what to do then.
    """
    if limits.concurrency is None or limits.rpm is None or limits.tpm is None:
        raise ValueError(f"contenders are told all limits, not {limits}")
    return Account(
        base_url=base_url, concurrency=limits.concurrency, rpm=limits.rpm, tpm=limits.tpm, minute=limits.minute
    )


def entrants(plan: Plan, *, minute: float, repetition: int = 0) -> list[str]:
    """Who takes part: first in the order of `CONTENDERS`, then in others, so that neighbours change."""
    names = [
        name
        for name, entry in CONTENDERS.items()
        if name in plan.contenders and name not in NO_NEWS and entry.takes(minute)
    ]
    return Random(repetition).sample(names, len(names)) if repetition else names


def patience(ideal: float) -> float:
    """Seconds that a contender gets where the ideal schedule takes ``ideal``."""
    return PATIENCE * ideal + RETRIES


@dataclass(frozen=True, slots=True)
class Task:
    """One observation that is to be made in a lane.

    Attributes:
        case: its name.
        name: of the contender.
        repetition: from 0.
        values: makes its figures.
        long: whether others may be begun meanwhile.
        kin: what is begun together with it has the same.
    """

    case: object
    name: str
    repetition: int
    values: Callable[[Lane], dict[str, float]]
    long: bool = False
    kin: str = ""

    def __call__(self, lane: Lane) -> list[Observation]:
        """The observation; one without values if it failed."""
        return list(observed(self.case, self.name, self.repetition, partial(self.values, lane)))


def in_lanes(plan: Plan, tasks: Iterable[Task]) -> Iterator[Observation]:
    """Observations as they come; the tasks are begun in their order, ``plan.lanes`` at a time.

    Who loses prompts in a case, but for ``kimi_async``, is not measured in it again: it does not compete there, and
    who loses most takes longest.

    Args:
        plan: tells how many at a time.
        tasks: in the order of repetitions.
    """
    lost: set[tuple[str, str]] = set()
    for _, repetition in groupby(tasks, attrgetter("repetition")):
        left = [task for task in repetition if (str(task.case), task.name) not in lost]
        with closing(side_by_side(left, plan.lanes)) as found:
            for observation in chain.from_iterable(found):
                if observation.values.get(LOST) and observation.contender != OURS:
                    lost.add((observation.case, observation.contender))
                yield observation


def observed(
    case: object, name: str, repetition: int, values: Callable[[], dict[str, float]]
) -> Iterator[Observation]:
    """One observation; one without values if it failed, which is said and does not end the run.

    What can fail is a process, which ends or answers half a line, and the way to it or to the gateway. Anything else
    is a mistake of the scenario's.
    """
    try:
        found = values()
    except (RuntimeError, OSError, httpx.HTTPError, json.JSONDecodeError) as exc:
        print(f"{case}: {name}: {exc}", file=sys.stderr)
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        told = " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))  # what failed, and the end of its traceback
        yield Observation(str(case), name, repetition, {}, f"{type(exc).__name__}: {told}")
    else:
        yield Observation(str(case), name, repetition, found)
