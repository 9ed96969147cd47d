"""Whether ``kimi_async`` has lost ground against the committed results: a short run, compared ratio by ratio.

Three things fail: a guarded ratio that is worse than it was; a promise that is broken in all repetitions; and whatever
keeps either from being looked at, be it a prompt that was lost, a process that failed or a result that is not there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from .comparison import Comparison, Spread, is_ours
from .results import OURS, Figure, Result, Run, Scenario
from .tables import Table

TOLERANCE = 0.15
"""The part that may be lost."""

BESIDE = "AsyncOpenAI"
"""Whom ``kimi_async`` is compared with, where there is no ideal: most people have it."""

ITSELF = "(its own value)"
"""What a figure with an ideal is compared by: it is a ratio already."""

PROMISE = "(its promise)"
"""What a figure is compared by that has one, whatever is committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One ratio of ``kimi_async`` over another contender, then and now.

    Attributes:
        other: the contender, `ITSELF` or `PROMISE`.
        then: as committed, or as promised.
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
        """More than the tolerance, and out of reach of what several repetitions gave then and now.

        Of a promise: all repetitions break it, by however little.
        """
        tolerance = 0.0 if self.other == PROMISE else TOLERANCE
        if self.figure.better == "less":
            return self.now.median > self.then.median * (1 + tolerance) and self.now.least > self.then.greatest
        return self.now.median < self.then.median / (1 + tolerance) and self.now.greatest < self.then.least

    @property
    def guards(self) -> str:
        """What is looked at, in a few words."""
        if self.other != PROMISE:
            return self.figure.name
        return f"{self.figure.name} at {'most' if self.figure.better == 'less' else 'least'} {self.then.median:g}"


class Kind(StrEnum):
    """What a finding is about, in words."""

    FAILED = "Failed"
    UNCOMMITTED = "Not in the committed results"
    PARTLY = "Stopped half-way in the committed results"
    UNMEASURED = "Not measured now"
    UNCOMPARED = "Nothing could be compared"
    INCOMPARABLE = "Not guarded, since nobody else does it"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said beside the ratios."""

    kind: Kind
    text: str

    @property
    def fails(self) -> bool:
        """Whether the check cannot pass; what is nobody's to compare hides nothing."""
        return self.kind != Kind.INCOMPARABLE

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}."


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a short run says.

    Attributes:
        checks: all ratios that both runs have, and all promises.
        findings: what failed, and what could not be compared.
    """

    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]

    @property
    def losses(self) -> list[Check]:
        """Those that fail."""
        return [check for check in self.checks if check.lost]

    @property
    def passed(self) -> bool:
        """Whether everything that is guarded could be looked at, and nothing is lost."""
        return bool(self.checks) and not self.losses and not any(finding.fails for finding in self.findings)

    def __str__(self) -> str:
        findings = [str(finding) for finding in self.findings]
        if not self.checks:
            return "\n".join([*findings, "Nothing could be compared."])
        guarded = "Guarded, beside that all prompts are answered and no process fails; nothing else is:"
        return "\n".join([guarded, *self._guarded(), *findings, *self._compared()])

    def _guarded(self) -> Iterator[str]:
        figures: dict[str, list[str]] = {}
        for check in self.checks:
            figures.setdefault(f"{check.scenario}: {check.case}", []).append(check.guards)
        yield from (f"- {place}: {'; '.join(dict.fromkeys(names))}" for place, names in figures.items())

    def _compared(self) -> Iterator[str]:
        promises = sum(check.other == PROMISE for check in self.checks)
        compared = f"{len(self.checks) - promises} ratios compared with the committed results"
        if promises:
            compared += f", {promises} with what is promised"
        if not self.losses:
            yield f"{compared}: no loss of more than {TOLERANCE:.0%} outside the spread."
            return
        yield f"{compared}; lost more than {TOLERANCE:.0%}, outside the spread of both, or a promise:"
        yield f"\n{_table(self.losses)}"


def verdict(now: Run, committed: Run) -> Verdict:
    """Compare all guarded figures of a short run with the committed results, and with what is promised."""
    checks: list[Check] = []
    findings: list[Finding] = []
    for result in now.results:
        name = result.scenario.name
        before = committed.result(name)
        found = list(_found(Comparison(result), Comparison(before) if before else None))
        compared = [one for one in found if isinstance(one, Check)]
        said = [one for one in found if isinstance(one, Finding)]
        if not compared and not any(one.fails for one in said):
            said.append(Finding(Kind.UNCOMPARED, name))
        checks += compared
        findings += said
    return Verdict(tuple(checks), tuple(dict.fromkeys(findings)))


def entrants(scenario: Scenario, available: frozenset[str]) -> frozenset[str]:
    """Who is measured for a check: nobody if no figure is guarded; ours alone where it is compared with an ideal.

    Elsewhere one other tells how fast the machine is.
    """
    if any(figure.guarded and figure.ideal is None for figure in scenario.figures):
        return available & {OURS, BESIDE}
    guarded = any(figure.guarded or figure.promise is not None for figure in scenario.figures)
    return frozenset({OURS}) if guarded else frozenset()


def pooled(results: Iterable[Result]) -> Result:
    """Several results of one scenario as one, with the repetitions and the failures of all."""
    first, *others = results
    observations, failures, stopped = list(first.observations), list(first.failures), first.stopped
    for result in others:
        after = 1 + max((one.repetition for one in observations), default=-1)
        observations += [replace(one, repetition=one.repetition + after) for one in result.observations]
        failures += result.failures
        stopped |= result.stopped
    return Result(first.scenario, first.provenance, first.parameters, observations, stopped, failures)


# -- one scenario -------------------------------------------------------------------------------------------------


def _found(now: Comparison, then: Comparison | None) -> Iterator[Check | Finding]:
    yield from _failures(now, then)
    yield from _promises(now)
    name = now.result.scenario.name
    if then is None:
        yield Finding(Kind.UNCOMMITTED, f"scenario {name}")
        return
    if then.result.stopped:
        yield Finding(Kind.PARTLY, f"scenario {name}")
    for figure in now.result.scenario.figures:
        if figure.guarded and figure.better is not None:
            for case in now.cases:
                yield from _compared(now, then, figure, case)


def _failures(now: Comparison, then: Comparison | None) -> Iterator[Finding]:
    """What kept ``kimi_async`` from being measured, and the prompts that it lost."""
    name = now.result.scenario.name
    if now.result.stopped:
        yield Finding(Kind.FAILED, f"{name}: stopped half-way")
    for failure in now.result.failures:
        if is_ours(failure.contender):
            yield Finding(Kind.FAILED, f"{name}: {failure}")
    for case in now.cases:
        for contender in filter(is_ours, now.contenders):
            if lost := now.lost(case, contender):
                yield Finding(Kind.FAILED, f"{name}: {case}: {contender} lost {lost:,.0f} prompts")
    for figure in now.result.scenario.figures:
        if figure.guarded or figure.promise is not None:
            yield from (Finding(Kind.FAILED, f"{name}: {lack}") for lack in _lacks(now, then, figure))


def _lacks(now: Comparison, then: Comparison | None, figure: Figure) -> Iterator[str]:
    """Where a figure has no value of ours, though others have one now, or ours had one then."""
    before = {case for case in then.cases if then.values(figure.name, case, OURS)} if then else set()
    here = [case for case in now.cases if any(now.values(figure.name, case, name) for name in now.contenders)]
    for case in now.cases:
        if (case in here or case in before) and not now.values(figure.name, case, OURS):
            yield f"{case}, {figure.name}: no value of {OURS}"
    if before and not here and before.isdisjoint(now.cases):
        yield f"{figure.name}: no value of {OURS} in any case"


def _promises(now: Comparison) -> Iterator[Check]:
    for figure in now.result.scenario.figures:
        if figure.promise is None or figure.better is None:
            continue
        for case in now.cases:
            own = now.spread(figure.name, case, OURS)
            if own is not None:
                yield Check(
                    scenario=now.result.scenario.name,
                    case=case,
                    figure=figure,
                    other=PROMISE,
                    then=Spread.of([figure.promise]),
                    now=own,
                )


def _compared(now: Comparison, then: Comparison, figure: Figure, case: str) -> Iterator[Check | Finding]:
    """For each ratio of the short run a check; what it cannot be compared with, in words."""
    if now.spread(figure.name, case, OURS) is None:
        return  # that has been said
    ours, theirs = (_yardsticks(comparison, figure, case) for comparison in (now, then))
    place = f"{now.result.scenario.name}: {case}, {figure.name}"
    if not then.values(figure.name, case, OURS):
        yield Finding(Kind.UNCOMMITTED, place)
        return
    check = partial(Check, scenario=now.result.scenario.name, case=case, figure=figure)
    for other, spread in ours.items():
        if other in theirs:
            yield check(other=other, then=theirs[other], now=spread)
        else:
            yield Finding(Kind.UNCOMMITTED, f"{place}, {other}")
    for other in theirs:
        if other not in ours and (other == BESIDE or (not ours and BESIDE not in theirs)):
            yield Finding(Kind.UNMEASURED, f"{place}, {other}{_reason(now, case, other)}")
    if not ours and not theirs:
        yield Finding(Kind.INCOMPARABLE, place)


def _yardsticks(comparison: Comparison, figure: Figure, case: str) -> dict[str, Spread]:
    """What ``kimi_async`` is measured by: its own value if the figure is a ratio to an ideal, else the others'."""
    if figure.ideal is not None:
        own = comparison.spread(figure.name, case, OURS)
        return {ITSELF: own} if own else {}
    found = {}
    for name in comparison.contenders:
        ratios = [] if is_ours(name) else comparison.ratios(figure.name, case, name)
        if ratios and comparison.competes(figure.name, case, name):
            found[name] = Spread.of(ratios)
    return found


def _reason(now: Comparison, case: str, other: str) -> str:
    """Why another has no ratio, in brackets, as far as that is known."""
    failures = [one.reason for one in now.result.failures if (one.case, one.contender) == (case, other)]
    lacks = now.result.provenance.lacking.get(other)
    lost = f"it lost {now.lost(case, other):,.0f} prompts" if now.lost(case, other) else ""
    reason = next(filter(None, [*failures, lacks, lost]), "")
    return f" ({reason})" if reason else ""


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
