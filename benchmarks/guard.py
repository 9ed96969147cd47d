"""Whether ``kimi_async`` has lost ground against the committed results: a short run, compared ratio by ratio."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .comparison import Comparison, Spread, is_ours
from .results import OURS, Figure, Result, Run, Scenario
from .tables import Table

TOLERANCE = 0.15
"""The part that may be lost."""

BESIDE = "AsyncOpenAI"
"""Whom ``kimi_async`` is compared with, where there is no ideal: most people have it."""

ITSELF = "(its own value)"
"""What a figure is compared by that is a ratio already, or has nobody to be divided by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One ratio of ``kimi_async`` over another contender, then and now.

    Attributes:
        other: the contender, or `ITSELF`.
        then: as committed.
        now: as measured.
    """

    scenario: str
    case: str
    figure: Figure
    other: str
    then: Spread
    now: Spread

    @property
    def lost(self) -> bool:
        """More than the tolerance, and out of reach of what several repetitions gave then and now."""
        if self.figure.better == "less":
            return self.now.median > self.then.median * (1 + TOLERANCE) and self.now.least > self.then.greatest
        return self.now.median < self.then.median / (1 + TOLERANCE) and self.now.greatest < self.then.least


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a short run says.

    Attributes:
        checks: all ratios that both runs have.
        missing: what was measured now and is not in the committed results, in words.
    """

    checks: tuple[Check, ...]
    missing: tuple[str, ...]

    @property
    def losses(self) -> list[Check]:
        """Those that fail."""
        return [check for check in self.checks if check.lost]

    @property
    def passed(self) -> bool:
        """Whether something was compared, and nothing is lost."""
        return bool(self.checks) and not self.losses

    def __str__(self) -> str:
        lines = [f"Not in the committed results: {name}." for name in self.missing]
        compared = f"{len(self.checks)} ratios compared with the committed results"
        if not self.checks:
            return "\n".join([*lines, "Nothing could be compared."])
        if not self.losses:
            return "\n".join([*lines, f"{compared}: no loss of more than {TOLERANCE:.0%} outside the spread."])
        lines.append(f"{compared}; lost more than {TOLERANCE:.0%}, outside the spread of both:")
        return "\n".join([*lines, "", str(_table(self.losses))])


def verdict(now: Run, committed: Run) -> Verdict:
    """Compare all guarded figures of a short run with the committed results."""
    checks, missing = [], []
    for result in now.results:
        before = committed.result(result.scenario.name)
        if before is None:
            missing.append(f"scenario {result.scenario.name}")
            continue
        found = list(_checks(Comparison(result), Comparison(before)))
        checks += [one for one in found if isinstance(one, Check)]
        missing += [f"{result.scenario.name}: {one}" for one in found if isinstance(one, str)]
    return Verdict(tuple(checks), tuple(dict.fromkeys(missing)))


def entrants(scenario: Scenario, available: frozenset[str]) -> frozenset[str]:
    """Who is measured for a check: nobody if no figure is guarded; ours alone where it is compared with an ideal.

    Elsewhere one other tells how fast the machine is.
    """
    guarded = [figure for figure in scenario.figures if figure.guarded]
    if all(figure.ideal is not None for figure in guarded):
        return frozenset({OURS}) if guarded else frozenset()
    return available & {OURS, BESIDE}


def pooled(results: Iterable[Result]) -> Result:
    """Several results of one scenario as one, with the repetitions of all."""
    first, *others = results
    observations = list(first.observations)
    for result in others:
        after = 1 + max((one.repetition for one in observations), default=-1)
        observations += [replace(one, repetition=one.repetition + after) for one in result.observations]
    return Result(first.scenario, first.provenance, first.parameters, observations)


def _checks(now: Comparison, then: Comparison) -> Iterator[Check | str]:
    """For each ratio of the short run a check; what it cannot be compared with, in words."""
    for figure in now.result.scenario.figures:
        if not figure.guarded or figure.better is None:
            continue
        for case in now.cases:
            ours = _yardsticks(now, figure, case)
            theirs = _yardsticks(then, figure, case)
            for other, spread in ours.items():
                if other in theirs:
                    yield Check(
                        scenario=now.result.scenario.name,
                        case=case,
                        figure=figure,
                        other=other,
                        then=theirs[other],
                        now=spread,
                    )
                else:
                    yield f"{case}, {figure.name}" + ("" if other == ITSELF or not theirs else f", {other}")


def _yardsticks(comparison: Comparison, figure: Figure, case: str) -> dict[str, Spread]:
    """What ``kimi_async`` is measured by: the others' values, or its own if the figure is a ratio to an ideal."""
    own = comparison.spread(figure.name, case, OURS)
    if own is None:
        return {}
    found = {}
    for name in comparison.contenders:
        ratios = [] if is_ours(name) else comparison.ratios(figure.name, case, name)
        if ratios and comparison.competes(figure.name, case, name):
            found[name] = Spread.of(ratios)
    return {ITSELF: own} if figure.ideal is not None or not found else found


def _table(losses: Iterable[Check]) -> Table:
    rows = [
        [
            loss.scenario,
            loss.case,
            loss.figure.title,
            loss.other,
            loss.then.text(3),
            loss.now.text(3),
            f"{loss.now.median / loss.then.median - 1:+.0%}" if loss.then.median else "",
        ]
        for loss in losses
    ]
    header = ("scenario", "case", "figure", f"{OURS} over", "committed", "now", "change")
    return Table(header, rows, words=4)
