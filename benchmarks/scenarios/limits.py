"""What happens when the client is told wrong limits, or is not alone on its account."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import NamedTuple

import httpx

from benchmarks.contenders.contract import API_KEY, MODEL, TEMPERATURE, Request
from benchmarks.crowd import halves, pinned
from benchmarks.lanes import Lane
from benchmarks.processes import gateway
from benchmarks.prompts import mixed, sized
from benchmarks.results import LOST, Figure, Observation, Plan, Remark, Scenario
from benchmarks.schedule import ideal, makespan
from benchmarks.trial import LATENCY, LIMITS, Task, Trial, at, entrants, in_lanes, patience
from kimi_async import RateLimits
from kimi_async.mock import MockSettings

RPM, TPM = LIMITS.rpm or 0, LIMITS.tpm or 0


@dataclass(frozen=True, slots=True)
class Case:
    """What a contender is told, and what is true.

    Attributes:
        told: the limits.
        count: requests of the file.
        foreign: requests a minute that somebody else spends.
    """

    name: str
    told: RateLimits
    count: int
    foreign: int = 0

    def file(self, seed: int) -> list[Request]:
        """The requests."""
        return mixed(LIMITS, self.count, seed=seed)

    def ideal(self, requests: list[Request]) -> float:
        """Seconds of the ideal schedule under the limits that are left."""
        left = replace(LIMITS, rpm=RPM - self.foreign, tpm=TPM - self.foreign * FOREIGN.tokens)
        return makespan(ideal([request.tokens for request in requests], left, latency=LATENCY), latency=LATENCY)


FOREIGN = sized([60])[0]
"""What the other client on the account sends."""

CASES = (
    Case("told twice the limits", replace(LIMITS, rpm=2 * RPM, tpm=2 * TPM, concurrency=80), 125),
    Case("told half the limits", replace(LIMITS, rpm=RPM // 2, tpm=TPM // 2, concurrency=20), 63),
    Case("another client takes a third", LIMITS, 105, RPM // 3),
)

SCENARIO = Scenario(
    name="limits",
    title="Wrong limits, and another client on the same account",
    about=f"""\
The account of the makespan, its sliding gateway, and files of mixed requests that take one or two minutes and a bit.
A contender is told twice the true limits, all three of them, or half of them; or the true ones, while another client
sends {RPM // 3} requests a minute on the same account, evenly, and never tries one again that was refused. The
*ideal* knows the truth: the account's limits, less what the other client takes. Told half the limits, twice the ideal
is what a client that keeps to its word can reach; faster is who does not. Several contenders are measured at a time,
each with its own gateway.""",
    figures=(
        Figure("ratio", "Makespan, times the ideal of what is really there", 3, ideal=1.0),
        Figure("refused", "Attempts that the gateway refused", 0),
        Figure(LOST, "Prompts lost", 0),
        Figure("foreign_refused", "Of the other client's requests meanwhile, the share refused", 2),
    ),
    remarks=(
        Remark(
            "foreign_refused",
            "*",
            "A client that is alone in its books fills the account before the first refusal tells it otherwise, and "
            "somebody else's request may be the next. A ledger that both clients share would change it.",
        ),
        Remark(
            "*",
            "another client*",
            "kimi_async learns from a refusal what others have spent, and leaves room for it; a minute later it "
            "learns anew, and what is under way by then is refused as well. A ledger that both clients share would "
            "change it.",
        ),
        Remark(
            "*",
            "told twice*",
            "kimi_async believes what it is told, sends as much at once, and learns the truth from refusals, the only "
            "place where Kimi tells limits. Who sends one after the other from the beginning meets fewer; to be told "
            "the truth changes it.",
        ),
        Remark(
            "ratio",
            "told half*",
            "kimi_async keeps the limits that it is told in every minute: lower ones are how a user leaves room for "
            "somebody else. Who keeps no limit gains where it is too low, and so does whoever keeps a bucket that "
            "starts full: it lets twice of what it is told into the first minute, and this file has one and a bit.",
        ),
    ),
)


def parameters(plan: Plan) -> dict[str, object]:
    """The account, and what is told about it."""
    return {
        "limits": asdict(LIMITS),
        "latency": LATENCY,
        "lanes": plan.lanes,
        "cases": {
            case.name: {
                "told": asdict(case.told),
                "foreign": case.foreign,
                "requests": case.count,
                "ideal": case.ideal(case.file(plan.seed)),
            }
            for case in CASES
        },
    }


def measure(plan: Plan) -> Iterator[Observation]:
    """Case by case, contenders in turns."""
    return in_lanes(plan, _tasks(plan))


def _tasks(plan: Plan) -> Iterator[Task]:
    for repetition in range(plan.repetitions):
        for case in CASES:
            requests = case.file(plan.seed)
            for name in entrants(plan, minute=LIMITS.minute, repetition=repetition):
                yield Task(case.name, name, repetition, partial(_values, case, name, requests))


def _values(case: Case, name: str, requests: list[Request], lane: Lane) -> dict[str, float]:
    least = case.ideal(requests)
    settings = MockSettings(limits=LIMITS, latency=LATENCY, latency_jitter=0.0)
    foreign: list[Sent] = []
    with gateway(settings) as base_url:
        other = _other_client(base_url, case.foreign, foreign) if case.foreign else nullcontext()
        found = at(
            base_url, name, requests, settings, patience=patience(least), told=case.told, beside=other, lane=lane
        )
    return values(found, least, foreign)


class Sent(NamedTuple):
    """A request of the other client: when it was sent, on the gateway's clock, and whether it was refused."""

    at: float
    refused: bool


def values(found: Trial, least: float, foreign: Sequence[Sent]) -> dict[str, float]:
    """The figures of one trial.

    Args:
        found: on the contender's side, and on the gateway's.
        least: seconds of the ideal.
        foreign: what the other client sent, before, beside and after it.
    """
    foreign_refused = sum(one.refused for one in foreign if one.at < found.looked)
    figures: dict[str, float] = {"refused": max(found.refused - foreign_refused, 0), LOST: found.lost}
    if beside := [one.refused for one in foreign if 0 <= one.at - found.begin <= found.seconds]:
        figures["foreign_refused"] = sum(beside) / len(beside)
    return figures if found.lost else {"ratio": found.seconds / least} | figures


@contextmanager
def _other_client(base_url: str, rpm: int, sent: list[Sent]) -> Iterator[None]:
    """A process that sends ``rpm`` requests a minute, evenly, from a minute before the block to its end."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    stop = context.Event()
    process = context.Process(target=_spend, args=(base_url, LIMITS.minute / rpm, stop, sender))
    with pinned(halves()[1]):
        process.start()
    sender.close()
    try:
        process.join(LIMITS.minute)
        yield
    finally:
        stop.set()
        with suppress(EOFError):  # it failed, and said so on standard error
            sent += receiver.recv()
        process.join()


def _spend(base_url: str, interval: float, stop: Event, sender: "Connection[list[Sent], object]") -> None:
    sender.send(asyncio.run(_send_evenly(base_url, interval, stop)))


async def _send_evenly(base_url: str, interval: float, stop: Event) -> list[Sent]:
    body = {
        "model": MODEL,
        "messages": FOREIGN.messages,
        "max_tokens": FOREIGN.max_tokens,
        "temperature": TEMPERATURE,
    }
    headers = {"Authorization": f"Bearer {API_KEY}"}
    sent: list[Sent] = []
    async with (
        httpx.AsyncClient(base_url=base_url, headers=headers, trust_env=False) as client,
        asyncio.TaskGroup() as tg,
    ):

        async def send() -> None:
            at = time.monotonic()
            response = await client.post("/chat/completions", json=body)
            sent.append(Sent(at, refused=response.status_code == 429))

        while not stop.is_set():
            tg.create_task(send())
            await asyncio.sleep(interval)
    return sent
