"""The arithmetic of the scenarios about costs, and processes that begin together."""

import asyncio
import gc
import time
from dataclasses import replace

import pytest

from benchmarks.comparison import Comparison
from benchmarks.crowd import crowd
from benchmarks.processes import gateway, measured
from benchmarks.prompts import two_kilobytes
from benchmarks.results import LOST, OURS, Observation, Plan, Result
from benchmarks.scenarios import SCENARIOS, admission, ledgers, memory, overhead, startup, streaming, waiters
from benchmarks.scenarios.ledgers import most_within
from benchmarks.scenarios.overhead import LEAST_REQUESTS, LEAST_SECONDS, MOST_SECONDS, WARM_UP, Case, Meter
from kimi_async.mock import MockSettings

from .observed import WHERE

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


def test_a_fan_out_takes_its_minutes_and_what_the_slots_take():
    """400 at once through 40 slots of 50 ms, and, whenever the first of them leave the minute, 400 more."""
    minutes = ledgers.RESERVATIONS // 400 - 1
    assert ledgers._ideal() == pytest.approx(minutes * 6.0 + 0.5)


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
    assert answers - meter.requests == max(wave, WARM_UP)
    assert meter.requests % wave == 0
    assert meter.requests >= LEAST_REQUESTS
    assert meter.seconds >= LEAST_SECONDS
    assert meter.cpu == meter.requests


def test_a_meter_has_no_endless_patience(monkeypatch):
    """At a second an answer, 100 for the warm-up and 200 more would take five minutes."""
    meter, answers = metered(monkeypatch, wave=1, step=1.0)
    assert answers <= 1.5 * MOST_SECONDS + 4
    assert meter.requests > MOST_SECONDS


def test_every_prompt_is_another_one_of_the_same_length():
    """So that no count of its tokens is remembered; 2 KB with what is around it."""
    texts = [two_kilobytes(number).text for number in (0, 1, 99_999)]
    assert len(set(texts)) == 3
    assert {len(text.encode()) for text in texts} == {9 + 24 * (42 + 31)}


def test_cases_are_told_apart():
    """By their names, which the results are found by."""
    for cases in (overhead.ALL, overhead.ONE_BY_ONE, ledgers.CASES):
        assert len(set(map(str, cases))) == len(cases)
    assert set(overhead.ONE_BY_ONE) <= set(overhead.ALL)
    assert str(Case(1_000, 1_000, "uvloop")) == "1,000 in flight, 1 s, uvloop"
    assert str(Case(100, repeated=True)) == "100 in flight, 0 ms, repeated prompts"
    assert str(ledgers.CASES[-1]) == "Valkey, 8 processes, 50 tasks each, full log"


@pytest.mark.parametrize(("repeated", "different"), [(False, 301), (True, overhead.REPEATED)])
async def test_a_closed_loop_sends_other_prompts_or_a_few_again_and_again(monkeypatch, repeated, different):
    """100 to warm up and 200 that count, by ten workers; the tenth of the last wave ends it."""
    texts = []

    async def ask(request):
        texts.append(request.text)
        await asyncio.sleep(0)
        return True

    async def connect(name, account):
        assert account.concurrency == 10
        return ask

    monkeypatch.setattr(overhead, "connect", connect)
    monkeypatch.setattr(overhead, "LEAST_SECONDS", 0.0)
    values = await overhead._closed_loop("kimi_async", "", Case(10, repeated=repeated))
    assert values.keys() == {"cpu", "rate"}
    assert len(set(texts[:different])) == different
    assert len(texts) >= 300


def test_what_check_measures_is_in_the_committed_results():
    """The short cases are among the others, under the same names."""
    assert overhead.SHORT in overhead.ONE_BY_ONE
    assert memory._sizes(Plan(quick=True)) == memory._sizes(Plan())[:1]
    assert set(memory._names(Plan(quick=True), 1_000)) <= set(memory._names(Plan(), 1_000))


@pytest.mark.parametrize(
    ("scenario", "cases"),
    [
        (overhead, [str(case) for case in overhead.ALL]),
        (streaming, [pace.name for pace in streaming.PACES]),
        (memory, ["1,000 prompts"]),
        (admission, ["acquire", "block"]),
        (startup, ["a fresh process"]),
    ],
)
def test_every_row_that_another_may_win_has_a_remark(scenario, cases):
    """Whichever figure it is, but prompts lost, which none should be; one, so that it is the right one."""
    figures = [figure for figure in scenario.SCENARIO.figures if figure.better and figure.name != LOST]
    values = {figure.name: (2.0 if figure.better == "less" else 1.0) for figure in figures}
    theirs = {figure.name: (1.0 if figure.better == "less" else 2.0) for figure in figures}
    observed = [
        Observation(case, name, 0, dict(numbers))
        for case in cases
        for name, numbers in ((OURS, values), ("httpx", theirs))
    ]
    rows = list(Comparison(Result(scenario.SCENARIO, WHERE, {}, observed)).rows())
    assert len(rows) == len(cases) * len(figures)
    assert all(row.standing == "better" and len(row.remarks) == 1 for row in rows)


def test_nobody_gathers_a_hundred_thousand():
    """What takes memory for each prompt is measured where that says enough."""
    everybody = Plan(contenders=frozenset({OURS, "httpx"}))
    assert memory._names(everybody, 100_000) == [OURS]
    assert memory._names(everybody, 10_000) == [OURS, memory.COMMAND, memory.GATHERING, "httpx"]


def test_who_is_compared_in_a_check_is_compared_in_the_whole_run():
    """With AsyncOpenAI, in every scenario that has no ideal."""
    plan = Plan(contenders=frozenset({OURS, "AsyncOpenAI", "httpx"}))
    check = replace(plan, quick=True, contenders=frozenset({OURS, "AsyncOpenAI"}))
    assert memory._names(check, 1_000) == [OURS, "AsyncOpenAI"]
    assert set(overhead.COMPARED) >= check.contenders
    assert {reader.of for reader in streaming.READERS.values()} >= check.contenders
    assert startup.PROGRAMS.keys() >= check.contenders
    assert startup._runs(check) < startup._runs(plan)


@pytest.mark.parametrize("line", waiters._LINES)
async def test_whoever_waits_in_a_line_is_admitted_or_cancelled(line):
    """20 of them; the opposite would be an error. All figures have titles."""
    titles = {figure.name for figure in waiters.SCENARIO.figures}
    assert (await waiters._line(line, 20)).keys() <= titles
    assert await waiters._cancel(line, 20, seed=1) > 0
    gc.unfreeze()


async def test_an_admission_beside_waiters_lets_nobody_of_them_in(monkeypatch):
    """They wait for something else."""
    monkeypatch.setattr(waiters, "BESIDE", 3)
    assert await waiters._beside(5) > 0
    gc.unfreeze()


async def test_admissions_of_all_kinds_are_measured(monkeypatch):
    """Ours and aiolimiter's; the best of the rounds, in seconds."""
    monkeypatch.setattr(admission, "ADMISSIONS", 20)
    best = await admission._admissions(2)
    assert {name for case, name in best if case != "try_acquire"} == {OURS, admission.THEIRS}
    assert all(0 < seconds < 0.1 for seconds in best.values())


@pytest.mark.real_time
@pytest.mark.parametrize("name", ["kimi_async, stream() and its texts", "httpx, httpx-sse, json"])
def test_a_reader_gets_every_chunk(name):
    """Of each of two streams; one who misses any fails."""
    pace = replace(streaming.PACES[0], streams=2)
    with gateway(streaming._settings(pace)) as base_url:
        values = measured(streaming._values, name, base_url, pace)
    assert values.keys() == {"cpu", "rate"}


@pytest.mark.real_time
def test_a_program_gets_an_answer_after_its_import():
    """Ours; all figures have titles."""
    with gateway(MockSettings(latency=0.0)) as base_url:
        values = startup._values(OURS, base_url, 1)
    assert list(values) == [figure.name for figure in startup.SCENARIO.figures]
    assert values["import"] < values["answer"]


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
