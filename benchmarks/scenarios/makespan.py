"""How long a file of requests takes, by how the gateway counts, by what binds, and by how much the network varies."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise, product
from math import ceil

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.contract import Request
from benchmarks.lanes import Lane
from benchmarks.prompts import mixed, rpm_bound, tpm_bound
from benchmarks.results import LOST, OURS, Figure, Observation, Plan, Remark, Scenario
from benchmarks.schedule import fluid_bound, ideal, makespan
from benchmarks.trial import LATENCY, LIMITS, Task, Trial, entrants, in_lanes, patience, trial
from kimi_async import RateLimits
from kimi_async.mock import MockSettings, Policy


@dataclass(frozen=True, slots=True)
class Binding:
    """What holds a file up.

    Attributes:
        file: makes it, for limits, a count and a seed.
        count: requests: enough for two minutes and a bit.
        limits: of the account.
        latency: seconds that a request holds its slot.
    """

    file: Callable[..., list[Request]]
    count: int
    limits: RateLimits = LIMITS
    latency: float = LATENCY


BINDINGS = {
    "RPM": Binding(rpm_bound, 126),
    "TPM": Binding(tpm_bound, 82),
    "concurrency": Binding(rpm_bound, 96, replace(LIMITS, concurrency=8), 1.0),
    "mixed": Binding(mixed, 122),
    "mixed, short": Binding(mixed, 63),
}
"""The short file takes one minute and a bit; ``check`` measures it."""

POLICIES: tuple[Policy, ...] = ("sliding", "fixed", "bucket", "gcra")
BOUNDS = ("RPM", "TPM", "concurrency", "mixed")
JITTERS = (0, 50, 200)
"""Milliseconds by which a real minute's network delays a request, at most."""


@dataclass(frozen=True, slots=True)
class Case:
    """The conditions of one file.

    Attributes:
        policy: how the gateway counts.
        bound: of `BINDINGS`.
        jitter: of `JITTERS`.
        minute: seconds that the gateway's minute takes.
    """

    policy: Policy = "sliding"
    bound: str = "mixed"
    jitter: int = 0
    minute: float = LIMITS.minute

    def __str__(self) -> str:
        real = ", a real minute" if self.minute == 60.0 else ""
        return f"{self.policy}, {self.bound}, {self.jitter} ms{real}"

    @property
    def limits(self) -> RateLimits:
        """Of the account."""
        return replace(BINDINGS[self.bound].limits, minute=self.minute)

    @property
    def delay(self) -> float:
        """Seconds by which the network delays a request, at most."""
        return self.jitter / 1000 * self.minute / 60

    @property
    def latency(self) -> float:
        """Seconds; as short a share of a longer minute."""
        return BINDINGS[self.bound].latency * self.minute / LIMITS.minute

    @property
    def held(self) -> float:
        """Seconds that a slot is taken, on average."""
        return self.latency + self.delay / 2

    def settings(self, seed: int) -> MockSettings:
        """Of the gateway."""
        return MockSettings(
            limits=self.limits,
            policy=self.policy,
            latency=self.latency,
            latency_jitter=0.0,
            network_jitter=self.delay,
            seed=seed,
        )

    def file(self, seed: int) -> list[Request]:
        """The requests."""
        binding = BINDINGS[self.bound]
        return binding.file(self.limits, binding.count, seed=seed)

    def ideal(self, requests: list[Request], policy: Policy = "sliding", begin: float = 0.0) -> float:
        """Seconds of the ideal schedule."""
        tokens = [request.tokens for request in requests]
        departures = ideal(tokens, self.limits, latency=self.held, policy=policy, begin=begin)
        return makespan(departures, latency=self.held)

    def fluid(self, requests: list[Request]) -> float:
        """Seconds below which nobody can be, in whatever order."""
        return fluid_bound([request.tokens for request in requests], self.limits, latency=self.held)


SHORT = Case(bound="mixed, short")
REAL = Case(minute=60.0)
ONE_BY_ONE = (
    *(Case(policy=policy) for policy in POLICIES),
    *(Case(bound=bound) for bound in BOUNDS if bound != "mixed"),
    Case(jitter=JITTERS[-1]),
)
"""Each condition varied on its own, for everybody; of jitters only the largest, which hardly matters to others."""

ALL = tuple(Case(*conditions) for conditions in product(POLICIES, BOUNDS, JITTERS))

SCENARIO = Scenario(
    name="makespan",
    title="How long a file of requests takes, and what the gateway refuses meanwhile",
    about=f"""\
All requests of a file are submitted at once to an account with concurrency {LIMITS.concurrency}, {LIMITS.rpm} RPM and
{LIMITS.tpm:,} TPM; a minute takes {LIMITS.minute:g} s here, and an answer {LATENCY:g} s. A case names how the gateway
counts (`sliding`, `fixed`, `bucket`, `gcra`: the table in `kimi_async/mock/policies.py`), what binds, and by how much
the network delays requests, each by something else. *RPM*: {BINDINGS["RPM"].count} short requests. *TPM*:
{BINDINGS["TPM"].count}, a tenth of them large, 8 % of TPM each. *concurrency*: {BINDINGS["concurrency"].count} short
ones, 8 slots, answers after {BINDINGS["concurrency"].latency:g} s. *mixed*: {BINDINGS["mixed"].count}, short ones and
then larger ones, so that concurrency binds first, then RPM, then TPM. The delays of up to 50 and 200 ms are those of
a real minute, and scaled with it. Tokens are known exactly to all contenders but those that take none from outside. A
file begins where the same part of the `fixed` minute is over for everybody, in each repetition another one.

The *ideal* is the earliest end that any client which serves first come, first served can reach under an exact sliding
minute; nobody can know how Kimi counts, and what no sliding minute catches passes every policy but `gcra`. *The
policy's own ideal* knows it: a client may use the edges of `fixed` and the burst of `bucket`, which let up to twice
the limit into some minute, so that the sliding ideal can be beaten there, at the price of refusals wherever the guess
is wrong. `gcra` refuses bursts, and starts with the first two requests; its own ideal is of one who knows that. The
*fluid bound* is below every schedule under a sliding minute, in whatever order ([`schedule.py`](schedule.py) has the
definitions and proofs).

A contender that loses prompts has no makespan, and is measured once. What a request costs the client's processor is
not scaled with the minute either: the half millisecond that each of them takes to be made is ten times as large a part
of this minute. Waits that a gateway advises are whole seconds: a larger part of this minute than of a real one, so
retries reach further here. Who is not done after twice the ideal and ten seconds is stopped. Several files are sent at
a time, each by its own process to its own gateway: each takes a few percent of a core, and those beside it are the
same contender's, so that nobody pays for what another costs. But a real minute goes on beside all others, and is
measured once. The short file is that of `check`. Where `kimi_async` stands alone, conditions are combined, and
measured once: the promise is no refusal, and at most 1.02, in every one of these rows but those of `gcra`.""",
    figures=(
        Figure("ratio", "Makespan, times the ideal of the sliding minute", 3, guarded=True, ideal=1.0, promise=1.02),
        Figure("refused", "Attempts that the gateway refused", 0, promise=0.0),
        Figure(LOST, "Prompts lost", 0),
        Figure("most", "Most requests or tokens in any sliding minute, times the limit", 2, better=None),
        Figure("own_ratio", "Makespan, times the ideal of the gateway's own policy", 3),
        Figure("fluid_ratio", "Makespan, times the fluid bound", 3),
    ),
    remarks=(
        Remark(
            "*ratio",
            "sliding, [!c]*",
            "kimi_async keeps what it sent in its books for half a percent of a minute longer than the gateway does, "
            "and spreads what a window lets out: that is what keeps it from being refused. Who tries again until it "
            "fits may come sooner, by luck; a shorter guard would change it.",
        ),
        Remark(
            "*ratio",
            "sliding, concurrency*",
            "A dozen rounds, in each of which answers are read and requests made before the slots are full again: "
            "what a request costs the client's processor is in all of them, and kimi_async counts its tokens besides. "
            "Less work a request would change it.",
        ),
        Remark(
            "*ratio",
            "fixed*",
            "Others pour a second limit into the account right behind the edge. kimi_async keeps every sliding "
            "minute within the limit, since nothing tells a client where edges are, or that there are any; knowing "
            "the policy would change it.",
        ),
        Remark(
            "*ratio",
            "bucket*",
            "A bucket that starts full lets nearly twice the limit into the first minute. kimi_async keeps every "
            "sliding minute within the limit, since nothing tells a client that it faces a bucket; knowing that would "
            "change it.",
        ),
        Remark(
            "*ratio",
            "gcra*",
            "What leaves at an even pace cannot catch up what it waited for, and kimi_async keeps tokens within every "
            "sliding minute where the gateway's bucket of them starts full.",
        ),
        Remark(
            "refused",
            "gcra*",
            "Refusals are how a client learns that bursts are refused, and how much the network pushes requests "
            'together. `pace="even"` knows the first from the beginning.',
        ),
    ),
)


def parameters(plan: Plan) -> dict[str, object]:
    """Of all cases that are measured."""
    return {
        "limits": asdict(LIMITS),
        "latency": LATENCY,
        "lanes": plan.lanes,
        "cases": {
            str(case): _parameters(case, plan.seed)
            for case in dict.fromkeys([*_cases(plan), SHORT, *_ours_only(plan)])
        },
    }


def measure(plan: Plan) -> Iterator[Observation]:
    """Case by case, contenders in turns; then, once, ``kimi_async`` alone in all other combinations."""
    return in_lanes(plan, _tasks(plan))


def _tasks(plan: Plan) -> Iterator[Task]:
    """In the order in which they begin; the real minutes first, since they go on beside the others."""
    for name in _real_minute_only(plan):
        yield _task(REAL, name, 0, plan)
    for repetition in range(plan.repetitions):
        for cases in _together(_cases(plan), plan.lanes):
            for name in entrants(plan, minute=LIMITS.minute):
                yield from (_task(case, name, repetition, plan) for case in cases)
        if OURS in plan.contenders:
            yield _task(SHORT, OURS, repetition, plan)
        if repetition == 0:
            for case in _ours_only(plan):
                yield _task(case, OURS, repetition, plan)


def _together(cases: tuple[Case, ...], lanes: int) -> list[tuple[Case, ...]]:
    """Cases that a contender has at a time, beside itself: as many as there are lanes, in groups of about one size."""
    groups = ceil(len(cases) / lanes)
    bounds = [len(cases) * group // groups for group in range(groups + 1)] if groups else []
    return [cases[begin:end] for begin, end in pairwise(bounds)]


def _cases(plan: Plan) -> tuple[Case, ...]:
    return () if plan.quick else ALL if plan.full else ONE_BY_ONE


def _ours_only(plan: Plan) -> list[Case]:
    if plan.quick or plan.full or OURS not in plan.contenders:
        return []
    return [case for case in ALL if case not in ONE_BY_ONE]


def _real_minute_only(plan: Plan) -> list[str]:
    """Contenders that cannot be told of another minute, and ``kimi_async`` beside them."""
    others = [name for name in entrants(plan, minute=60.0) if CONTENDERS[name].real_minute_only]
    return [OURS, *others] if others and not plan.quick else []


def _task(case: Case, name: str, repetition: int, plan: Plan) -> Task:
    values = partial(_values, case, name, repetition, plan)
    return Task(case, name, repetition, values, long=case.minute == REAL.minute, kin=name)


def _values(case: Case, name: str, repetition: int, plan: Plan, lane: Lane) -> dict[str, float]:
    settings, requests = case.settings(plan.seed + repetition), case.file(plan.seed)
    least = case.ideal(requests)
    if case.policy == "fixed":  # where its edges are decides much
        lane.begin_at((repetition + 0.5) / plan.repetitions, case.minute)
    return values(case, requests, trial(name, requests, settings, patience=patience(least), lane=lane))


def values(case: Case, requests: list[Request], found: Trial) -> dict[str, float]:
    """The figures of one trial."""
    figures: dict[str, float] = {"refused": found.refused, LOST: found.lost, "most": found.most}
    if found.lost:
        return figures
    own = case.ideal(requests, case.policy, found.begin)
    ratios = {"ratio": case.ideal(requests), "own_ratio": own, "fluid_ratio": case.fluid(requests)}
    return {name: found.seconds / least for name, least in ratios.items()} | figures


def _parameters(case: Case, seed: int) -> dict[str, object]:
    requests = case.file(seed)
    return {
        "concurrency": case.limits.concurrency,
        "latency": case.latency,
        "delay": case.delay,
        "requests": len(requests),
        "tokens": sum(request.tokens for request in requests),
        "ideal": case.ideal(requests),
        "fluid_bound": case.fluid(requests),
    }
