"""What the scenarios about limits make of a trial: the arithmetic, without any process or network."""

import json
import math
from functools import partial

import httpx
import pytest

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.contract import Outcome
from benchmarks.lanes import Stopped
from benchmarks.prompts import mixed, rpm_bound, sized, tpm_bound
from benchmarks.results import Observation, Plan
from benchmarks.scenarios import fairness, faults, guide, limits, makespan
from benchmarks.scenarios.makespan import ALL, BINDINGS, ONE_BY_ONE, REAL, SHORT, Case
from benchmarks.trial import LIMITS, Task, Trial, account, entrants, in_lanes, observed
from kimi_async import RateLimits
from kimi_async.mock import MockSettings

STATS = {"refused": {"rpm": 3, "tpm": 4}, "max_window_requests": 30, "max_window_tokens": 45_000, "billed_again": 2}
EVERYBODY = Plan(contenders=frozenset(CONTENDERS))


def tried(seconds, *, begin=0.0, lost=0, count=2):
    """A trial of two requests, ``lost`` of them unanswered; the gateway was looked at a second later."""
    outcomes = [Outcome(index >= lost, begin, begin + seconds) for index in range(count)]
    return Trial(outcomes, seconds, STATS, LIMITS, begin + seconds + 1)


def test_a_trial_tells_refusals_losses_and_the_fuller_budget():
    """45,000 of 30,000 TPM is more than 30 of 60 RPM."""
    found = tried(1.0, begin=5.0, lost=1)
    assert (found.refused, found.lost, found.most, found.begin) == (7, 1, 1.5, 5.0)


def test_contenders_are_told_all_limits():
    """An account without one of them is a mistake of the scenario's."""
    told = account("http://x/v1", LIMITS)
    assert (told.concurrency, told.rpm, told.tpm, told.minute) == (40, 60, 30_000, 6.0)
    with pytest.raises(ValueError, match="all limits"):
        account("http://x/v1", RateLimits(rpm=3))


def test_only_those_take_part_who_are_planned_and_can_be_told_of_the_minute():
    """A router that knows real minutes only has no place among scaled ones."""
    assert "LiteLLM Router" not in entrants(EVERYBODY, minute=6.0)
    assert "LiteLLM Router" in entrants(EVERYBODY, minute=60.0)
    assert list(entrants(Plan(contenders=frozenset({"httpx"})), minute=6.0)) == ["httpx"]


@pytest.mark.parametrize(
    ("exc", "failure"),
    [
        (
            RuntimeError("it failed in its process\nTraceback\n  a line\nValueError: 3\n"),
            "RuntimeError: it failed in its process … ValueError: 3",
        ),
        (RuntimeError(), "RuntimeError: "),
        (httpx.ReadTimeout("timed out"), "ReadTimeout: timed out"),  # the gateway's statistics
        (json.JSONDecodeError("Unterminated", '{"a', 1), "JSONDecodeError: Unterminated: line 1 column 2 (char 1)"),
        (FileNotFoundError(2, "No such file", "python"), "FileNotFoundError: [Errno 2] No such file: 'python'"),
    ],
)
def test_an_attempt_that_fails_is_an_observation_without_values(exc, failure, capsys):
    """The run goes on, and knows who failed, and why."""

    def fail():
        raise exc

    assert list(observed("case", "name", 1, fail)) == [Observation("case", "name", 1, {}, failure)]
    assert "case: name: " in capsys.readouterr().err


@pytest.mark.parametrize("exc", [ValueError("not a number"), KeyError("refused"), Stopped()])
def test_other_mistakes_end_the_scenario(exc):
    """They are ours, or somebody ended it."""

    def fail():
        raise exc

    with pytest.raises(type(exc)):
        list(observed("case", "name", 0, fail))


def test_what_was_observed_is_as_it_was():
    """With everything that tells where it belongs."""
    assert list(observed("case", "name", 1, lambda: {"lost": 0})) == [Observation("case", "name", 1, {"lost": 0})]


def test_who_lost_prompts_in_a_case_is_not_measured_in_it_again():
    """It does not compete there. Ours is."""

    def values(name, lane):
        lane.ready()
        return {"lost": 1.0 if name != "httpx" else 0.0}

    tasks = [
        Task("case", name, repetition, partial(values, name))
        for repetition in range(2)
        for name in ("kimi_async", "httpx", "AsyncOpenAI")
    ]

    seen = [(one.contender, one.repetition) for one in in_lanes(Plan(lanes=1), tasks)]
    assert seen == [("kimi_async", 0), ("httpx", 0), ("AsyncOpenAI", 0), ("kimi_async", 1), ("httpx", 1)]


# -- files --------------------------------------------------------------------------------------------------------


def test_a_file_costs_what_it_should():
    """Prompt and answer together, exactly; no two texts are equal."""
    requests = sized([100, 5_000, 100])
    assert [request.tokens for request in requests] == [100, 5_000, 100]
    assert len({request.text for request in requests}) == 3
    with pytest.raises(ValueError, match="do not suffice"):
        sized([3])


@pytest.mark.parametrize("file", [rpm_bound, tpm_bound, mixed])
def test_files_are_the_seeds(file):
    """The same again, and another one for another seed."""
    assert file(LIMITS, 40, seed=1) == file(LIMITS, 40, seed=1) != file(LIMITS, 40, seed=2)


def test_a_tenth_of_a_tpm_bound_file_is_large():
    """Eight percent of TPM each."""
    sizes = [request.tokens for request in tpm_bound(LIMITS, 80, seed=1)]
    assert sizes.count(2_400) == 8
    assert max(size for size in sizes if size != 2_400) <= 900


@pytest.mark.parametrize(
    ("bound", "waits"), [("RPM", {"rpm"}), ("TPM", {"tpm"}), ("concurrency", set()), ("mixed", {"rpm", "tpm"})]
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_a_case_names_is_what_binds(bound, waits, seed):
    """In the ideal schedule, beside slots; and it takes two minutes or a bit more."""
    case = Case(bound=bound)
    requests = case.file(seed)
    departures = makespan.ideal([request.tokens for request in requests], case.limits, latency=case.latency)
    found = {departure.waited_for for departure in departures} - {None, "concurrency"}
    assert found == waits
    assert 2.0 <= case.ideal(requests) / case.limits.minute < 2.2
    assert case.fluid(requests) <= case.ideal(requests)


def test_the_short_file_takes_one_minute_and_a_bit():
    """For ``check``."""
    assert 1.0 <= SHORT.ideal(SHORT.file(1)) / SHORT.limits.minute < 1.1


# -- makespan -----------------------------------------------------------------------------------------------------


def test_all_combinations_are_48_and_each_condition_is_varied_on_its_own():
    """Names are rows of a table, so no two are equal."""
    assert len({str(case) for case in ALL}) == len(ALL) == 48
    assert set(ONE_BY_ONE) < set(ALL)
    assert [str(case) for case in ONE_BY_ONE] == [
        "sliding, mixed, 0 ms",
        "fixed, mixed, 0 ms",
        "bucket, mixed, 0 ms",
        "gcra, mixed, 0 ms",
        "sliding, RPM, 0 ms",
        "sliding, TPM, 0 ms",
        "sliding, concurrency, 0 ms",
        "sliding, mixed, 200 ms",
    ]


def test_jitter_is_that_of_a_real_minute():
    """200 ms of 60 s are 20 ms of 6 s; slots are held for half of it longer on average."""
    case = Case(jitter=200)
    assert case.delay == pytest.approx(0.02)
    assert case.held == pytest.approx(0.21)
    assert (REAL.delay, REAL.latency, REAL.limits.minute) == (0.0, 2.0, 60.0)
    settings = case.settings(7)
    assert (settings.network_jitter, settings.policy, settings.seed) == (case.delay, "sliding", 7)


def test_a_makespan_is_compared_with_three_schedules():
    """The policy's own ideal depends on where the edge was: here 2 s after the beginning."""
    case = Case(policy="fixed", bound="RPM")
    requests = case.file(1)
    figures = makespan.values(case, requests, tried(24.4, begin=4.0))
    assert figures["ratio"] == figures["fluid_ratio"] == pytest.approx(24.4 / 12.2)
    assert figures["own_ratio"] == pytest.approx(24.4 / 8.2)
    assert (figures["refused"], figures["lost"], figures["most"]) == (7, 0, 1.5)


def test_who_loses_prompts_has_no_makespan():
    """In no scenario."""
    found = tried(1.0, lost=1)
    case = Case()
    for figures in (
        makespan.values(case, case.file(1), found),
        guide.values(found, 1.0),
        limits.values(found, 1.0, []),
        faults.values(found, 1.0),
    ):
        assert figures["lost"] == 1
        assert not any(name.endswith("ratio") for name in figures)


def test_kimi_async_alone_is_measured_in_the_other_combinations_once():
    """40 cases by itself in a common run, none in a full or a quick one."""
    assert len(makespan._ours_only(Plan())) == 48 - len(ONE_BY_ONE)
    assert makespan._ours_only(Plan(full=True)) == makespan._ours_only(Plan(quick=True)) == []
    assert makespan._cases(Plan(quick=True)) == ()
    assert makespan._cases(Plan(full=True)) == ALL


def test_contenders_take_turns_and_real_minutes_begin_first():
    """Two repetitions, cases of one contender side by side; the short file, which is for ``check``, is ours alone."""
    tasks = list(makespan._tasks(Plan(contenders=frozenset({"kimi_async", "httpx", "LiteLLM Router"}), lanes=5)))
    assert [(str(task.case), task.name, task.long) for task in tasks[:2]] == [
        ("sliding, mixed, 0 ms, a real minute", "kimi_async", True),
        ("sliding, mixed, 0 ms, a real minute", "LiteLLM Router", True),
    ]
    turns = [task.name for task in tasks[2:18]]
    assert turns == ["kimi_async"] * 4 + ["httpx"] * 4 + ["kimi_async"] * 4 + ["httpx"] * 4
    assert [task.case for task in tasks[2:6] + tasks[10:14]] == list(ONE_BY_ONE)
    assert all(task.kin == task.name for task in tasks)
    assert [(task.name, task.repetition) for task in tasks if task.case == SHORT] == [
        ("kimi_async", 0),
        ("kimi_async", 1),
    ]
    (quick,) = makespan._tasks(Plan(quick=True, repetitions=1))
    assert (quick.case, quick.name) == (SHORT, "kimi_async")


def test_every_case_has_its_parameters():
    """Those of the ideal among them."""
    cases = makespan.parameters(EVERYBODY)["cases"]
    assert set(cases) == {str(case) for case in (*ALL, SHORT)}
    assert all(figures["ideal"] + 1e-9 >= figures["fluid_bound"] > 0 for figures in cases.values())
    assert cases["sliding, RPM, 0 ms"]["requests"] == BINDINGS["RPM"].count


# -- the others ---------------------------------------------------------------------------------------------------


def test_a_large_request_waits_a_minute_in_the_ideal():
    """And no small one behind it leaves before it."""
    requests = fairness.file()
    departures = fairness.ideal([request.tokens for request in requests], fairness.LIMITS, latency=fairness.LATENCY)
    assert requests[fairness.BEFORE].tokens == fairness.LARGE
    minute = fairness.LIMITS.minute + fairness.LATENCY  # that of the thirtieth, which had to wait for a slot
    assert departures[fairness.BEFORE].at == pytest.approx(minute)
    assert fairness.best(requests) == pytest.approx(minute + fairness.LATENCY)


def test_waits_are_in_minutes_and_relative_to_small_ones():
    """Of those that were answered."""
    requests = sized([fairness.SMALL, fairness.LARGE, fairness.SMALL])
    outcomes = [Outcome(True, 1.0, 4.0), Outcome(True, 1.0, 13.0), Outcome(False, 1.0, 2.0)]
    assert fairness.values(requests, outcomes) == {"wait": 2.0, "relative": 4.0, "unserved": 0, "lost": 1}


def test_a_large_request_that_is_never_served_has_no_wait():
    """In a file and among loops."""
    requests = sized([fairness.SMALL, fairness.LARGE])
    outcomes = [Outcome(True, 1.0, 4.0), Outcome(False, 1.0, 13.0)]
    assert fairness.values(requests, outcomes) == {"unserved": 1, "lost": 1}
    assert fairness.loop_values([], [1.0]) == {"unserved": 1, "lost": 0}
    assert fairness.loop_values([6.0], [3.0]) == {"wait": 1.0, "relative": 2.0, "unserved": 0, "lost": 0}


def test_the_guides_file_is_bound_by_requests():
    """Eight at 3 RPM: two minutes, and the last two one after the other."""
    assert guide.best(guide.file(1)) == pytest.approx(2 * 6.0 + 2 * guide.LATENCY)


def test_what_another_client_is_refused_is_not_held_against_the_contender():
    """7 refusals, 2 of them the other client's, one of these a moment later; meanwhile it sent 4."""
    others = [(8, False), (10, False), (10.5, True), (11, False), (12, False), (12.5, True), (13.5, True)]
    figures = limits.values(tried(2.0, begin=10.0), 1.0, [limits.Sent(at, refused=refused) for at, refused in others])
    assert figures == {"ratio": 2.0, "refused": 5, "foreign_refused": 0.25, "lost": 0}


def test_the_ideal_beside_another_client_is_that_of_what_it_leaves():
    """Of 60 RPM 40 are left: 105 requests take three minutes' starts, told the truth or not."""
    by_name = {case.name: case.ideal(case.file(1)) for case in limits.CASES}
    assert by_name["another client takes a third"] == pytest.approx(12.2)
    assert by_name["told half the limits"] == pytest.approx(6.2)
    assert by_name["told twice the limits"] == pytest.approx(12.2)


def test_faults_are_enough_to_be_counted():
    """2 % of the file, in two minutes and a bit; settings that the mock takes."""
    requests = faults.file(1)
    assert len(requests) * 0.02 == 13
    assert 2.0 < faults.best(requests) / faults.BUSY.minute < 2.2
    for case in faults.CASES.values():
        assert MockSettings.from_json(MockSettings(faults=case).to_json()).faults == case


@pytest.mark.parametrize("scenario", [makespan, fairness, guide, limits, faults])
def test_every_figure_that_is_measured_has_a_title(scenario):
    """And all parameters are plain data."""
    titles = {figure.name for figure in scenario.SCENARIO.figures}
    measured = {
        makespan: lambda: makespan.values(Case(), Case().file(1), tried(1.0)),
        fairness: lambda: fairness.loop_values([6.0], [3.0]),
        guide: lambda: guide.values(tried(1.0), 1.0),
        limits: lambda: limits.values(tried(1.0), 1.0, [limits.Sent(0.5, refused=True)]),
        faults: lambda: faults.values(tried(1.0), 1.0),
    }[scenario]()
    assert set(measured) == titles
    assert all(math.isfinite(value) for value in measured.values())
    assert isinstance(scenario.parameters(Plan()), dict)
