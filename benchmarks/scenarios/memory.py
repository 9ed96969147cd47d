"""The peak memory of a process that has so many prompts answered."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.contenders.contract import API_KEY, MODEL
from benchmarks.crowd import halves, pinned
from benchmarks.processes import environment, gateway
from benchmarks.resident import IN_FLIGHT, MAX_TOKENS, UNLIMITED, WARM_UP, prompt
from benchmarks.results import LOST, OURS, Figure, Observation, Plan, Remark, Scenario
from benchmarks.trial import observed
from kimi_async.mock import MockSettings

SIZES = (1_000, 10_000, 100_000, 1_000_000)

COMMAND = "kimi_async, batch command"
GATHERING = "kimi_async, gathered"

GATHERED = 10_000
"""The most prompts that are gathered at once, or go from file to file: more take minutes, and say the same."""

SCENARIO = Scenario(
    name="memory",
    title="Memory for 1,000 to 1,000,000 prompts",
    about=f"""\
The most memory that a process had resident while it had short prompts answered, {IN_FLIGHT} in flight, by a gateway
that answers at once. *kimi_async* takes them from a generator (`async for result in kimi.batch(requests)`) and keeps
no answer; its *batch command* goes from file to file. All others are gathered, as one writes it: a task for each
prompt, none of whose answers is kept; *{GATHERING}* does the same. *Grown* is the peak less what the process had after
its first {WARM_UP} answers; of the command it is not known. Each size is measured once; above {GATHERED:,}
the generator is alone. `kimi_async` has its vocabulary for counting tokens in memory; nobody else counts.""",
    figures=(
        Figure("peak", "Peak memory, MB", 1, guarded=True),
        Figure("grown", "Grown since the first answers, MB", 1),
        Figure("rate", "Prompts a second", 0, "more"),
        Figure(LOST, "Prompts lost", 0),
    ),
    remarks=(
        Remark(
            "peak",
            "*",
            "Most of it is the vocabulary, which counts prompts before they are sent and does not grow; a vocabulary "
            "mapped from a file would change it. Whoever gathers grows with the number of prompts.",
        ),
        Remark(
            "grown",
            "*",
            "kimi_async keeps an entry of each request of the last minute, since that is what the limits are about, "
            "and the counts of recent texts. Both have a bound: they do not grow with the number of prompts.",
        ),
        Remark(
            "rate",
            "*",
            "What is written by hand counts no tokens, keeps no limits and checks no answer; with so few prompts, the "
            "first connections are a part of it as well.",
        ),
    ),
    plot="lines",
)


def parameters(plan: Plan) -> dict[str, object]:
    """Sizes."""
    return {"in_flight": IN_FLIGHT, "sizes": _sizes(plan), "gathered": GATHERED, "max_tokens": MAX_TOKENS}


def measure(plan: Plan) -> Iterator[Observation]:
    """Size by size, contenders in turns. Memory hardly varies, so once, unless little is measured."""
    for repetition in range(plan.repetitions if plan.quick else 1):
        for count in _sizes(plan):
            for name in _names(plan, count):
                yield from observed(f"{count:,} prompts", name, repetition, partial(_values, name, count))


def _sizes(plan: Plan) -> tuple[int, ...]:
    return SIZES[:1] if plan.quick else SIZES


def _names(plan: Plan, count: int) -> list[str]:
    variants = [] if plan.quick else [COMMAND, GATHERING]
    others: list[str] = [name for name in ("AsyncOpenAI", "httpx") if name in plan.contenders]
    return [OURS, *(variants + others if count <= GATHERED else [])]


def _values(name: str, count: int) -> dict[str, float]:
    """The figures of one contender, at a gateway of its own."""
    settings = MockSettings(latency=0.0, latency_jitter=0.0, completion_ratio=1.0, completion_spread=0.0)
    with gateway(settings) as base_url, TemporaryDirectory(prefix="kimi") as folder:
        if name == COMMAND:
            found = _command(base_url, count, Path(folder))
        else:
            how = ["batch"] if name == OURS else ["gather"]
            gathering = [] if name == OURS else [OURS if name == GATHERING else name]
            found = _resident(Path(folder), *how, base_url, str(count), *gathering)
    values = {"peak": found["peak"] / 1e6, "rate": count / found["seconds"], LOST: count - found["answered"]}
    return values | ({"grown": max(found["peak"] - found["before"], 0) / 1e6} if "before" in found else {})


def _command(base_url: str, count: int, folder: Path) -> dict[str, float]:
    """What the batch command had resident; its seconds include its start."""
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": prompt(number)}) + "\n" for number in range(count))
    files = f"batch {folder}/prompts.jsonl -o {folder}/answers.jsonl --quiet"
    request = f"--base-url {base_url} --model {MODEL} --max-tokens {MAX_TOKENS}"
    limits = f"--concurrency {IN_FLIGHT} --rpm {UNLIMITED} --tpm {UNLIMITED}"
    found = _resident(folder, "command", *f"{files} {request} {limits}".split())
    with (folder / "answers.jsonl").open(encoding="utf-8") as answers:
        return found | {"answered": sum(json.loads(line)["error"] is None for line in answers)}


def _resident(folder: Path, *arguments: str) -> dict[str, float]:
    """What such a process leaves; see `benchmarks.resident`.

    Raises:
        RuntimeError: it failed; what it printed is on standard error.
    """
    result = folder / "result.json"
    with pinned(halves()[0]):
        command = [sys.executable, "-m", "benchmarks.resident", str(result), *arguments]
        done = subprocess.run(command, env={**environment(), "MOONSHOT_API_KEY": API_KEY}, check=False)
    if done.returncode:
        raise RuntimeError(f"benchmarks.resident {' '.join(arguments)} ended with status {done.returncode}")
    found: dict[str, float] = json.loads(result.read_text(encoding="ascii"))
    return found
