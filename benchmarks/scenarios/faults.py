"""What is lost, and what is paid twice, where connections break and servers fail."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial

from benchmarks.contenders.contract import Request
from benchmarks.lanes import Lane
from benchmarks.prompts import rpm_bound
from benchmarks.results import LOST, Figure, Observation, Plan, Remark, Scenario
from benchmarks.schedule import ideal, makespan
from benchmarks.trial import LATENCY, LIMITS, Task, Trial, entrants, in_lanes, patience, trial
from kimi_async.mock import MockSettings
from kimi_async.mock.faults import Faults

BUSY = replace(LIMITS, rpm=5 * (LIMITS.rpm or 0), tpm=5 * (LIMITS.tpm or 0))
"""Five times the makespan's limits, for so many requests that a few percent of them are not a matter of luck."""

COUNT = 650
CASES = {
    "2 % dropped": Faults(drop=0.01, cut=0.01),
    "2 % server errors": Faults(error_5xx=0.02),
    "bursts of overload": Faults(overload_every=4.0, overload_lasts=0.4),
}

SCENARIO = Scenario(
    name="faults",
    title="Dropped connections, server errors and overload",
    about=f"""\
{COUNT:,} short requests, submitted at once to an account with concurrency {BUSY.concurrency}, {BUSY.rpm} RPM and a
minute of {BUSY.minute:g} s, answers after {LATENCY:g} s. *Dropped*: the connection is closed where the answer should
come, or, for half of them, in the answer's middle. *Server errors*: an HTML page with status 500, 503 or 504.
*Overload*: for 0.4 s of every 4 s each request that is let in gets a 429 that says `engine_overloaded_error`. The
gateway charges the limits for each attempt that it lets in. What fails depends on a request's body and on the
repetition's number, so each contender has its own failures, equally likely. The *ideal* is that of a gateway without
faults. An answer that was cut is billed, and who sends its request again pays twice: the alternative is to lose the
prompt. Waits of half a second and more between two attempts are not scaled with the minute. Several contenders are
measured at a time, each with its own gateway.""",
    figures=(
        Figure(LOST, f"Prompts lost of {COUNT:,}", 0),
        Figure("ratio", "Makespan, times the ideal without faults", 3, ideal=1.0),
        Figure("billed_again", "Answers billed a second time", 0, better=None),
        Figure("refused", "Attempts that the gateway refused for the limits", 0),
    ),
    remarks=(
        Remark(
            "ratio",
            "2 %*",
            "kimi_async waits a random time after a failure, longer after each in a row, so as not to add to an "
            "overload; whoever tries again at once is done sooner where failures are independent, as they are here.",
        ),
        Remark(
            "ratio",
            "bursts*",
            "Each request that meets an overload is charged, and kimi_async tries it again by itself, within half a "
            "second at first, which may be in the same burst. Whoever pauses everything after one refusal (the "
            "cookbook's processor: a quarter of a minute) spends less of the limits on it. A pause for the whole "
            "account would change it.",
        ),
        Remark(
            "refused",
            "*",
            "An attempt whose connection broke may have been charged or not; kimi_async keeps it in its books, and "
            "is refused where the gateway saw it later than it was sent.",
        ),
        Remark(
            "lost",
            "*",
            "Attempts come to an end: more of them would change it, and would pay more answers twice.",
        ),
    ),
    plotted=2,
)


def parameters(plan: Plan) -> dict[str, object]:
    """The account and the faults."""
    requests = file(plan.seed)
    return {
        "limits": asdict(BUSY),
        "latency": LATENCY,
        "lanes": plan.lanes,
        "requests": len(requests),
        "ideal": best(requests),
        "cases": {name: asdict(faults) for name, faults in CASES.items()},
    }


def measure(plan: Plan) -> Iterator[Observation]:
    """Case by case, contenders in turns."""
    return in_lanes(plan, _tasks(plan))


def _tasks(plan: Plan) -> Iterator[Task]:
    requests = file(plan.seed)
    for repetition in range(plan.repetitions):
        for case, faults in CASES.items():
            settings = MockSettings(
                limits=BUSY, latency=LATENCY, latency_jitter=0.0, faults=faults, seed=plan.seed + repetition
            )
            for name in entrants(plan, minute=BUSY.minute, repetition=repetition):
                yield Task(case, name, repetition, partial(_values, name, requests, settings))


def file(seed: int) -> list[Request]:
    """The requests."""
    return rpm_bound(LIMITS, COUNT, seed=seed)


def best(requests: list[Request]) -> float:
    """Seconds of the ideal schedule where nothing fails."""
    return makespan(ideal([request.tokens for request in requests], BUSY, latency=LATENCY), latency=LATENCY)


def _values(name: str, requests: list[Request], settings: MockSettings, lane: Lane) -> dict[str, float]:
    least = best(requests)
    return values(trial(name, requests, settings, patience=patience(least), lane=lane), least)


def values(found: Trial, least: float) -> dict[str, float]:
    """The figures of one trial."""
    figures: dict[str, float] = {
        LOST: found.lost,
        "billed_again": found.stats["billed_again"],
        "refused": found.refused,
    }
    return figures if found.lost else {"ratio": found.seconds / least} | figures
