"""What is written from the results alone: ``results/report.md`` and the marked parts of this folder's README."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .comparison import Comparison, Row, Spread, is_ours
from .results import OURS, Figure, Provenance, Remark, Result, Run
from .tables import Table, bold, replaced

TABLE = "table"
"""The README's part that holds the table; each scenario has one of its own name."""

FLAG = " †"
"""Behind the figures of a contender that lost more prompts than ``kimi_async``."""

LONG = 120
"""Characters of a parameter that is found in the JSON only."""

HEADER = ("scenario", "case", "figure", OURS, "best other", "its value", "ratio", "first")


_LINK = re.compile(r"\]\((?![a-z]+:|#|/)")
"""The beginning of a link's address, relative to this folder; the report is one folder further down."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What a reader of the report would miss.

    Attributes:
        unexplained: rows in which another is better, and no remark says why.
        unmarked: parts that the README has no markers for.
    """

    unexplained: list[Row]
    unmarked: list[str]


def write(run: Run, folder: Path, readme: Path | None) -> Missing:
    """Write ``report.md`` into the folder, and the README's marked parts.

    Args:
        run: what was measured.
        folder: of the results; plots are expected there, named after their scenarios.
        readme: has the markers ``<!-- name -->`` and ``<!-- /name -->`` of the parts that it shows; None for no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(run), encoding="utf-8")
    contents = parts(run, folder.name) if readme else {}
    unmarked = [name for name, content in contents.items() if readme and not insert(readme, name, content)]
    return Missing([row for row in rows(run) if row.standing == "better" and not row.remarks], unmarked)


def insert(readme: Path, name: str, content: str) -> bool:
    """Write one marked part; whether the file has its markers."""
    text = replaced(readme.read_text(encoding="utf-8"), name, content)
    if text is not None:
        readme.write_text(text, encoding="utf-8")
    return text is not None


def rows(run: Run) -> list[Row]:
    """Of the table, in the order of the scenarios."""
    return [row for result in run.results for row in Comparison(result).rows()]


def markdown(run: Run) -> str:
    """The whole report."""
    sections = [_section(result) for result in run.results]
    return "\n\n".join(["# Results", the_table(rows(run)), *sections]) + "\n"


def parts(run: Run, folder: str) -> dict[str, str]:
    """The README's parts by name: the rows that matter most; for each scenario its prose, plot and first tables.

    Args:
        run: what was measured.
        folder: of the plots, as seen from the README.
    """
    plotted = {(result.scenario.name, figure.name) for result in run.results for figure in _plotted(result)}
    chosen = [row for row in rows(run) if row.standing == "better" or (row.scenario, row.figure.name) in plotted]
    return {TABLE: the_table(chosen)} | {
        result.scenario.name: "\n\n".join(
            [
                result.scenario.about.strip(),
                _picture(result, folder),
                *_tables(result, _plotted(result)),
                *_warning(result),
                _provenance(result.provenance),
            ]
        )
        for result in run.results
    }


# -- the table ----------------------------------------------------------------------------------------------------


def the_table(chosen: Sequence[Row]) -> str:
    """One line for each row, how many of them ``kimi_async`` wins, and the remarks of those that it does not."""
    if not chosen:
        return "Nobody competes in any row."
    notes = list(dict.fromkeys(text for row in chosen for text in _notes(row)))
    table = Table(HEADER, [_line(row, notes) for row in chosen], words=3)
    legend = (
        f"The ratio is {OURS}'s value over the other's, within one repetition. Each cell is the median, with the "
        "least and the greatest in brackets. Equal is who is printed alike or is ahead in some repetitions only. "
        "**Bold** is whoever is better."
    )
    remarks = [f"{number}. {text}" for number, text in enumerate(notes, 1)]
    return "\n\n".join([_score(chosen), str(table), legend, *(["\n".join(remarks)] if remarks else [])])


def _score(chosen: Sequence[Row]) -> str:
    behind = sum(row.standing == "better" for row in chosen)
    equal = sum(row.standing == "equal" for row in chosen)
    first = len(chosen) - behind - equal
    return f"Of {len(chosen):,} rows, {OURS} is first in {first:,}, equal in {equal:,} and behind in {behind:,}."


def _line(row: Row, notes: Sequence[str]) -> list[str]:
    digits = row.figure.digits
    ours = row.ours.text(digits) if row.ours else "not all answered"
    line = [row.scenario, row.case, row.figure.title, ours]
    if row.other is None or row.others is None:
        return [*line, "nobody else answered all", "", "", OURS]
    ratio = _ratio(row.ratio) if row.ratio else ""
    value = row.others.text(digits)
    if row.standing == "better":
        numbers = ", ".join(str(notes.index(text) + 1) for text in _notes(row)) or "no remark"
        return [*line, bold(row.other), bold(value), ratio, f"{bold(row.other)} ({numbers})"]
    return [*line, row.other, value, ratio, OURS if row.standing == "worse" else "equal"]


def _notes(row: Row) -> list[str]:
    return [remark.text for remark in row.remarks] if row.standing == "better" else []


def _ratio(spread: Spread) -> str:
    """Three digits that say something, as far as there are: 0.104, 0.97, 12.3."""
    size = abs(spread.median)
    return spread.text(1 if size >= 10 else 2 if size >= 0.2 else 3)


# -- a scenario ---------------------------------------------------------------------------------------------------


def _section(result: Result) -> str:
    scenario = result.scenario
    tables = _tables(result, scenario.figures)
    return "\n\n".join(
        [
            f"## {scenario.name}: {scenario.title}",
            _LINK.sub("](../", scenario.about.strip()),
            _picture(result, ""),
            *tables,
            *_parameters(result),
            *_warning(result),
            _provenance(result.provenance, whole=True),
        ]
    )


def _plotted(result: Result) -> Sequence[Figure]:
    return result.scenario.figures[: result.scenario.plotted]


def _picture(result: Result, folder: str) -> str:
    name = result.scenario.name
    path = f"{folder}/{name}.png" if folder else f"{name}.png"
    return f"![{result.scenario.title}]({path})"


def _provenance(where: Provenance, *, whole: bool = False) -> str:
    if not whole:
        return f"*{where.date[:10]}, {where.machine}*"
    versions = ", ".join(f"{name} {version}" for name, version in where.versions.items())
    return f"*{where.date}, {where.machine}; seed {where.seed}; {versions}*\n\n```\n{where.command}\n```"


def _warning(result: Result) -> Iterator[str]:
    if result.stopped:
        yield "Measured in part only: stopped before its end."
    if result.failures:
        yield f"Failed: {'; '.join(map(str, result.failures))}."
    if result.provenance.lacking:
        lacking = (f"{name} ({reason})" for name, reason in result.provenance.lacking.items())
        yield f"Not measured: {'; '.join(lacking)}."


def _parameters(result: Result) -> Iterator[str]:
    """On a line, without those that are long."""
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in result.parameters.items()}
    short = [f"{name} `{text}`" for name, text in texts.items() if len(text) <= LONG]
    if short:
        yield f"Measured with {', '.join(short)}."


def _tables(result: Result, figures: Iterable[Figure]) -> Iterator[str]:
    """Of each figure: its values, their ratios if it is guarded, what the flag means, and the remarks."""
    comparison = Comparison(result)
    if len(comparison.contenders) == 1:
        yield str(_alone(comparison, figures))
        return
    for figure in figures:
        values = _values(comparison, figure)
        if values is None:
            continue
        yield f"**{figure.title}**"
        yield str(values)
        if FLAG in str(values):
            yield f"{FLAG.strip()} lost more prompts than {OURS}; this is no comparison."
        ratios = _ratios(comparison, figure) if figure.guarded else None
        if ratios:
            yield f"{OURS}'s over the others':"
            yield str(ratios)
        yield from (f"> {remark.text}" for remark in _remarks(comparison, figure))


def _alone(comparison: Comparison, figures: Iterable[Figure]) -> Table:
    """All figures of one contender, which has nobody to be compared with."""
    [name] = comparison.contenders
    shown = [one for one in figures if any(comparison.values(one.name, case, name) for case in comparison.cases)]
    cells = [
        [case, *(_text(comparison.spread(figure.name, case, name), figure.digits) for figure in shown)]
        for case in comparison.cases
    ]
    return Table(("case", *(figure.title for figure in shown)), cells)


def _values(comparison: Comparison, figure: Figure) -> Table | None:
    def cell(name: str, case: str) -> str:
        text = _text(comparison.spread(figure.name, case, name), figure.digits)
        if comparison.lost_more(figure.name, case, name):
            return text + FLAG if text else f"lost {comparison.lost(case, name):,.0f}"
        return bold(text) if comparison.standing(figure, case, name) == "better" else text

    return _crossed(comparison, figure, comparison.contenders, cell)


def _ratios(comparison: Comparison, figure: Figure) -> Table | None:
    def cell(name: str, case: str) -> str:
        ratios = comparison.ratios(figure.name, case, name)
        return _ratio(Spread.of(ratios)) if ratios and comparison.competes(figure.name, case, name) else ""

    return _crossed(comparison, figure, [name for name in comparison.contenders if not is_ours(name)], cell)


def _crossed(
    comparison: Comparison, figure: Figure, names: Sequence[str], cell: Callable[[str, str], str]
) -> Table | None:
    """Contenders by cases, the longer of the two downwards, without what is empty; None if all is."""
    cells = {(name, case): cell(name, case) for name in names for case in comparison.cases}
    names = [name for name in names if any(cells[name, case] for case in comparison.cases)]
    cases = [case for case in comparison.cases if any(cells[name, case] for name in names)]
    if not cases:
        return None
    if len(cases) > len(names):
        return Table(("case", *names), [[case, *(cells[name, case] for name in names)] for case in cases])
    return Table(("contender", *cases), [[name, *(cells[name, case] for case in cases)] for name in names])


def _remarks(comparison: Comparison, figure: Figure) -> list[Remark]:
    """Of the figure's rows in which another is better."""
    behind = [row for row in comparison.rows() if row.figure == figure and row.standing == "better"]
    return list(dict.fromkeys(remark for row in behind for remark in row.remarks))


def _text(spread: Spread | None, digits: int) -> str:
    return spread.text(digits) if spread else ""
