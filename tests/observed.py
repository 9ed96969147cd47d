"""Made-up results: what the report, the plots and the guard are tested with."""

from benchmarks.results import Figure, Observation, Provenance, Result, Scenario

WHERE = Provenance(
    date="2026-11-23T09:00:00+00:00",
    command="python -m benchmarks run makespan",
    machine="a machine",
    seed=1,
    versions={"kimi_async": "0.1.0"},
)
SECONDS = Figure("seconds", "Seconds", 2, guarded=True)
RATE = Figure("rate", "Requests a second", 0, "more", guarded=True)
LOST = Figure("lost", "Prompts lost", 0)


def result(values, *, figures=(SECONDS, RATE, LOST), **scenario):
    """Of ``{case: {contender: [a dict of values, or of seconds, for each repetition]}}``."""
    settings = {"name": "makespan", "title": "How long a file takes", "about": "As it says.", "figures": figures}
    observations = [
        Observation(case, contender, repetition, dict(one) if isinstance(one, dict) else {"seconds": one})
        for case, contenders in values.items()
        for contender, repetitions in contenders.items()
        for repetition, one in enumerate(repetitions)
    ]
    return Result(Scenario(**{**settings, **scenario}), WHERE, {"rpm": 60}, observations)
