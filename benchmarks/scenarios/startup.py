"""How long a fresh process takes until it has imported a client, and until it has its first answer."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from benchmarks.contenders.contract import API_KEY, MODEL
from benchmarks.crowd import halves, pinned
from benchmarks.processes import environment, gateway
from benchmarks.results import Figure, Observation, Plan, Remark, Scenario
from benchmarks.trial import observed
from kimi_async.mock import MockSettings

PROMPT = "用一句话介绍月亮。"
MAX_TOKENS = 16

_KIMI = f"""
from kimi_async import AsyncKimi, RateLimits

async def first(base_url, key):
    limits = RateLimits(concurrency=50, rpm=200, tpm=128_000)
    async with AsyncKimi(api_key=key, base_url=base_url, model={MODEL!r}, limits=limits) as kimi:
        assert await kimi.ask({PROMPT!r}, max_tokens={MAX_TOKENS})
"""

_HTTPX = f"""
import httpx

async def first(base_url, key):
    body = {{"model": {MODEL!r}, "messages": [{{"role": "user", "content": {PROMPT!r}}}], "max_tokens": {MAX_TOKENS}}}
    async with httpx.AsyncClient(base_url=base_url, headers={{"Authorization": f"Bearer {{key}}"}}) as client:
        response = await client.post("/chat/completions", json=body)
        assert response.json()["choices"][0]["message"]["content"]
"""

_OPENAI = f"""
from openai import AsyncOpenAI

async def first(base_url, key):
    async with AsyncOpenAI(api_key=key, base_url=base_url) as client:
        messages = [{{"role": "user", "content": {PROMPT!r}}}]
        completion = await client.chat.completions.create(
            model={MODEL!r}, messages=messages, max_tokens={MAX_TOKENS}
        )
        assert completion.choices[0].message.content
"""

_BEGIN = """
import asyncio, sys, time
began = time.perf_counter(), time.process_time()
"""

_END = """
imported = time.perf_counter(), time.process_time()
asyncio.run(first(*sys.argv[1:]))
answered = time.perf_counter(), time.process_time()
print(*(1000 * (there - here) for there, here in [*zip(imported, began), *zip(answered, began)]))
"""

PROGRAMS = {"kimi_async": _KIMI, "httpx": _HTTPX, "AsyncOpenAI": _OPENAI}
"""A program of each."""

RUNS, QUICK_RUNS = 5, 3
"""Programs that are started one after the other; the fastest counts."""

SCENARIO = Scenario(
    name="startup",
    title="Import, and the first answer of a fresh process",
    about=f"""\
Milliseconds, on the clock and of CPU, that a program takes to import its client, and until it has the first answer and
has closed the client, import included; Python and asyncio run already. Modules come from the cache of bytecode and
from the system's cache of files: each program runs {RUNS} times, and the fastest counts. `kimi_async` loads its
vocabulary for counting tokens before its first request; nobody else counts.""",
    figures=(
        Figure("import", "Import, ms", 0, guarded=True),
        Figure("import_cpu", "Import, CPU ms", 0),
        Figure("answer", "First answer, import included, ms", 0, guarded=True),
        Figure("answer_cpu", "First answer, import included, CPU ms", 0),
    ),
    remarks=(
        Remark(
            "*",
            "*",
            "httpx alone has no typed answers, whose modules take most of the import, and no vocabulary, which takes "
            "most of the rest. Loading it while the connection is opened would change that.",
        ),
    ),
)


def parameters(plan: Plan) -> dict[str, object]:
    """The programs."""
    return {"runs": _runs(plan), "programs": PROGRAMS}


def measure(plan: Plan) -> Iterator[Observation]:
    """Contenders in turns."""
    names = [name for name in PROGRAMS if name in plan.contenders]
    with gateway(MockSettings(latency=0.0, latency_jitter=0.0)) as base_url:
        for repetition in range(plan.repetitions):
            for name in names:
                yield from observed("a fresh process", name, repetition, partial(_values, name, base_url, _runs(plan)))


def _runs(plan: Plan) -> int:
    return QUICK_RUNS if plan.quick else RUNS


def _values(name: str, base_url: str, count: int) -> dict[str, float]:
    runs = [_run(PROGRAMS[name], base_url) for _ in range(count)]
    figures = ("import", "import_cpu", "answer", "answer_cpu")
    return {figure: min(run[place] for run in runs) for place, figure in enumerate(figures)}


def _run(program: str, base_url: str) -> list[float]:
    clients, _ = halves()
    with pinned(clients):
        done = subprocess.run(
            [sys.executable, "-c", _BEGIN + program + _END, base_url, API_KEY],
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"a program failed:\n{done.stderr}")
    return [float(word) for word in done.stdout.split()]
