"""The guard against lost ground: what it compares with the committed results, and what it calls a loss."""

from dataclasses import replace

import pytest

from benchmarks import guard
from benchmarks.results import Run

from .observed import RATE, SECONDS, result


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
    ideal = (replace(SECONDS, ideal=1.0),)
    then = Run([result({"a": {"kimi_async": [1.0], "httpx": [2.0]}}, figures=ideal)])
    now = Run([result({"a": {"kimi_async": [1.2], "httpx": [2.4]}}, figures=ideal)])
    assert [loss.other for loss in guard.verdict(now, then).losses] == [guard.ITSELF]
    alone = [Run([result({"a": {"kimi_async": [value]}})]) for value in (1.2, 1.0)]
    assert [loss.other for loss in guard.verdict(*alone).losses] == [guard.ITSELF]


def test_figures_that_are_not_guarded_may_change():
    """They are in the report, and nowhere else."""
    found = verdict([9.0], [1.0], figures=(replace(SECONDS, guarded=False),))
    assert found.checks == ()


def test_only_those_are_measured_who_are_needed():
    """An ideal needs no rivals, a scenario without a guard no measuring; anything else, one other contender."""
    everybody = frozenset({"kimi_async", "httpx", "AsyncOpenAI", "lm-deluge"})
    both = frozenset({"kimi_async", "AsyncOpenAI"})
    plain, ideal = replace(SECONDS, guarded=False), replace(SECONDS, ideal=1.0)
    for figures, entrants in (((plain,), set()), ((plain, ideal), {"kimi_async"}), ((ideal, RATE), both)):
        assert guard.entrants(result({}, figures=figures).scenario, everybody) == entrants


def test_what_the_committed_results_lack_is_named():
    """A scenario, a case, a contender: none is left out in silence."""
    case = {"kimi_async": [1.0], "httpx": [2.0]}
    then = Run([result({"a": case})])
    now = Run([result({"a": {**case, "AsyncOpenAI": [3.0]}, "b": case}), result({"a": case}, name="memory")])
    found = guard.verdict(now, then)
    assert found.missing == ("makespan: a, seconds, AsyncOpenAI", "makespan: b, seconds", "scenario memory")
    assert [check.other for check in found.checks] == ["httpx"]
    assert found.passed
    assert "Not in the committed results: scenario memory." in str(found)


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
