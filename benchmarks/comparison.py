"""Who is better at what: ratios within one repetition, their spread over repetitions, and who is first."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from .results import LOST, OURS, Figure, Remark, Result

Standing = Literal["better", "equal", "worse"]
"""Of another contender, seen from ``kimi_async``."""


@dataclass(frozen=True, slots=True)
class Spread:
    """What several repetitions gave."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of one value or more."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])

    def text(self, digits: int) -> str:
        """The median, and the least and the greatest where they differ: ``1.42 (1.39 to 1.51)``."""
        median, least, greatest = (f"{value:,.{digits}f}" for value in (self.median, self.least, self.greatest))
        return median if least == greatest else f"{median} ({least} to {greatest})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: ``kimi_async`` and the best of the others, in one figure of one case.

    Attributes:
        ours: of ``kimi_async``; None if it answered fewer than somebody else.
        other: the best other contender; None if no other answered all.
        others: its values.
        ratio: ours over the other's, within one repetition; None where there is a division by zero.
        standing: of the other.
        remarks: those of the scenario that are about this row.
    """

    scenario: str
    case: str
    figure: Figure
    ours: Spread | None
    other: str | None = None
    others: Spread | None = None
    ratio: Spread | None = None
    standing: Standing = "worse"
    remarks: tuple[Remark, ...] = ()


class Comparison:
    """The observations of a result, by figure, case and contender.

    Attributes:
        cases: in the order in which they were first observed.
        contenders: likewise, but ``kimi_async`` and its variants before all others.
    """

    def __init__(self, result: Result) -> None:
        self.result = result
        self.cases = tuple(dict.fromkeys(one.case for one in result.observations))
        names = dict.fromkeys(one.contender for one in result.observations)
        self.contenders = tuple(sorted(names, key=lambda name: (name != OURS, not is_ours(name))))
        self._values: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
        self._observed = {(one.case, one.contender) for one in result.observations}
        for one in result.observations:
            for name, value in one.values.items():
                self._values[name, one.case, one.contender][one.repetition] = value

    def values(self, figure: str, case: str, contender: str) -> dict[int, float]:
        """By repetition; empty if it does not apply."""
        return self._values.get((figure, case, contender), {})

    def spread(self, figure: str, case: str, contender: str) -> Spread | None:
        """Over all repetitions."""
        values = self.values(figure, case, contender)
        return Spread.of(values.values()) if values else None

    def lost(self, case: str, contender: str) -> float:
        """The most prompts that a contender left without an answer in any repetition."""
        return max(self.values(LOST, case, contender).values(), default=0.0)

    def rivals(self, case: str) -> list[str]:
        """All others that were observed, whatever of them."""
        return [name for name in self.contenders if not self._beside(name) and (case, name) in self._observed]

    def lost_more(self, figure: str, case: str, other: str) -> bool:
        """Whether a figure of another is no comparison with ours, since it left prompts out."""
        return figure != LOST and self.lost(case, other) > self.lost(case, OURS)

    def ratios(self, figure: str, case: str, other: str) -> list[float]:
        """Of ``kimi_async`` over another, one for each repetition that has both; empty if there is a zero below."""
        ours, others = (self.values(figure, case, name) for name in (OURS, other))
        both = [(value, others[repetition]) for repetition, value in ours.items() if repetition in others]
        return [value / below for value, below in both] if all(below for _, below in both) else []

    def competes(self, figure: str, case: str, other: str) -> bool:
        """Whether another is to be compared with ``kimi_async``: measured, and not for leaving out prompts."""
        fair = not self.lost_more(figure, case, other)
        return not self._beside(other) and fair and bool(self.values(figure, case, other))

    def standing(self, figure: Figure, case: str, other: str) -> Standing:
        """Of another that competes. Equal is who is printed alike, and who is ahead only in some repetitions."""
        ours, others = (self.spread(figure.name, case, name) for name in (OURS, other))
        if others is None or figure.better is None or not self.competes(figure.name, case, other):
            return "worse"
        if ours is None or (figure.name != LOST and self.lost(case, OURS) > self.lost(case, other)):
            return "better"
        ratios = self.ratios(figure.name, case, other)
        alike = f"{ours.median:.{figure.digits}f}" == f"{others.median:.{figure.digits}f}"
        if alike or (ratios and min(ratios) <= 1 <= max(ratios)):
            return "equal"
        return "better" if (ours.median > others.median) == (figure.better == "less") else "worse"

    def rows(self) -> Iterator[Row]:
        """One for each case and figure in which there is somebody to compare with."""
        for case in self.cases:
            for figure in self.result.scenario.figures:
                if row := self._row(case, figure):
                    yield row

    def _row(self, case: str, figure: Figure) -> Row | None:
        ours = self.spread(figure.name, case, OURS)
        others = [name for name in self.rivals(case) if self._takes_part(figure.name, case, name)]
        if figure.better is None or not others or not self._takes_part(figure.name, case, OURS):
            return None
        remarks = self._remarks(figure, case)
        better = [name for name in others if self.standing(figure, case, name) == "better"]
        best = self._best(figure, case, better or others)
        if best is None:
            return Row(scenario=self.result.scenario.name, case=case, figure=figure, ours=ours, remarks=remarks)
        ratios = self.ratios(figure.name, case, best)
        return Row(
            scenario=self.result.scenario.name,
            case=case,
            figure=figure,
            ours=ours,
            other=best,
            others=self.spread(figure.name, case, best),
            ratio=Spread.of(ratios) if ratios else None,
            standing=self.standing(figure, case, best),
            remarks=remarks,
        )

    def _beside(self, name: str) -> bool:
        return is_ours(name) or name in self.result.scenario.yardsticks

    def _takes_part(self, figure: str, case: str, name: str) -> bool:
        """Whether somebody has a figure here, or would have it if he had answered all."""
        elsewhere = any(self.values(figure, each, name) for each in self.cases)
        return bool(self.values(figure, case, name)) or (elsewhere and figure != LOST and self.lost(case, name) > 0)

    def _best(self, figure: Figure, case: str, others: Sequence[str]) -> str | None:
        sign = 1 if figure.better == "less" else -1
        spreads = {name: self.spread(figure.name, case, name) for name in others}
        medians = {
            name: sign * spread.median
            for name, spread in spreads.items()
            if spread and self.competes(figure.name, case, name)
        }
        return min(medians, key=medians.__getitem__, default=None)

    def _remarks(self, figure: Figure, case: str) -> tuple[Remark, ...]:
        remarks = self.result.scenario.remarks
        return tuple(one for one in remarks if fnmatchcase(figure.name, one.figure) and fnmatchcase(case, one.case))


def is_ours(contender: str) -> bool:
    """Whether it is ``kimi_async`` or one of its variants, which compete with others but not with it."""
    return contender.startswith(OURS)
