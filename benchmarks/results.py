"""What a run of the suite found, and all that is needed to read it without the code that measured it."""

from dataclasses import dataclass, field
from typing import Literal

OURS = "kimi_async"
"""The contender whose figures the others' are divided by."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the things that a scenario measures.

    Attributes:
        name: its key in ``Observation.values``.
        title: heads its table, with the unit.
        digits: behind the point.
        better: which of two values is the better one; None where that says nothing.
        guarded: whether ``check`` compares it with the committed results.
    """

    name: str
    title: str
    digits: int = 2
    better: Literal["less", "more"] | None = "less"
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """What one contender did once.

    Attributes:
        case: the conditions, in a few words; a row of the tables.
        contender: who.
        repetition: from 0; all contenders are measured once before anybody is measured again.
        values: by the figure's name. A figure that does not apply is missing.
    """

    case: str
    contender: str
    repetition: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Remark:
    """Why ``kimi_async`` is not first in some rows, and what would change it.

    Attributes:
        figure: whose table.
        case: a shell pattern (`fnmatch`) of the rows.
        text: one or two sentences.
    """

    figure: str
    case: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is measured, in words.

    Attributes:
        name: one word: of the command, and of the results' files.
        title: a line.
        about: a paragraph or two of Markdown: conditions, and how to read the figures.
        figures: in the order of their tables.
        remarks: see `Remark`.
        plot: how its first figures are best looked at: bars by case, or lines over cases that are numbers.
    """

    name: str
    title: str
    about: str
    figures: tuple[Figure, ...]
    remarks: tuple[Remark, ...] = ()
    plot: Literal["bars", "lines"] = "bars"


@dataclass(slots=True)
class Result:
    """A scenario, and what was observed in it.

    Attributes:
        parameters: what it was measured with: limits, sizes, latencies.
    """

    scenario: Scenario
    parameters: dict[str, object] = field(default_factory=dict)
    observations: list[Observation] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        repetitions: of each case.
        seed: of sizes, orders and faults.
        contenders: those that may take part; a scenario takes those of them that it is about.
        quick: a part that takes seconds, for ``check``.
        full: all combinations of conditions, where else each is varied on its own.
    """

    repetitions: int = 3
    seed: int = 1
    contenders: frozenset[str] = frozenset({OURS})
    quick: bool = False
    full: bool = False


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of the suite; what its JSON file holds."""

    date: str
    command: str
    machine: str
    seed: int
    versions: dict[str, str]
    results: list[Result] = field(default_factory=list)
