"""Runs scenarios one after the other, shows how far they are, and hands on each result whenever it has grown."""

import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .comparison import is_ours
from .results import Failure, Observation, Plan, Provenance, Result, Run, Scenario

Observations = Generator[Observation, None, None]


class Measurable(Protocol):
    """A module of `scenarios`."""

    SCENARIO: Scenario

    @staticmethod
    def parameters(plan: Plan) -> dict[str, object]:
        """What goes into the results beside the observations."""

    @staticmethod
    def measure(plan: Plan) -> Observations:
        """Repetition by repetition, contenders in turns; yields as it goes."""


Keep = Callable[[Result], None]
"""Takes a result each time it has grown by an observation, or by a failure."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Scenarios, and how they are shown while they run.

    Attributes:
        scenarios: by name, in order.
        console: where lines of progress go.
        before: earlier results, which tell about how many observations there will be.
    """

    scenarios: Mapping[str, Measurable]
    console: Console
    before: Run

    def run(self, plan: Plan, provenance: Callable[[], Provenance], keep: Keep) -> list[str]:
        """Measure all scenarios, and return the names of those that failed, or in which ``kimi_async`` did.

        Tracebacks are printed. Others that fail are in the result alone.
        """
        failed = []
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self.console,
            refresh_per_second=1,  # it shares the machine with what is measured
            transient=True,
        ) as progress:
            for place, (name, scenario) in enumerate(self.scenarios.items(), 1):
                begun = f"{place} of {len(self.scenarios)}: {name}"
                try:
                    result = Result(scenario.SCENARIO, provenance(), scenario.parameters(plan))
                    self._measure(
                        scenario.measure(plan), result, keep, _Shown(begun, self._expected(name, plan), progress)
                    )
                    if any(is_ours(failure.contender) for failure in result.failures):
                        failed.append(name)
                except Exception:  # noqa: BLE001 - the others are still worth to be measured
                    failed.append(name)
                    self.console.print(escape(f"{name} failed\n{traceback.format_exc()}"), highlight=False)
        return failed

    def _measure(self, observations: Observations, result: Result, keep: Keep, shown: "_Shown") -> None:
        result.stopped = True
        with shown, closing(observations):  # whoever is interrupted stops what goes on in lanes
            for observation in observations:
                if observation.failure:
                    result.failures.append(
                        Failure(observation.case, observation.contender, reason=observation.failure)
                    )
                else:
                    result.observations.append(observation)
                keep(result)
                shown.count(len(result.observations))
                self.console.print(escape(_line(result.scenario, observation)), highlight=False)
        result.stopped = False
        keep(result)

    def _expected(self, name: str, plan: Plan) -> int:
        """Observations, as far as an earlier result tells; 0 if it does not."""
        before = self.before.result(name)
        if before is None or plan.quick or not before.observations:
            return 0
        repetitions = 1 + max(observation.repetition for observation in before.observations)
        return len(before.observations) * plan.repetitions // repetitions


class _Shown:
    """The line below all others: what is running, how far, and for how long."""

    def __init__(self, name: str, expected: int, progress: Progress) -> None:
        self._name = name
        self._expected = expected
        self._progress = progress
        self._task = progress.add_task(name)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._progress.remove_task(self._task)

    def count(self, observations: int) -> None:
        """So many are made."""
        of = f" of about {self._expected}" if self._expected else ""
        self._progress.update(self._task, description=f"{self._name}, {observations}{of} observations")


def _line(scenario: Scenario, observation: Observation) -> str:
    begin = f"{scenario.name} #{observation.repetition + 1}: {observation.case}: {observation.contender}"
    if observation.failure:
        return f"{begin} failed: {observation.failure}"
    digits = {figure.name: figure.digits for figure in scenario.figures}
    values = ", ".join(f"{name} {value:,.{digits.get(name, 2)}f}" for name, value in observation.values.items())
    return f"{begin}: {values}"
