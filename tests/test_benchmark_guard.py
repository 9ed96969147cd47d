"""The guard against lost ground: what it compares with the committed results, and what it calls a loss."""

from dataclasses import replace

import pytest

from benchmarks import __main__ as command
from benchmarks import guard
from benchmarks.results import Failure, Figure, Observation, Run

from .observed import LOST, RATE, SECONDS, WHERE, result

IDEAL = replace(SECONDS, ideal=1.0)
PROMISED = (replace(IDEAL, promise=1.02), Figure("refused", "Refused", 0, promise=0.0), LOST)
BOTH = {"kimi_async": [1.0], "AsyncOpenAI": [2.0]}


def texts(found):
    """What is said beside the ratios."""
    return [str(finding) for finding in found.findings]


def verdict(now, then, **scenario):
    """Of one case, ``kimi_async``'s values against those of an ``httpx`` that always takes 1."""
    runs = [
        Run([result({"a": {"kimi_async": values, "httpx": [1.0] * len(values)}}, **scenario)])
        for values in (now, then)
    ]
    return guard.verdict(*runs)


@pytest.mark.parametrize(
    ("now", "then", "lost"),
    [
        ([1.0, 1.0], [1.0, 1.0], False),
        ([1.15, 1.15], [1.0, 1.0], False),
        ([1.16, 1.16], [1.0, 1.0], True),
        ([0.5, 0.5], [1.0, 1.0], False),  # a gain
        ([1.3, 1.3], [1.0, 1.0, 1.4], False),  # as it was seen then
        ([1.3, 1.3, 1.0], [1.0, 1.0], False),  # reaches what was then
        ([1.3, 1.3, 1.2], [1.0, 1.1, 1.0], True),
        ([3, 3], [0, 0], True),
        ([0, 0], [0, 0], False),
    ],
)
def test_a_loss_is_large_and_outside_the_spread_of_both(now, then, lost):
    """15 % in the median, and no repetition of now as good as any of then."""
    found = verdict(now, then)
    assert (bool(found.losses), found.passed) == (lost, not lost)


def test_less_of_what_should_be_more_is_a_loss():
    """A rate that falls."""

    def run(rate):
        return Run([result({"a": {"kimi_async": [{"rate": rate}], "httpx": [{"rate": 100}]}}, figures=(RATE,))])

    assert guard.verdict(run(80), run(100)).losses
    assert not guard.verdict(run(88), run(100)).losses
    assert not guard.verdict(run(200), run(100)).losses


def test_a_slow_machine_is_no_loss():
    """Both contenders take twice as long: the ratio is what it was."""
    then = Run([result({"a": {"kimi_async": [1.0], "httpx": [2.0]}})])
    now = Run([result({"a": {"kimi_async": [2.0], "httpx": [4.0]}})])
    assert guard.verdict(now, then).passed


def test_a_ratio_to_an_ideal_is_compared_as_it_is():
    """Nobody else's bad day hides ours; likewise where there is nobody else."""
    then = Run([result({"a": {"kimi_async": [1.0], "httpx": [2.0]}}, figures=(IDEAL,))])
    now = Run([result({"a": {"kimi_async": [1.2], "httpx": [2.4]}}, figures=(IDEAL,))])
    assert [loss.other for loss in guard.verdict(now, then).losses] == [guard.ITSELF]
    alone = [Run([result({"a": {"kimi_async": [value]}}, figures=(IDEAL,))]) for value in (1.2, 1.0)]
    assert [loss.other for loss in guard.verdict(*alone).losses] == [guard.ITSELF]


def test_figures_that_are_not_guarded_may_change():
    """They are in the report, and nowhere else."""
    found = verdict([9.0], [1.0], figures=(replace(SECONDS, guarded=False),))
    assert found.checks == ()


def test_only_those_are_measured_who_are_needed():
    """An ideal needs no rivals, a scenario without a guard no measuring; anything else, one other contender."""
    everybody = frozenset({"kimi_async", "httpx", "AsyncOpenAI", "lm-deluge"})
    ours, both = frozenset({"kimi_async"}), frozenset({"kimi_async", "AsyncOpenAI"})
    plain, promised = replace(SECONDS, guarded=False), PROMISED[1]
    for figures, entrants in (
        ((plain,), set()),
        ((plain, IDEAL), ours),
        ((plain, promised), ours),
        ((IDEAL, promised, RATE), both),
    ):
        assert guard.entrants(result({}, figures=figures).scenario, everybody) == entrants


def test_what_the_committed_results_lack_is_named_and_fails():
    """A scenario, a case, a contender: none is left out in silence."""
    case = {"kimi_async": [1.0], "httpx": [2.0]}
    then = Run([result({"a": case})])
    now = Run([result({"a": {**case, "AsyncOpenAI": [3.0]}, "b": case}), result({"a": case}, name="memory")])
    found = guard.verdict(now, then)
    assert texts(found) == [
        "Not in the committed results: makespan: a, seconds, AsyncOpenAI.",
        "Not in the committed results: makespan: b, seconds.",
        "Not in the committed results: scenario memory.",
    ]
    assert [check.other for check in found.checks] == ["httpx"]
    assert not found.passed
    assert texts(found)[2] in str(found)


def test_committed_results_of_a_part_do_not_do():
    """What somebody stopped half-way is compared, but it is no yardstick."""
    then = result({"a": BOTH})
    then.stopped = True
    found = guard.verdict(Run([result({"a": BOTH})]), Run([then]))
    assert texts(found) == ["Stopped half-way in the committed results: scenario makespan."]
    assert (len(found.checks), found.passed) == (1, False)


@pytest.mark.parametrize(
    ("failures", "lacking", "reason"),
    [
        ([], {}, ""),
        ([Failure("a", "AsyncOpenAI", "RuntimeError: x")], {}, " (RuntimeError: x)"),
        ([Failure("b", "AsyncOpenAI", "RuntimeError: x")], {"AsyncOpenAI": "not installed: openai"}, " (not inst"),
    ],
)
def test_who_was_not_measured_now_is_not_called_uncommitted(failures, lacking, reason):
    """With why, if that is known; the one of the committed results that is never measured in short is not missed."""
    now = result({"a": {"kimi_async": [1.0]}})
    now.failures, now.provenance = failures, replace(WHERE, lacking=lacking)
    found = guard.verdict(Run([now]), Run([result({"a": {**BOTH, "httpx": [3.0]}})]))
    [text] = texts(found)
    assert text.startswith(f"Not measured now: makespan: a, seconds, AsyncOpenAI{reason}")
    assert not found.passed


def test_who_lost_prompts_is_no_yardstick():
    """And is said to be none."""
    now = result({"a": {"kimi_async": [1.0], "AsyncOpenAI": [{"seconds": 1.0, "lost": 2}]}})
    found = guard.verdict(Run([now]), Run([result({"a": BOTH})]))
    assert texts(found) == ["Not measured now: makespan: a, seconds, AsyncOpenAI (it lost 2 prompts)."]


def test_what_others_are_measured_in_full_runs_is_not_missed():
    """A check measures one of them."""
    found = guard.verdict(Run([result({"a": BOTH})]), Run([result({"a": {**BOTH, "httpx": [3.0]}})]))
    assert found.passed
    assert texts(found) == []


def test_where_nobody_else_is_nothing_is_compared():
    """Microseconds of two machines are not a ratio; that is said, and fails nothing."""
    now, then = (Run([result({"a": BOTH, "b": {"kimi_async": [value]}})]) for value in (9.0, 1.0))
    found = guard.verdict(now, then)
    assert found.passed
    assert texts(found) == ["Not guarded, since nobody else does it: makespan: b, seconds."]


def test_a_scenario_in_which_nothing_can_be_compared_fails():
    """However many ratios others have."""
    alone = result({"b": {"kimi_async": [1.0]}}, name="memory")
    runs = [Run([result({"a": BOTH}), alone]) for _ in range(2)]
    found = guard.verdict(*runs)
    assert texts(found)[-1] == "Nothing could be compared: memory."
    assert not found.passed


# -- what keeps ours from being measured --------------------------------------------------------------------------


def test_prompts_that_ours_lost_fail():
    """In one repetition, whatever the other gave; likewise the figure that went with them."""
    then = Run([result({"a": {"kimi_async": [1.0]}}, figures=PROMISED)])
    kept = {"seconds": 1.0, "refused": 0, "lost": 0}
    one = guard.verdict(
        Run([result({"a": {"kimi_async": [kept, {"refused": 0, "lost": 3}]}}, figures=PROMISED)]), then
    )
    assert texts(one) == ["Failed: makespan: a: kimi_async lost 3 prompts."]
    all_ = guard.verdict(Run([result({"a": {"kimi_async": [{"refused": 0, "lost": 1}]}}, figures=PROMISED)]), then)
    assert texts(all_) == [
        "Failed: makespan: a: kimi_async lost 1 prompts.",
        "Failed: makespan: a, seconds: no value of kimi_async.",
    ]
    assert not one.passed
    assert not all_.passed
    assert not guard.verdict(Run([result({"a": {"kimi_async": [{"lost": 1}]}})]), Run()).passed


@pytest.mark.parametrize("contender", ["kimi_async", "kimi_async, even pace"])
def test_a_failure_of_ours_fails(contender):
    """Also where it is the only one that is measured, and where another repetition went well."""
    now = result({}, figures=(IDEAL,))
    now.failures = [Failure("a", contender, "RuntimeError: it is gone")]
    then = Run([result({"a": {"kimi_async": [1.0]}}, figures=(IDEAL,))])
    found = guard.verdict(Run([now]), then)
    said = f"Failed: makespan: a: {contender}: RuntimeError: it is gone."
    assert texts(found) == [said, "Failed: makespan: seconds: no value of kimi_async in any case."]
    assert not found.passed
    assert said in str(found)
    now.observations = [Observation("a", "kimi_async", 1, {"seconds": 1.0})]
    assert texts(guard.verdict(Run([now]), then)) == [said]
    assert not guard.verdict(Run([now]), then).passed


def test_a_value_that_others_have_and_ours_has_not_fails():
    """Whatever kept it away."""
    then = Run([result({"a": BOTH, "b": BOTH})])
    found = guard.verdict(Run([result({"a": BOTH, "b": {"AsyncOpenAI": [1.0]}})]), then)
    assert texts(found) == ["Failed: makespan: b, seconds: no value of kimi_async."]
    assert not found.passed


def test_a_short_run_that_was_stopped_fails():
    """What it did not come to may be lost."""
    now = result({"a": BOTH})
    now.stopped = True
    found = guard.verdict(Run([now]), Run([result({"a": BOTH})]))
    assert texts(found) == ["Failed: makespan: stopped half-way."]
    assert not found.passed


# -- promises -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "refused", "broken"),
    [
        ([1.02, 1.02], [0, 0], []),
        ([1.021, 1.021], [0, 0], ["seconds at most 1.02"]),
        ([1.02, 1.03], [0, 1], []),  # a slow moment
        ([1.0, 1.0], [1, 2], ["refused at most 0"]),
    ],
)
def test_a_promise_holds_whatever_is_committed(seconds, refused, broken):
    """Fifteen percent do not come into it, nor an earlier run that broke it."""
    values = [{"seconds": one, "refused": other} for one, other in zip(seconds, refused, strict=True)]
    now = Run([result({"a": {"kimi_async": values}}, figures=PROMISED)])
    then = Run([result({"a": {"kimi_async": [{"seconds": 1.1, "refused": 5}]}}, figures=PROMISED)])
    found = guard.verdict(now, then)
    assert [loss.guards for loss in found.losses] == broken
    assert found.passed == (not broken)
    assert "1 ratios compared with the committed results, 2 with what is promised" in str(found)


def test_a_promise_of_more_is_a_least():
    """Of what is the better the more there is of it."""
    figures = (replace(RATE, ideal=100, promise=90),)
    runs = [Run([result({"a": {"kimi_async": [{"rate": rate}]}}, figures=figures)]) for rate in (89, 90)]
    assert [loss.guards for loss in guard.verdict(runs[0], runs[1]).losses] == ["rate at least 90"]
    assert guard.verdict(runs[1], runs[1]).passed


# -- what is said -------------------------------------------------------------------------------------------------


def test_what_is_guarded_is_said():
    """By scenario, case and figure, so that nobody believes it is all."""
    values = {"a": {"kimi_async": [{"seconds": 1.0, "refused": 0}]}}
    runs = [Run([result(values, figures=PROMISED), result({"b": BOTH}, name="overhead")]) for _ in range(2)]
    lines = str(guard.verdict(*runs)).splitlines()
    assert "nothing else is" in lines[0]
    assert lines[1:3] == ["- makespan: a: seconds at most 1.02; refused at most 0; seconds", "- overhead: b: seconds"]


def test_nothing_to_compare_does_not_pass():
    """A guard that looked at nothing has guarded nothing."""
    found = guard.verdict(Run([result({"a": {"kimi_async": [1.0]}})]), Run())
    assert not found.passed
    assert "Nothing could be compared." in str(found)


def test_the_table_says_what_lost_and_how_much():
    """The ratios, then and now."""
    text = str(verdict([1.5, 1.5], [1.0, 1.0]))
    assert "1 ratios compared" in text
    line = text.splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "makespan",
        "a",
        "Seconds",
        "httpx",
        "1.000",
        "1.500",
        "+50%",
    ]


def test_a_second_look_adds_its_repetitions():
    """A slow moment widens the spread, and is no loss then."""
    then = Run([result({"a": {"kimi_async": [1.0, 1.0], "httpx": [1.0, 1.0]}})])
    slow = result({"a": {"kimi_async": [1.4, 1.4], "httpx": [1.0, 1.0]}})
    again = result({"a": {"kimi_async": [1.0, 1.0], "httpx": [1.0, 1.0]}})
    assert guard.verdict(Run([slow]), then).losses
    pooled = guard.pooled([slow, again])
    assert sorted(one.repetition for one in pooled.observations if one.contender == "httpx") == [0, 1, 2, 3]
    assert not guard.verdict(Run([pooled]), then).losses


def test_a_second_look_forgets_no_failure():
    """Nor that one of the two was stopped."""
    first, second = result({"a": BOTH}), result({"a": BOTH})
    first.failures, second.stopped = [Failure("a", "kimi_async", "x")], True
    pooled = guard.pooled([first, second])
    assert (pooled.failures, pooled.stopped) == (first.failures, True)


# -- the command --------------------------------------------------------------------------------------------------


class Measured:
    """A scenario that is measured at once."""

    SCENARIO = result({}, figures=PROMISED).scenario

    def __init__(self, *values, failure=""):
        self.values = values
        self.failure = failure

    def parameters(self, plan):
        return {}

    def measure(self, plan):
        for repetition, value in enumerate(self.values):
            yield Observation("a", "kimi_async", repetition, {"seconds": value, "refused": 0, "lost": 0})
        if self.failure:
            yield Observation("a", "kimi_async", len(self.values), {}, self.failure)


@pytest.fixture
def committed(tmp_path):
    """A file of results, of a good day."""
    path = tmp_path / "run.json"
    Run([result({"a": {"kimi_async": [{"seconds": 1.0, "refused": 0, "lost": 0}]}}, figures=PROMISED)]).write(path)
    return path


@pytest.mark.parametrize(
    ("measured", "ends"),
    [
        (Measured(1.0), (0, "no loss")),
        (Measured(1.03), (1, "Once more")),
        (Measured(1.0, failure="RuntimeError: gone"), (1, "Failed: makespan: a: kimi_async: RuntimeError: gone.")),
        (Measured(failure="RuntimeError: gone"), (1, "Nothing could be compared.")),
    ],
)
def test_check_ends_as_its_verdict_says(measured, ends, committed, monkeypatch, capsys):
    """A failure is one, however well all else went."""
    monkeypatch.setattr(command, "ALL", {"makespan": measured})
    status, said = ends
    assert command.check(results=committed) == status
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("failure", "status"), [("", 0), ("RuntimeError: gone", 1)])
def test_run_fails_if_ours_does_and_keeps_why(failure, status, tmp_path, monkeypatch):
    """Beside what was observed, and beside who could not be measured at all."""
    monkeypatch.setattr(command, "ALL", {"makespan": Measured(1.0, failure=failure)})
    monkeypatch.setattr(command.venvs, "lacks", lambda: {"lm-deluge": "no environment", "infermesh": "likewise"})
    path = tmp_path / "run.json"
    assert command.run(contender=("lm-deluge",), results=path) == status
    [kept] = Run.read(path).results
    assert kept.failures == ([Failure("a", "kimi_async", failure)] if failure else [])
    assert [one.values["seconds"] for one in kept.observations] == [1.0]
    assert kept.provenance.lacking == {"lm-deluge": "no environment"}
    assert not kept.stopped
