"""How long a file of requests takes where RPM and TPM both bind, compared with the ideal schedule."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import httpx

from kimi_async import RateLimits
from kimi_async.mock import MockSettings, Policy

from .contenders import CONTENDERS
from .processes import gateway, measured
from .prompts import Prompt, mixed_sizes
from .report import Report, Table, spread
from .schedule import ideal, makespan

LIMITS = RateLimits(concurrency=8, rpm=60, tpm=15_600, minute=6.0)
LATENCY = 0.02
COMPARED = ("kimi_async", "httpx", "AsyncOpenAI", "AsyncOpenAI + aiolimiter")


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one contender.

    Attributes:
        seconds: from the first submission to the last answer.
        answered: requests.
        refused: what the gateway refused, by budget.
        most_requests: admitted in any sliding minute.
        most_tokens: likewise.
    """

    contender: str
    seconds: float
    answered: int
    refused: dict[str, int]
    most_requests: int
    most_tokens: int

    @property
    def refusals(self) -> int:
        """Of all budgets."""
        return sum(self.refused.values())


def run(*, policy: Policy = "sliding", rounds: int = 2, seed: int = 1) -> Report:
    """Measure all contenders, in turns.

    Args:
        policy: how the gateway counts.
        rounds: how often.
        seed: of the requests' sizes.
    """
    prompts = mixed_sizes(LIMITS, seed=seed)
    departures = ideal([prompt.tokens for prompt in prompts], LIMITS, latency=LATENCY)
    best = makespan(departures, latency=LATENCY)
    samples = [_sample(name, prompts, policy) for _ in range(rounds) for name in COMPARED]
    waits = [departure.waited_for for departure in departures]
    tokens = sum(prompt.tokens for prompt in prompts)
    intent = (
        f"{len(prompts)} requests, {tokens:,} tokens; the gateway counts with policy {policy}. "
        f"The ideal is {best:.2f} s; in it {waits.count('rpm')} requests wait for RPM, {waits.count('tpm')} for TPM."
    )
    return Report(
        name="makespan" if policy == "sliding" else f"makespan-{policy}",
        parameters={
            "policy": policy,
            "rounds": rounds,
            "seed": seed,
            "limits": asdict(LIMITS),
            "latency": LATENCY,
            "requests": len(prompts),
            "tokens": tokens,
            "ideal": best,
            "ideal_waits": {budget: waits.count(budget) for budget in ("concurrency", "rpm", "tpm")},
        },
        summary=[intent, _table(samples, best, len(prompts))],
        samples=[{**asdict(sample), "ratio": sample.seconds / best} for sample in samples],
    )


def _sample(name: str, prompts: list[Prompt], policy: Policy) -> Sample:
    settings = MockSettings(limits=LIMITS, policy=policy, latency=LATENCY, latency_jitter=0.0)
    with gateway(settings) as base_url:
        seconds, answered = measured(_submit_all, name, base_url, prompts)
        stats = httpx.get(f"{base_url}/stats", trust_env=False).json()
    return Sample(name, seconds, answered, stats["refused"], stats["max_window_requests"], stats["max_window_tokens"])


async def _submit_all(name: str, base_url: str, prompts: list[Prompt]) -> tuple[float, int]:
    ask = await CONTENDERS[name](base_url, LIMITS)
    begin = time.perf_counter()
    answers = await asyncio.gather(*(ask(prompt) for prompt in prompts))
    return time.perf_counter() - begin, sum(answers)


def _table(samples: Sequence[Sample], best: float, requests: int) -> Table:
    rows = []
    for name in COMPARED:
        own = [sample for sample in samples if sample.contender == name]
        seconds = [sample.seconds for sample in own]
        answered = [sample.answered for sample in own]
        ratio = f"{statistics.median(seconds) / best:.3f}" if min(answered) == requests else "not all answered"
        rows.append(
            [
                name,
                spread(seconds, 2),
                ratio,
                spread([sample.refusals for sample in own], 0),
                spread(answered, 0),
                spread([sample.most_requests for sample in own], 0),
                spread([sample.most_tokens for sample in own], 0),
            ]
        )
    header = (
        "contender",
        "seconds",
        "times ideal",
        "refusals",
        "answered",
        "most requests a minute",
        "most tokens a minute",
    )
    return Table(header, rows)
