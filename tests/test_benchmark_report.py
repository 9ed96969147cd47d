"""What the benchmarks' report makes of results: who is first, tables, plots, and the file of results itself."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks import plots, profile, report
from benchmarks.comparison import Comparison, Spread
from benchmarks.results import Observation, Plan, Provenance, Remark, Run
from benchmarks.suite import Suite
from benchmarks.tables import Table, replaced

from .observed import LOST, RATE, SECONDS, WHERE, result


def only_row(values, **scenario):
    """The one row that these values make."""
    [row] = Comparison(result(values, **scenario)).rows()
    return row


# -- the file -----------------------------------------------------------------------------------------------------


def test_a_run_is_read_as_it_was_written(tmp_path):
    """Numbers, tuples and nested parameters; one observation a line."""
    made = result({"a": {"kimi_async": [1.5, 2], "httpx": [3.25]}}, remarks=(Remark("seconds", "*", "Because."),))
    Run([made]).write(tmp_path / "new" / "run.json")
    assert Run.read(tmp_path / "new" / "run.json") == Run([made])
    lines = (tmp_path / "new" / "run.json").read_text().splitlines()
    assert sum('"repetition"' in line and json.loads(line.strip(" ,")) != {} for line in lines) == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.json"]


def test_no_file_is_an_empty_run(tmp_path):
    """The first run has nothing to keep."""
    assert Run.read(tmp_path / "run.json") == Run()


def test_a_scenario_measured_again_replaces_itself_alone():
    """In the order of all scenarios, wherever it was before."""
    first, other = result({}, name="fairness"), result({}, name="makespan")
    run = Run([first, other])
    again = result({"a": {"kimi_async": [1]}}, name="makespan")
    run.put(again, ["makespan", "fairness"])
    assert run.results == [again, first]
    assert run.result("makespan") is again
    assert run.result("memory") is None


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_does_not_apply_is_left_out_and_not_infinite(value):
    """JSON has no such numbers, and no table could show them."""
    with pytest.raises(ValueError, match="httpx, a: seconds"):
        Observation("a", "httpx", 0, {"seconds": value})


def test_provenance_names_versions_of_ours_and_of_others():
    """Ours are looked up, others' are told."""
    where = Provenance.here(command="python -m benchmarks run", seed=7, versions={"lm-deluge": "1.0"})
    assert where.versions["lm-deluge"] == "1.0"
    assert where.versions["httpx"].startswith("0.")
    assert (where.seed, "Python 3" in where.machine) == (7, True)


# -- who is first -------------------------------------------------------------------------------------------------


def test_a_ratio_is_taken_within_a_repetition():
    """A slow minute of the machine that hits both leaves the ratio as it was."""
    row = only_row({"a": {"kimi_async": [1, 10, 2], "httpx": [2, 20, 4]}})
    assert row.ratio == Spread(0.5, 0.5, 0.5)
    assert row.ours == Spread(2, 1, 10)


def test_the_best_other_is_the_one_that_matters():
    """Less is better, or more: each figure says so."""
    others = {"httpx": [{"seconds": 3, "rate": 5}], "AsyncOpenAI": [{"seconds": 2, "rate": 4}]}
    values = {"a": {"kimi_async": [{"seconds": 1, "rate": 9}], **others}}
    rows = Comparison(result(values)).rows()
    assert [(row.figure.name, row.other, row.standing) for row in rows] == [
        ("seconds", "AsyncOpenAI", "worse"),
        ("rate", "httpx", "worse"),
    ]


def test_who_is_better_each_time_is_not_hidden_by_one_who_is_sometimes():
    """Though the other's median is lower."""
    row = only_row({"a": {"kimi_async": [1.0, 1.2], "AsyncOpenAI": [0.9, 1.25], "httpx": [0.99, 1.17]}})
    assert (row.other, row.standing) == ("httpx", "better")


def test_whoever_answers_all_is_better_than_ours_where_it_does_not():
    """In whatever repetition."""
    for ours, shown in (([{"lost": 1}], "not all answered"), ([{"seconds": 1}, {"lost": 1}], "1.00")):
        values = {"a": {"kimi_async": ours, "httpx": [3, 3]}, "b": {"kimi_async": [2], "httpx": [3]}}
        row, *_ = Comparison(result(values)).rows()
        assert (row.case, row.other, row.standing) == ("a", "httpx", "better")
        text = report.markdown(Run([result(values)]))
        assert shown in next(line for line in text.splitlines() if line.startswith("| makespan | a "))


@pytest.mark.parametrize(
    ("ours", "others", "standing"),
    [
        ([1.0, 1.0], [1.1, 1.2], "worse"),
        ([1.0, 1.0], [0.9, 0.8], "better"),
        ([1.0, 1.0], [0.9, 1.1], "equal"),  # ahead in one repetition only
        ([1.001, 1.0], [0.999, 0.998], "equal"),  # printed alike
        ([0, 0], [0, 0], "equal"),
        ([3, 3], [0, 0], "better"),  # nothing can be divided by zero
        ([0, 0], [3, 3], "worse"),
    ],
)
def test_the_standing_of_another(ours, others, standing):
    """Better, worse, or equal within what repetitions give."""
    assert only_row({"a": {"kimi_async": ours, "httpx": others}}).standing == standing


def test_a_ratio_to_zero_is_none():
    """Refusals, mostly."""
    assert only_row({"a": {"kimi_async": [3], "httpx": [0]}}).ratio is None


def test_who_lost_prompts_does_not_compete():
    """To be done early by leaving things out is no merit; to lose less is."""
    hasty = [{"seconds": 1, "lost": 5}]
    values = {"a": {"kimi_async": [{"seconds": 2, "lost": 0}], "AsyncOpenAI": hasty}}
    rows = list(Comparison(result(values)).rows())
    assert [(row.figure.name, row.other, row.standing) for row in rows] == [
        ("seconds", None, "worse"),
        ("lost", "AsyncOpenAI", "worse"),
    ]
    values["a"]["kimi_async"] = [{"seconds": 2, "lost": 5}]
    assert next(Comparison(result(values)).rows()).standing == "better"


def test_a_row_in_which_all_others_lost_prompts_is_a_row():
    """They have no makespan there, and would have one."""
    lost = [{"lost": 5}]
    values = {"a": {"kimi_async": [2], "httpx": lost}, "b": {"kimi_async": [2], "httpx": [3]}}
    first, *_ = Comparison(result(values)).rows()
    assert (first.case, first.other, first.standing) == ("a", None, "worse")
    text = report.markdown(Run([result(values)]))
    assert "nobody else answered all" in text
    assert "| httpx      | lost 5 | 3.00 |" in text


def test_a_remark_is_about_figures_and_cases():
    """Both are patterns."""
    values = {case: {"kimi_async": [2], "httpx": [1]} for case in ("fixed, 0 ms", "bucket, 0 ms")}
    rows = Comparison(result(values, remarks=(Remark("sec*", "fixed*", "Edges."), Remark("rate", "*", "No.")))).rows()
    assert [[remark.text for remark in row.remarks] for row in rows] == [["Edges."], []]


def test_a_yardstick_competes_in_no_row():
    """It is in the tables all the same."""
    values = {"a": {"kimi_async": [2], "a bare line": [1], "httpx": [3]}}
    row = only_row(values, yardsticks=("a bare line",))
    assert (row.other, row.standing) == ("httpx", "worse")
    assert "| a bare line | 1.00 |" in report.markdown(Run([result(values, yardsticks=("a bare line",))]))


def test_a_result_that_was_stopped_says_so():
    """In the report, behind its tables."""
    made = result({"a": {"kimi_async": [1], "httpx": [2]}})
    text = "Measured in part only"
    assert text not in report.markdown(Run([made]))
    made.stopped = True
    assert text in report.markdown(Run([made]))
    assert text in report.parts(Run([made]), "results")["makespan"]


def test_variants_of_ours_are_nobody_to_be_compared_with():
    """They stand first in tables, and win no row from it."""
    made = result({"a": {"httpx": [3], "kimi_async, uvloop": [1], "kimi_async": [2]}})
    comparison = Comparison(made)
    assert comparison.contenders == ("kimi_async", "kimi_async, uvloop", "httpx")
    assert [row.other for row in comparison.rows()] == ["httpx"]


def test_rows_need_somebody_to_compete_and_a_figure_that_says_which_value_is_better():
    """Else there is nothing to be first in."""
    assert list(Comparison(result({"a": {"kimi_async": [1]}, "b": {"httpx": [1]}})).rows()) == []
    neutral = replace(SECONDS, better=None)
    assert list(Comparison(result({"a": {"kimi_async": [1], "httpx": [2]}}, figures=(neutral,))).rows()) == []


# -- tables -------------------------------------------------------------------------------------------------------


def test_a_table_is_aligned():
    """Words to the left, numbers to the right, bold ones too; what is wide in a terminal counts twice."""
    table = Table(("who", "seconds"), [["月|x", "**1.50**"], ["b", ""]])
    assert str(table).splitlines() == [
        "| who   |  seconds |",
        "| ----- | -------: |",
        "| 月\\|x | **1.50** |",
        "| b     |          |",
    ]


def test_a_marked_part_is_replaced_and_nothing_else():
    """Backslashes and all."""
    text = "before\n<!-- a -->\nold\n<!-- /a -->\nafter"
    assert replaced(text, "a", r"\1") == "before\n<!-- a -->\n\n\\1\n\n<!-- /a -->\nafter"
    assert replaced(text, "b", "new") is None


VALUES = {
    "sliding": {
        "kimi_async": [1.01, 1.02, 1.0],
        "httpx": [1.5, 1.6, 1.5],
        "AsyncOpenAI": [{"seconds": 0.5, "lost": 2}],
    },
    "fixed": {"kimi_async": [1.0, 1.0, 1.0], "httpx": [0.75, 0.75, 0.75]},
}
REMARK = Remark("seconds", "fix*", "A fixed window's edge lets twice the limit through.")


def test_the_table_says_who_is_first_and_why_not():
    """What is better than ours is bold, and the remark's number leads to its text."""
    lines = report.markdown(Run([result(VALUES, remarks=(REMARK,))])).splitlines()
    assert "Of 2 rows, kimi_async is first in 1, equal in 0 and behind in 1." in lines
    [sliding] = [line for line in lines if line.startswith("| makespan | sliding")]
    cells = [cell.strip() for cell in sliding.split("|")[3:-1]]
    assert cells == [
        "Seconds",
        "1.01 (1.00 to 1.02)",
        "httpx",
        "1.50 (1.50 to 1.60)",
        "0.67 (0.64 to 0.67)",
        "kimi_async",
    ]
    [fixed] = [line for line in lines if line.startswith("| makespan | fixed")]
    cells = [cell.strip() for cell in fixed.split("|")[5:-1]]
    assert cells == ["**httpx**", "**0.75**", "1.33", "**httpx** (1)"]
    assert f"1. {REMARK.text}" in lines


def test_a_scenario_has_a_table_for_each_figure():
    """Whoever lost prompts is marked; a figure that does not apply is an empty cell; the remark is below."""
    text = report.markdown(Run([result(VALUES, remarks=(REMARK,))])).partition("## makespan")[2]
    assert "| AsyncOpenAI |              0.50 † |          |" in text
    assert "| httpx       | 1.50 (1.50 to 1.60) | **0.75** |" in text
    assert f"> {REMARK.text}" in text
    for part in ("As it says.", "![How long a file takes](makespan.png)", "rpm `60`", WHERE.command, "a machine"):
        assert part in text


def test_links_lead_from_where_they_are_written():
    """The prose is written for the README, one folder above the report."""
    made = Run([result(VALUES, about="See [it](schedule.py), [that](https://example.org).")])
    assert "[it](../schedule.py), [that](https://example.org)" in report.markdown(made)
    assert "[it](schedule.py)" in report.parts(made, "results")["makespan"]


def test_more_cases_than_contenders_run_downwards():
    """A table grows down, not to the right."""
    cases = {f"case {number}": {"kimi_async": [1], "httpx": [2]} for number in range(3)}
    text = report.markdown(Run([result(cases)]))
    assert "| case   | kimi_async | httpx |" in text
    assert "| case 2 |       1.00 |  2.00 |" in text


def test_one_contender_has_its_figures_side_by_side():
    """There is nobody to be compared with."""
    text = report.markdown(Run([result({"a": {"kimi_async": [{"seconds": 1, "rate": 20}]}})]))
    assert "| a    |    1.00 |                20 |" in text
    assert "Nobody competes" in text


def test_what_is_unexplained_or_unmarked_is_told(tmp_path):
    """A row that is lost without a remark; a part that the README has no place for."""
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table -->\nold\n<!-- /table -->\n")
    missing = report.write(Run([result(VALUES)]), tmp_path / "results", readme)
    assert [(row.case, row.other) for row in missing.unexplained] == [("fixed", "httpx")]
    assert missing.unmarked == ["makespan"]
    assert "**httpx** (no remark)" in readme.read_text()
    assert (tmp_path / "results" / "report.md").exists()


def test_the_readme_shows_plots_and_first_figures(tmp_path):
    """And of the table what is plotted, and whatever is lost."""
    values = {"a": {"kimi_async": [{"seconds": 1, "rate": 9}], "httpx": [{"seconds": 2, "rate": 3}]}}
    parts = report.parts(Run([result(values)]), "results")
    assert "![How long a file takes](results/makespan.png)" in parts["makespan"]
    assert RATE.title not in parts["makespan"] + parts["table"]
    values["a"]["httpx"] = [{"seconds": 2, "rate": 10}]
    assert RATE.title in report.parts(Run([result(values)]), "results")["table"]


# -- plots --------------------------------------------------------------------------------------------------------


def test_the_same_results_make_the_same_plots(tmp_path):
    """To the byte: a plot that changes in the repository shows that results did."""
    run = Run([result(VALUES, figures=(replace(SECONDS, ideal=1.0), LOST), plotted=2)])
    drawn = [plots.draw(run, tmp_path / name) for name in ("one", "two")]
    assert [path.name for path in drawn[0]] == ["makespan.png", "makespan.svg"]
    for one, two in zip(*drawn, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_lines_have_a_panel_for_each_condition(tmp_path):
    """The first number of a case is where its value stands."""
    cases = {
        f"{number:,} in flight, {latency}": {"kimi_async": [1], "httpx": [number]}
        for latency in ("50 ms", "1 s")
        for number in (1, 100, 1_000)
    }
    made = result(cases, plot="lines")
    lines = plots._Lines(Comparison(made), SECONDS)
    assert {panel: list(cases) for panel, cases in lines.panels.items()} == {
        "in flight, 50 ms": [1, 100, 1_000],
        "in flight, 1 s": [1, 100, 1_000],
    }
    assert len(plots.draw_one(made, tmp_path)) == 2


def test_panels_are_for_cases_in_which_somebody_competes():
    """Whoever lost prompts has no bar there, but a place; what ours did alone is in the tables."""
    values = {"a": {"kimi_async": [1], "httpx": [{"lost": 3}]}, "b": {"kimi_async": [1]}, "c": {"httpx": [1]}}
    bars = plots._Bars(Comparison(result(values)), SECONDS)
    assert (bars.cases, bars.names) == (["a", "c"], ["kimi_async", "httpx"])
    alone = plots._Bars(Comparison(result({"a": {"kimi_async": [1]}, "b": {"kimi_async": [1]}})), SECONDS)
    assert (alone.cases, alone.names, alone.alone) == (["a", "b"], ["kimi_async"], True)


def test_nothing_observed_draws_nothing(tmp_path):
    """A scenario that was stopped before its first figure."""
    assert plots.draw_one(result({"a": {"httpx": [{"rate": 1}]}}), tmp_path) == []


def test_labels_keep_apart_and_in_order():
    """As near as can be to where they belong."""
    places = plots._apart({"a": 0.5, "b": 0.5, "c": 0.52, "d": 0.9}, 0.1)
    assert list(places) == ["a", "b", "c", "d"]
    assert [round(place, 3) for place in places.values()] == [0.407, 0.507, 0.607, 0.9]


@pytest.mark.parametrize(
    ("values", "kind"), [([0, 0], "linear"), ([1, 14], "linear"), ([1, 15], "log"), ([0, 1, 15], "symlog")]
)
def test_decades_make_a_logarithmic_scale(values, kind):
    """With a linear beginning where there are zeros."""
    scale = plots._Scale.of(values)
    assert scale.kind == kind
    assert scale.low < scale.high or not any(values)
    assert scale.beyond(0.3) > scale.high


# -- what runs ----------------------------------------------------------------------------------------------------


class Measured:
    """A scenario of three observations, whose third may fail."""

    def __init__(self, name, *, fails=False):
        self.SCENARIO = result({}, name=name).scenario
        self.fails = fails

    def parameters(self, plan):
        return {"seed": plan.seed}

    def measure(self, plan):
        for repetition in range(2):
            yield Observation("a", "kimi_async", repetition, {"seconds": repetition + 1.0})
        if self.fails:
            raise RuntimeError("the gateway is gone")
        yield Observation("a", "httpx", 0, {"seconds": 3.0})


def test_each_observation_is_kept_as_it_comes_and_a_failure_stops_only_its_scenario():
    """What was observed before it stays, and is known to be a part."""
    kept = []
    console = Console(file=io.StringIO(), width=200)
    scenarios = {"one": Measured("one", fails=True), "two": Measured("two")}
    suite = Suite(scenarios, console, Run())
    failed = suite.run(
        Plan(seed=5), lambda: WHERE, lambda one: kept.append((one.scenario.name, len(one.observations), one.stopped))
    )
    assert failed == ["one"]
    assert kept == [
        ("one", 1, True),
        ("one", 2, True),
        ("two", 1, True),
        ("two", 2, True),
        ("two", 3, True),
        ("two", 3, False),
    ]
    assert "two #2: a: kimi_async: seconds 2.00" in console.file.getvalue()
    assert "the gateway is gone" in console.file.getvalue()


def test_who_fails_is_kept_and_ours_fails_the_scenario():
    """Others that fail are in the result alone."""

    class Failing(Measured):
        def measure(self, plan):
            yield Observation("a", self.fails, 0, {}, "RuntimeError: gone")
            yield Observation("a", "httpx", 0, {"seconds": 3.0})

    kept = Run()
    console = Console(file=io.StringIO(), width=200)
    scenarios = {"one": Failing("one", fails="kimi_async"), "two": Failing("two", fails="lm-deluge")}
    failed = Suite(scenarios, console, Run()).run(Plan(), lambda: WHERE, lambda one: kept.put(one, scenarios))
    assert failed == ["one"]
    assert [list(map(str, one.failures)) for one in kept.results] == [
        ["a: kimi_async: RuntimeError: gone"],
        ["a: lm-deluge: RuntimeError: gone"],
    ]
    assert [(len(one.observations), one.stopped) for one in kept.results] == [(1, False)] * 2
    assert "two #1: a: lm-deluge failed: RuntimeError: gone" in console.file.getvalue()


def test_results_from_before_failures_were_kept_can_be_read(tmp_path):
    """All that is new has a default, and observations are written as they were."""
    path = tmp_path / "run.json"
    Run([result({"a": {"httpx": [1]}})]).write(path)
    content = json.loads(path.read_bytes())
    [one] = content["results"]
    assert one["observations"] == [{"case": "a", "contender": "httpx", "repetition": 0, "values": {"seconds": 1.0}}]
    del one["failures"], one["provenance"]["lacking"]
    for figure in one["scenario"]["figures"]:
        del figure["promise"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert Run.read(path) == Run([result({"a": {"httpx": [1]}})])


# -- the profile --------------------------------------------------------------------------------------------------


def test_a_profile_adds_up_by_module_and_by_function():
    """Each look stands for the same time; ours are also counted while they wait for others."""
    samples = profile.Samples(requests=100, cpu=0.1, looks=10)
    samples.own.update({("h11._state", "f"): 6, ("kimi_async.client", "g"): 3, ("selectors", "select"): 1})
    samples.within.update({("h11._state", "f"): 6, ("kimi_async.client", "g"): 9, ("selectors", "select"): 1})
    text = profile.text({100: samples})
    for line in ("| h11        |   600 (60.0%) |", "| asyncio    |   100 (10.0%) |", "| total      |         1,000 |"):
        assert line in text
    assert text.count("`h11._state.f`") == 1
    assert "| `kimi_async.client.g` |   900 (90.0%) |" in text


@pytest.mark.real_time
def test_looks_see_the_function_that_runs_and_its_callers():
    """And nobody looks any more afterwards."""
    samples = profile.Samples()

    def busy():
        while samples.looks < 3:
            sum(range(100))

    with profile._looking(samples):
        busy()
    looks = samples.looks
    sum(range(3_000_000))
    assert samples.looks == looks
    here = [place for place in samples.own if place[1].endswith("busy")]
    assert here
    assert samples.within[__name__, "test_looks_see_the_function_that_runs_and_its_callers"] >= 3
    assert samples.looking > 0
