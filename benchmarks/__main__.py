"""The command: ``python -m benchmarks run|setup|report|check|profile``."""

import sys
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, cast

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from . import guard, plots, profile, report, venvs
from .contenders import CONTENDERS
from .processes import isolate
from .results import LANES, OURS, Plan, Provenance, Result, Run, machine
from .scenarios import SCENARIOS
from .suite import Measurable, Suite

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
RESULTS = FOLDER / "results" / "run.json"
FAILED, USAGE, INTERRUPTED = 1, 2, 130

ONCE = frozenset({"ledgers"})
"""Scenarios that a check measures once, and again only if something seems lost: half a minute each."""

ALL = cast("Mapping[str, Measurable]", SCENARIOS)
console = Console(soft_wrap=True)

app = App(name="python -m benchmarks", help="Measure kimi_async beside what people use instead.", version_flags=[])


@app.command
def run(
    *scenarios: str,
    repetitions: int = 2,
    seed: int = 1,
    lanes: Annotated[int, Parameter(validator=Number(gte=1))] = LANES,
    full: Annotated[bool, Parameter(negative="")] = False,
    contender: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    results: Path = RESULTS,
) -> int:
    """Measure scenarios, or all of them, and write the report. Each observation is kept as soon as it is made.

    A scenario that is measured again replaces its earlier result, from its first observation on: also if it
    is stopped before its end, or measured with some contenders only. The others stay. Exit status 1 if a scenario
    fails, or kimi_async in one; other contenders that fail are in the results.

    Args:
        scenarios: By name.
        repetitions: How often each case is measured.
        seed: Of sizes, orders and faults.
        lanes: How many trials that mostly wait are under way at once; what is about the processor's time goes one by
            one.
        full: All combinations of conditions, where else each is varied on its own.
        contender: Those that may take part beside kimi_async, instead of all that can run here.
        results: The JSON file, another than the committed one for a look; report and plots go to its folder.
    """
    if _unknown(scenarios, ALL) or _unknown(contender, CONTENDERS):
        return USAGE
    isolate()
    wanted = frozenset(contender) | {OURS} if contender else frozenset(CONTENDERS)
    lacking = _lacking(wanted)
    plan = Plan(repetitions=repetitions, seed=seed, lanes=lanes, full=full, contenders=wanted - lacking.keys())
    chosen = {name: scenario for name, scenario in ALL.items() if name in scenarios or not scenarios}
    found = Run.read(results)

    def keep(result: Result) -> None:
        found.put(result, ALL)
        found.write(results)

    try:
        failed = Suite(chosen, console, Run.read(results)).run(plan, partial(_provenance, seed, lacking), keep)
    except KeyboardInterrupt:
        console.print(f"Stopped. What was measured is in {results}; `python -m benchmarks report` shows it.")
        return INTERRUPTED
    report_(results=results)
    for name in failed:
        console.print(f"{name} failed: see above.")
    return FAILED if failed else 0


@app.command
def setup() -> int:
    """Make the environments of contenders whose dependencies clash with ours."""
    return 0 if venvs.setup() else FAILED


@app.command(name="report")
def report_(*, results: Path = RESULTS) -> int:
    """Write the tables and plots, and this folder's README, from the results alone.

    Args:
        results: The JSON file; report and plots go to its folder. The README changes with those of this folder only.
    """
    found = Run.read(results)
    readme = README if results.resolve() == RESULTS.resolve() else None
    plots.draw(found, results.parent)
    missing = report.write(found, results.parent, readme)
    for row in missing.unexplained:
        console.print(f"No remark says why {row.other} is better: {row.scenario}, {row.case}, {row.figure.name}")
    for name in missing.unmarked:
        console.print(f"{README.name} has no <!-- {name} --> … <!-- /{name} -->")
    console.print(f"{results.parent / 'report.md'} and the plots beside it are written.")
    return 0


@app.command
def check(*scenarios: str, repetitions: int = 2, seed: int = 1, results: Path = RESULTS) -> int:
    """Compare a short run with the committed results; exit status 1 after a loss of more than 15 %.

    Likewise after a broken promise, a prompt that was lost, a failure of kimi_async, and where a guarded figure could
    not be compared. What is guarded is printed. Scenarios without a guarded figure are left out. One in which
    something is lost is measured once more, and what counts is both together.

    Args:
        scenarios: By name; all, if none is named.
        repetitions: How often each case is measured; ledgers once.
        seed: Of sizes, orders and faults.
        results: The JSON file to compare with.
    """
    if _unknown(scenarios, ALL):
        return USAGE
    isolate()
    began = time.monotonic()
    lacking = {name: reason for name, reason in venvs.lacks().items() if name in {OURS, guard.BESIDE}}
    plan = Plan(repetitions=repetitions, seed=seed, quick=True, contenders=venvs.available())
    committed = Run.read(results)
    now, failed = _short_run(scenarios or ALL, plan, lacking)
    first = guard.verdict(now, committed)
    if first.losses:
        console.print(f"\n{first}\n\nOnce more:\n", markup=False, highlight=False)
        again, others = _short_run({loss.scenario for loss in first.losses}, plan, lacking)
        failed += others
        for result in again.results:
            now.put(guard.pooled(filter(None, [now.result(result.scenario.name), result])), ALL)
    verdict = guard.verdict(now, committed)
    machines = {result.provenance.machine for result in committed.results} - {machine()}
    notes = [f"Committed results of another machine: {name}. Here: {machine()}." for name in sorted(machines)]
    notes += [f"{name} failed." for name in dict.fromkeys(failed)]
    text = "\n".join([*notes, str(verdict), f"{time.monotonic() - began:.0f} s."])
    console.print(f"\n{text}", markup=False, highlight=False)
    return 0 if verdict.passed and not failed else FAILED


@app.command(name="profile")
def profile_(*, seconds: float = 10.0) -> int:
    """Where the CPU time of a request of kimi_async goes, by function, into this folder's README.

    Args:
        seconds: Of measurement at each concurrency.
    """
    text = profile.run(seconds=seconds)
    console.print(text, markup=False, highlight=False)
    if not report.insert(README, "profile", text):
        console.print(f"{README.name} has no <!-- profile --> … <!-- /profile -->")
    return 0


def _short_run(names: Iterable[str], plan: Plan, lacking: Mapping[str, str]) -> tuple[Run, list[str]]:
    """Of the scenarios that have something to compare; with the names of those that failed."""
    found, failed = Run(), []
    for name in [name for name in ALL if name in set(names)]:
        entrants = guard.entrants(ALL[name].SCENARIO, plan.contenders)
        if entrants:
            suite = Suite({name: ALL[name]}, console, Run())
            keep = partial(found.put, order=ALL)
            part = replace(plan, contenders=entrants, repetitions=1 if name in ONCE else plan.repetitions)
            failed += suite.run(part, partial(_provenance, plan.seed, lacking), keep)
    return found, failed


def _lacking(wanted: Collection[str]) -> dict[str, str]:
    """Those of the wanted contenders that cannot run, and what they lack; says so."""
    lacking = {name: reason for name, reason in venvs.lacks().items() if name in wanted}
    for name, reason in lacking.items():
        console.print(f"Without {name}: {reason}", markup=False, highlight=False)
    if lacking:
        console.print("`python -m benchmarks setup` makes the environments.")
    return lacking


def _provenance(seed: int, lacking: Mapping[str, str]) -> Provenance:
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    return Provenance.here(command=command, seed=seed, versions=venvs.versions(), lacking=lacking)


def _unknown(names: Iterable[str], known: Collection[str]) -> bool:
    """Whether there is a name that is not known; says so."""
    unknown = [name for name in names if name not in known]
    if unknown:
        console.print(f"There is no {'; '.join(unknown)}, but: {'; '.join(known)}.", markup=False, highlight=False)
    return bool(unknown)


if __name__ == "__main__":
    sys.exit(app(result_action="return_value"))
