"""One plot a scenario, as PNG and as SVG, from the results alone; the same bytes for the same results."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from .comparison import Comparison, Spread, is_ours
from .results import LOST, OURS, Figure, Result, Run

INK, FAINT, GREY, VERMILION, PALE = "#1b1b1b", "#d9d9d9", "#8c96a0", "#d55e00", "#e8a06a"
"""Text, grid, others' bars, ours, its variants: apart from each other in lightness too."""

COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#3f9fd8", "#8a6d00", "#5e3c99", "#555555")
"""Others' lines: Okabe and Ito's, darkened where they would be too faint for text."""

DASHES = ("-", "--", ":", "-.")

WIDTH = 9.0
"""Inches; 8 points are then as large as a README's small print."""

DECADES = 15.0
"""A scale is logarithmic when the greatest value is that many times the least."""

STYLE: dict[Any, object] = {  # its keys are a literal of all settings in matplotlib's types
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "kimi_async",
    "svg.fonttype": "path",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "hatch.linewidth": 0.6,
}


def draw(run: Run, folder: Path) -> list[Path]:
    """Write the plots of all results that have something to show, and return their files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [path for result in run.results for path in draw_one(result, folder)]


def draw_one(result: Result, folder: Path) -> list[Path]:
    """Write the plot of one result; nothing if its first figures were not observed."""
    comparison = Comparison(result)
    shown = [one for one in result.scenario.figures[: result.scenario.plotted] if _observed(comparison, one)]
    if not shown:
        return []
    with mpl.rc_context(STYLE):
        canvas = _canvas(comparison, shown)
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")  # it takes seconds, and once is enough
        paths = [folder / f"{result.scenario.name}.{kind}" for kind in ("png", "svg")]
        for path, metadata in zip(paths, ({"Software": None}, {"Date": None, "Creator": None}), strict=True):
            canvas.savefig(path, metadata=metadata, bbox_inches="tight", pad_inches=0.1)
    return paths


def _observed(comparison: Comparison, figure: Figure) -> bool:
    pairs = ((case, name) for case in comparison.cases for name in comparison.contenders)
    return any(comparison.values(figure.name, *pair) for pair in pairs)


def _canvas(comparison: Comparison, shown: Sequence[Figure]) -> Canvas:
    """A band for each figure, one below the other."""
    scenario = comparison.result.scenario
    lines = scenario.plot == "lines" and all(map(_number, comparison.cases))
    bands = [(_Lines if lines else _Bars)(comparison, figure) for figure in shown]
    heights = [band.height for band in bands]
    canvas = Canvas(figsize=(WIDTH, sum(heights) + 0.4), layout="constrained", dpi=200)
    canvas.suptitle(scenario.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    for area, band in zip(
        canvas.subfigures(len(bands), 1, squeeze=False, height_ratios=heights)[:, 0], bands, strict=True
    ):
        band.draw(area)
    return canvas


# -- scales -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scale:
    """How values are laid out along an axis: from zero, or over decades, from zero or from half the least value."""

    kind: Literal["linear", "log", "symlog"]
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "_Scale":
        """That shows all of them best."""
        high, positive = max(values), [value for value in values if value > 0]
        if not positive or high < DECADES * min(positive):
            return cls("linear", 0.0, high)
        return cls("log", min(positive) / 2, high) if len(positive) == len(values) else cls("symlog", 0.0, high)

    def beyond(self, share: float) -> float:
        """The upper end that leaves this share of the axis behind the greatest value."""
        if self.kind == "linear":
            return (self.high or 1.0) / (1 - share)
        low = max(self.low, 0.1)  # what is below 1 takes a decade of a symlog scale
        return low * math.pow(self.high / low, 1 / (1 - share))

    def apply(self, axes: Axes, axis: Literal["x", "y"], *, room: float) -> None:
        """Set the scale, limits and ticks of one axis."""
        arguments = {"linthresh": 1.0} if self.kind == "symlog" else {}
        (axes.set_xscale if axis == "x" else axes.set_yscale)(self.kind, **arguments)
        (axes.set_xlim if axis == "x" else axes.set_ylim)(self.low, self.beyond(room))
        ticks = axes.xaxis if axis == "x" else axes.yaxis
        if self.kind == "linear":
            ticks.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value <= 2 * self.high else ""))
        ticks.set_minor_formatter(NullFormatter())


# -- bars ---------------------------------------------------------------------------------------------------------


class _Bars:
    """A panel a case, a bar a contender; of a single contender one panel, with a bar a case."""

    BAR = 0.165
    """Inches from one to the next."""

    def __init__(self, comparison: Comparison, figure: Figure) -> None:
        self.comparison = comparison
        self.figure = figure
        seen = [case for case in comparison.cases if self._spreads(case)]
        self.cases = [case for case in seen if comparison.rivals(case)] or seen  # what ours did alone is in the tables
        self.names = [name for name in comparison.contenders if any(self._has(name, case) for case in self.cases)]
        self.alone = len(self.names) == 1
        self.columns = 1 if self.alone else min(3, len(self.cases))
        self.rows = 1 if self.alone else math.ceil(len(self.cases) / self.columns)
        self.bars = len(self.cases) if self.alone else len(self.names)

    @property
    def height(self) -> float:
        """Inches."""
        return self.rows * (self.BAR * self.bars + 0.55) + 0.3

    def draw(self, area: SubFigure) -> None:
        """All panels."""
        ideal = "" if self.figure.ideal is None else f" (dashed line: the ideal, {self.figure.ideal:g})"
        area.supxlabel(self.figure.title + ideal, fontsize=8.5)
        panels = area.subplots(self.rows, self.columns, squeeze=False)
        for axes in panels.flat:
            axes.set_visible(False)
        if self.alone:
            self._panel(panels[0, 0], {case: (self.names[0], case) for case in self.cases}, self._scale(self.cases))
            return
        shared = self._comparable()
        for place, (axes, case) in enumerate(zip(panels.flat, self.cases, strict=False)):
            axes.set_title(fill(case, 100 // self.columns), loc="left")
            scale = self._scale(self.cases if shared else [case])
            self._panel(axes, {name: (name, case) for name in self.names}, scale, first=place % self.columns == 0)

    def _panel(self, axes: Axes, bars: dict[str, tuple[str, str]], scale: _Scale, *, first: bool = True) -> None:
        axes.set_visible(True)
        scale.apply(axes, "x", room=(0.14, 0.2, 0.3)[self.columns - 1])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_yticks(range(len(bars)), list(bars))
        for label, (name, _) in zip(axes.get_yticklabels(), bars.values(), strict=True):
            label.set_visible(self.alone or first)
            if is_ours(name) and not self.alone:
                label.set(color=VERMILION, fontweight="bold" if name == OURS else "normal")
        axes.tick_params(which="both", length=0)
        axes.grid(visible=True, axis="x", color=FAINT, linewidth=0.6)
        axes.spines["bottom"].set_visible(False)
        if self.figure.ideal is not None and scale.low <= self.figure.ideal <= scale.beyond(0):
            axes.axvline(self.figure.ideal, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=3)
        for place, (name, case) in enumerate(bars.values()):
            self._bar(axes, place, name, case, scale)

    def _bar(self, axes: Axes, place: int, name: str, case: str, scale: _Scale) -> None:
        lost = self.comparison.lost(case, name) if self.figure.name != LOST else 0
        spread = self._spreads(case).get(name)
        words = [f"{spread.median:,.{self.figure.digits}f}"] if spread else []
        words += [f"lost {lost:,.0f}"] if lost else []
        if spread:
            colour = VERMILION if name == OURS else PALE if is_ours(name) else GREY
            self._mark(axes, place, spread.median, scale, colour, hollow=lost > 0)
            axes.plot([spread.least, spread.greatest], [place, place], color=INK, linewidth=0.9)
        axes.annotate(
            ", ".join(words),
            (spread.greatest if spread else scale.low, place),
            xytext=(5 if scale.kind == "log" else 3, -0.3),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=VERMILION if name == OURS else INK,
            fontweight="bold" if name == OURS else "normal",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
            zorder=4,
        )

    def _mark(self, axes: Axes, place: int, value: float, scale: _Scale, colour: str, *, hollow: bool) -> None:
        """A bar from zero, or, where a scale has no zero, a dot on a line."""
        if scale.kind == "log":
            axes.plot([scale.low, value], [place, place], color=colour, linewidth=1.2)
            axes.plot([value], [place], "o", markersize=5, color=colour, markerfacecolor="white" if hollow else colour)
            return
        bar = axes.barh(place, value, height=0.7, color=colour)
        if hollow:
            bar.patches[0].set(facecolor="white", edgecolor=colour, hatch="//////")

    def _has(self, name: str, case: str) -> bool:
        return name in self._spreads(case) or self.comparison.lost_more(self.figure.name, case, name)

    def _spreads(self, case: str) -> dict[str, Spread]:
        found = ((name, self.comparison.spread(self.figure.name, case, name)) for name in self.comparison.contenders)
        return {name: spread for name, spread in found if spread}

    def _scale(self, cases: Sequence[str]) -> _Scale:
        spreads = [spread for case in cases for spread in self._spreads(case).values()]
        ideal = [] if self.figure.ideal is None else [self.figure.ideal]
        return _Scale.of([value for spread in spreads for value in (spread.least, spread.greatest)] + ideal)

    def _comparable(self) -> bool:
        """Whether one scale suits all cases."""
        ends = [self._scale([case]).high for case in self.cases]
        return max(ends) < DECADES * min(ends)


# -- lines --------------------------------------------------------------------------------------------------------


class _Lines:
    """Panels of lines over the numbers in the cases; each line has its name at its end."""

    PANEL = 2.7
    """Inches."""

    def __init__(self, comparison: Comparison, figure: Figure) -> None:
        self.comparison = comparison
        self.figure = figure
        self.panels: dict[str, dict[float, str]] = {}
        for case in comparison.cases:
            number, rest = _number(case) or (0.0, "")
            if any(comparison.values(figure.name, case, name) for name in comparison.contenders):
                self.panels.setdefault(rest, {})[number] = case
        self.columns = min(2, len(self.panels))
        self.rows = math.ceil(len(self.panels) / self.columns)

    @property
    def height(self) -> float:
        """Inches."""
        return self.rows * self.PANEL + 0.2

    def draw(self, area: SubFigure) -> None:
        """All panels."""
        area.supylabel(self.figure.title + (" (×: lost prompts)" if self._lost_any() else ""), fontsize=8.5)
        panels = area.subplots(self.rows, self.columns, squeeze=False, sharex=True, sharey=True)
        self._scale(panels[0, 0])
        for axes in panels.flat:
            axes.set_visible(False)
        for axes, (rest, cases) in zip(panels.flat, self.panels.items(), strict=False):
            unit, _, conditions = rest.partition(", ")
            axes.set_visible(True)
            axes.set_title(conditions, loc="left")
            axes.set_xlabel(unit)
            self._panel(axes, cases)

    def _scale(self, axes: Axes) -> None:
        """All panels share their axes, so that they can be compared."""
        cases = [case for panel in self.panels.values() for case in panel.values()]
        spreads = [
            self.comparison.spread(self.figure.name, *pair) for pair in product(cases, self.comparison.contenders)
        ]
        _Scale.of([value for one in spreads if one for value in (one.least, one.greatest)]).apply(axes, "y", room=0.04)
        numbers = sorted({number for panel in self.panels.values() for number in panel})
        axes.set_xscale("log" if numbers[0] > 0 and numbers[-1] >= DECADES * numbers[0] else "linear")
        axes.set_xticks(numbers, [f"{number:,.0f}" for number in numbers])
        axes.xaxis.set_minor_locator(NullLocator())

    def _panel(self, axes: Axes, cases: dict[float, str]) -> None:
        lines = {name: line for name in self.comparison.contenders if (line := self._line(name, cases))}
        axes.tick_params(length=2, color=GREY, labelbottom=True, labelleft=True)
        axes.grid(visible=True, axis="y", color=FAINT, linewidth=0.6)
        for name, line in lines.items():
            self._draw(axes, name, line, cases)
        self._label(axes, lines)

    def _draw(self, axes: Axes, name: str, line: dict[float, Spread], cases: dict[float, str]) -> None:
        colour, dash = self._look(name)
        width, order = (2.6, 5.0) if name == OURS else (1.2, 3.0)
        axes.plot(list(line), [one.median for one in line.values()], dash, color=colour, linewidth=width, zorder=order)
        for number, spread in line.items():
            axes.plot([number] * 2, [spread.least, spread.greatest], color=colour, linewidth=width, zorder=order)
            lost = self._lost(name, cases[number])
            size, face = (6, "white") if lost else (5 if name == OURS else 3.5, colour)
            axes.plot(
                [number],
                [spread.median],
                "X" if lost else "o",
                markersize=size,
                color=colour,
                markerfacecolor=face,
                zorder=order,
            )

    def _label(self, axes: Axes, lines: dict[str, dict[float, Spread]]) -> None:
        """Each name beside the end of its line, moved up or down where two would overlap."""
        low, high = (axes.transScale.transform((1.0, end))[1] for end in axes.get_ylim())
        ends = {name: line[max(line)].median for name, line in lines.items()}
        wanted = {name: (axes.transScale.transform((1.0, end))[1] - low) / (high - low) for name, end in ends.items()}
        for name, place in _apart(wanted, 0.125 / (self.PANEL - 0.6)).items():
            colour, _ = self._look(name)
            axes.annotate(
                name,
                (max(lines[name]), ends[name]),
                xytext=(1.04, place),
                textcoords=axes.transAxes,
                va="center",
                fontsize=7.5,
                color=colour,
                fontweight="bold" if name == OURS else "normal",
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
                annotation_clip=False,
            )

    def _line(self, name: str, cases: dict[float, str]) -> dict[float, Spread]:
        found = ((number, self.comparison.spread(self.figure.name, cases[number], name)) for number in sorted(cases))
        return {number: spread for number, spread in found if spread}

    def _lost(self, name: str, case: str) -> bool:
        return self.figure.name != LOST and self.comparison.lost(case, name) > 0

    def _lost_any(self) -> bool:
        return any(self._lost(name, case) for name in self.comparison.contenders for case in self.comparison.cases)

    def _look(self, name: str) -> tuple[str, str]:
        if is_ours(name):
            return (VERMILION, "-") if name == OURS else (PALE, "--")
        others = [other for other in self.comparison.contenders if not is_ours(other)]
        dashes, colour = divmod(others.index(name), len(COLOURS))
        return COLOURS[colour], DASHES[dashes % len(DASHES)]


def _number(case: str) -> tuple[float, str] | None:
    """The first number of a case, and the case without it."""
    found = re.search(r"\d[\d,]*(?:\.\d+)?", case)
    if found is None:
        return None
    return float(found[0].replace(",", "")), (case[: found.start()] + case[found.end() :]).strip()


def _apart(wanted: dict[str, float], gap: float) -> dict[str, float]:
    """Places as near as can be to those that are wanted, in their order, with the gap between them at least."""
    groups: list[tuple[list[str], float]] = []  # names, and the middle of where they stand
    for name in sorted(wanted, key=wanted.__getitem__):
        group, middle = [name], wanted[name]
        while groups and middle - groups[-1][1] < gap * (len(group) + len(groups[-1][0])) / 2:
            below, _ = groups.pop()
            group = below + group
            middle = sum(wanted[one] for one in group) / len(group)
        groups.append((group, middle))
    return {
        name: middle + gap * (place - (len(group) - 1) / 2)
        for group, middle in groups
        for place, name in enumerate(group)
    }
