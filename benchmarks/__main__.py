"""The command: ``python -m benchmarks makespan|overhead|streaming|limiter|all``."""

from cyclopts import App

from kimi_async.mock import Policy

from . import limiter as limiter_scenario
from . import makespan as makespan_scenario
from . import overhead as overhead_scenario
from . import streaming as streaming_scenario

app = App(name="python -m benchmarks", help="Measure kimi_async beside what people use instead.", version_flags=[])


@app.command
def makespan(*, policy: Policy = "sliding", rounds: int = 2, seed: int = 1) -> None:
    """How long a file of requests takes, compared with the ideal schedule: 80 s a round.

    Args:
        policy: how the gateway counts requests and tokens.
        rounds: how often each contender is measured.
        seed: of the requests' sizes.
    """
    makespan_scenario.run(policy=policy, rounds=rounds, seed=seed).publish()


@app.command
def overhead(*, rounds: int = 3) -> None:
    """What a request costs the client's processor.

    Args:
        rounds: how often each contender is measured, unless it is very slow.
    """
    overhead_scenario.run(rounds=rounds).publish()


@app.command
def streaming(*, rounds: int = 5) -> None:
    """What a chunk of a streamed answer costs the client's processor.

    Args:
        rounds: how often each contender is measured.
    """
    streaming_scenario.run(rounds=rounds).publish()


@app.command
def limiter(*, rounds: int = 60, waiters: int = 100_000, seed: int = 1) -> None:
    """What an admission costs, and what many waiters cost.

    Args:
        rounds: of admissions; the best counts.
        waiters: that stand in line.
        seed: of the order in which they are cancelled.
    """
    limiter_scenario.run(rounds=rounds, waiters=waiters, seed=seed).publish()


@app.command(name="all")
def everything() -> None:
    """All scenarios, in about nine minutes."""
    limiter()
    overhead()
    streaming()
    makespan()


if __name__ == "__main__":
    app()
