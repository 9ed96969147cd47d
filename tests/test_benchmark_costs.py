"""The arithmetic of the scenarios about costs, and processes that begin together."""

import asyncio
import time

import pytest

from benchmarks.crowd import crowd
from benchmarks.results import LOST, OURS, Plan
from benchmarks.scenarios import SCENARIOS, admission, ledgers, memory, overhead, startup, streaming, waiters
from benchmarks.scenarios.ledgers import most_within
from benchmarks.scenarios.overhead import BODIES, LEAST_REQUESTS, LEAST_SECONDS, MOST_SECONDS, Case, Meter

COSTS = (admission, ledgers, memory, overhead, startup, streaming, waiters)


@pytest.mark.parametrize(
    ("times", "span", "most"),
    [
        ([0.0], 1.0, 1),
        ([0.0, 0.999, 1.0], 1.0, 2),  # a window is open at its beginning: what is a whole span old has left it
        ([0.0, 0.4, 0.8, 1.2, 1.6], 1.0, 3),
        ([0.0, 5.0, 5.0, 5.0, 9.0], 1.0, 3),
    ],
)
def test_the_most_that_any_window_holds(times, span, most):
    """Whatever its phase."""
    assert most_within(times, span) == most


def test_a_fan_out_takes_a_minute_and_what_the_slots_take():
    """400 at once through 40 slots of 50 ms, and, as the first of them leave the minute, 400 more."""
    assert ledgers._ideal() == pytest.approx(6.5)


class Clock:
    """Stands for the module ``time``: each answer takes a second of CPU and ``step`` seconds."""

    def __init__(self, step):
        self.step = step
        self.answers = 0

    def perf_counter(self):
        return self.step * self.answers

    def process_time(self):
        return float(self.answers)


def metered(monkeypatch, *, wave, step):
    """A meter that is done, and the answers that it took."""
    clock = Clock(step)
    monkeypatch.setattr(overhead, "time", clock)
    meter = Meter(wave)
    while not meter.done:
        clock.answers += 1
        meter.answered()
    return meter, clock.answers


@pytest.mark.parametrize("wave", [1, 100, 400])
def test_a_meter_counts_whole_waves_after_a_warm_up(monkeypatch, wave):
    """Each answer takes a second of CPU, and so it says."""
    meter, answers = metered(monkeypatch, wave=wave, step=0.01)
    assert answers - meter.requests == max(wave, 2 * BODIES)
    assert meter.requests % wave == 0
    assert meter.requests >= LEAST_REQUESTS
    assert meter.seconds >= LEAST_SECONDS
    assert meter.cpu == meter.requests


def test_a_meter_has_no_endless_patience(monkeypatch):
    """At a second an answer, 100 for the warm-up and 200 more would take five minutes."""
    meter, answers = metered(monkeypatch, wave=1, step=1.0)
    assert answers <= 1.5 * MOST_SECONDS + 4
    assert meter.requests > MOST_SECONDS


def test_cases_are_told_apart():
    """By their names, which the results are found by."""
    for cases in (overhead.ALL, overhead.ONE_BY_ONE, ledgers.CASES):
        assert len(set(map(str, cases))) == len(cases)
    assert set(overhead.ONE_BY_ONE) <= set(overhead.ALL)
    assert str(Case(1_000, 1_000, "uvloop")) == "1,000 in flight, 1 s, uvloop"
    assert str(ledgers.CASES[-1]) == "Valkey, 8 processes, 50 tasks each, full log"


def test_what_check_measures_is_in_the_committed_results():
    """The short cases are among the others, under the same names."""
    assert overhead.SHORT in overhead.ONE_BY_ONE
    assert memory._sizes(Plan(quick=True)) == memory._sizes(Plan())[:1]
    assert set(memory._names(Plan(quick=True), 1_000)) <= set(memory._names(Plan(), 1_000))


def test_nobody_gathers_a_hundred_thousand():
    """What takes memory for each prompt is measured where that says enough."""
    assert memory._names(Plan(contenders=frozenset({OURS, "httpx"})), 100_000) == [OURS, memory.COMMAND]


@pytest.mark.real_time
def test_figures_of_a_reservation_have_titles():
    """Those that are measured without any server too."""
    values = ledgers.rates(ledgers.CASES[0], seconds=0.01)
    assert values.keys() <= {figure.name for figure in ledgers.SCENARIO.figures}
    assert values["rate"] > 0


@pytest.mark.parametrize("scenario", COSTS)
def test_a_scenario_is_found_by_its_name(scenario):
    """And says what it was measured with."""
    assert SCENARIOS[scenario.SCENARIO.name] is scenario
    assert scenario.parameters(Plan())
    names = [figure.name for figure in scenario.SCENARIO.figures]
    assert len(set(names)) == len(names)
    assert not any(figure.guarded for figure in scenario.SCENARIO.figures if figure.name == LOST)


# -- a crowd ------------------------------------------------------------------------------------------------------


async def began_after(member, seconds):
    """The last one comes late; when each was let in."""
    if member.place == member.count - 1:
        await asyncio.sleep(seconds)
    await member.gate()
    began = time.monotonic()
    await member.gate()
    return began


async def failed(member):
    """The second one never comes to its gate."""
    if member.place == 1:
        raise ValueError("not ready")
    await member.gate()


@pytest.mark.real_time
def test_nobody_of_a_crowd_begins_before_all_are_ready():
    """Whoever watches has looked before anybody goes, and again after all are done."""
    began, before, after = crowd(2, set(), time.monotonic, began_after, 0.2)
    assert before <= min(began)
    assert after >= max(began)


@pytest.mark.real_time
def test_one_who_fails_keeps_nobody_waiting(capfd):
    """The crowd is an error, and what went wrong is told."""
    with pytest.raises(RuntimeError, match="a process of"):
        crowd(2, set(), time.monotonic, failed)
    assert "not ready" in capfd.readouterr().err
