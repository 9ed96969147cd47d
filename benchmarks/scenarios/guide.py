"""The account that Kimi's own guide to the API describes: one slot, three requests a minute."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from random import Random

from benchmarks.contenders.contract import Request
from benchmarks.lanes import Lane
from benchmarks.prompts import sized
from benchmarks.results import LOST, Figure, Observation, Plan, Remark, Scenario
from benchmarks.schedule import ideal, makespan
from benchmarks.trial import Task, Trial, entrants, in_lanes, patience, trial
from kimi_async import RateLimits
from kimi_async.mock import MockSettings

LIMITS = RateLimits(concurrency=1, rpm=3, tpm=32_000, minute=6.0)
LATENCY = 0.3
REQUESTS = 8
SIZES = (1_000, 7_500)
"""Tokens: three requests of a minute are within TPM, in whatever order."""

SCENARIO = Scenario(
    name="guide",
    title="The account of Kimi's guide: concurrency 1, 3 RPM, 32,000 TPM",
    about=f"""\
{REQUESTS} requests of {SIZES[0]:,} to {SIZES[1]:,} tokens, submitted at once to an account with one slot, 3 RPM and
32,000 TPM. A minute takes {LIMITS.minute:g} s here, an answer {LATENCY:g} s; the gateway counts an exact sliding
minute. Whoever sends a fourth request in a minute is refused, and the second that the refusal advises to wait is a
sixth of this minute where it is a sixtieth of Kimi's: retries reach ten times as far here. A contender that loses
prompts has no makespan, and is measured once. Several contenders are measured at a time, each with its own
gateway.""",
    remarks=(
        Remark(
            "ratio",
            "*",
            "kimi_async waits half a percent of a minute longer than the gateway's minute, which is what keeps it "
            "from being refused. Who tries again each second may come sooner, by luck; a shorter guard would change "
            "it.",
        ),
    ),
    figures=(
        Figure("ratio", "Makespan, times the ideal", 3, ideal=1.0),
        Figure("refused", "Attempts that the gateway refused", 0),
        Figure(LOST, f"Prompts lost of {REQUESTS}", 0),
    ),
)


def parameters(plan: Plan) -> dict[str, object]:
    """The account and the file."""
    requests = file(plan.seed)
    return {
        "limits": asdict(LIMITS),
        "latency": LATENCY,
        "lanes": plan.lanes,
        "tokens": [request.tokens for request in requests],
        "ideal": best(requests),
    }


def measure(plan: Plan) -> Iterator[Observation]:
    """One case, contenders in turns."""
    requests = file(plan.seed)
    least = best(requests)
    settings = MockSettings(limits=LIMITS, latency=LATENCY, latency_jitter=0.0)

    def send(name: str, lane: Lane) -> dict[str, float]:
        return values(trial(name, requests, settings, patience=patience(least), lane=lane), least)

    return in_lanes(
        plan,
        [
            Task("3 RPM", name, number, partial(send, name))
            for number in range(plan.repetitions)
            for name in entrants(plan, minute=LIMITS.minute, repetition=number)
        ],
    )


def file(seed: int) -> list[Request]:
    """The requests."""
    dice = Random(seed)
    return sized(dice.randint(*SIZES) for _ in range(REQUESTS))


def best(requests: list[Request]) -> float:
    """Seconds of the ideal schedule."""
    return makespan(ideal([request.tokens for request in requests], LIMITS, latency=LATENCY), latency=LATENCY)


def values(found: Trial, least: float) -> dict[str, float]:
    """The figures of one trial."""
    figures: dict[str, float] = {"refused": found.refused, LOST: found.lost}
    return figures if found.lost else {"ratio": found.seconds / least} | figures
