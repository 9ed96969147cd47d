"""Many runs of ``kimi-async batch`` on one account, some of them killed: what a strict gateway in between sees."""

import json
import multiprocessing
import os
import time
from dataclasses import replace
from urllib.request import urlopen

import pytest

from kimi_async.cli import main
from kimi_async.ledger import open_ledger
from kimi_async.limits import RateLimits
from kimi_async.mock import MockSettings, spawn

from .valkey import new_valkey  # noqa: F401 - a fixture

pytestmark = pytest.mark.real_time

LIMITS = RateLimits(concurrency=100, rpm=40, minute=2.0)
"""Slots for all, though the dead keep theirs until their lease ends."""
GATEWAY = replace(LIMITS, minute=1.8)
"""A busy machine delays a request on its way by more than a scaled guard, which is 10 ms; that is not what we test."""
PROMPTS = {"a": 45, "b": 45, "c": 12, "d": 12}
"""None of the first two, which are killed, can end within the first minute."""
IDS = [f"{name}-{n}" for name, prompts in PROMPTS.items() for n in range(prompts)]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])  # half of what a process takes is its imports
COST = 40
"""Tokens of a request at most."""
ACCOUNT = "of them all"


def batch(*options):
    """``kimi-async batch``; its own process ends with it."""
    os.environ["MOONSHOT_API_KEY"] = "sk-test"
    main(["batch", *map(str, options)])


class Run:
    """One ``kimi-async batch``, in a process of its own, which may be killed and started again."""

    def __init__(self, name, directory, base_url, ledger):
        self.output = directory / f"{name}.out"
        source = directory / f"{name}.jsonl"
        prompts = [{"custom_id": f"{name}-{n}", "prompt": f"What is {n} + {n}?"} for n in range(PROMPTS[name])]
        source.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        limits = ["--concurrency", LIMITS.concurrency, "--rpm", LIMITS.rpm, "--minute", LIMITS.minute]
        where = ["--base-url", base_url, "--ledger", ledger, "--account", ACCOUNT]
        how = ["--model", "kimi-k2.6", "--max-tokens", 10, "--quiet"]
        self._options = [source, "-o", self.output, *limits, *where, *how]
        self.start()

    def start(self):
        """Again, it goes on where it was."""
        self.process = SERVER.Process(target=batch, args=self._options)
        self.process.start()

    def kill(self):
        """In the middle, as ``kill -9`` does."""
        self.process.kill()
        self.process.join()
        assert self.process.exitcode < 0, "it had ended before"

    def end(self):
        """Its exit status."""
        self.process.join(40)
        return self.process.exitcode

    def lines(self):
        """What it wrote; the last one may be half a line yet."""
        written = self.output.read_text().splitlines(keepends=True) if self.output.exists() else []
        return [json.loads(line) for line in written if line.endswith("\n")]


@pytest.fixture
def runs(tmp_path):
    """Makes them and starts them; none survives the test."""
    made = []

    def make(base_url, ledger):
        made.extend(Run(name, tmp_path, base_url, ledger) for name in PROMPTS)
        return made

    yield make
    for run in made:
        run.process.kill()
        run.process.join()


def kill_and_start_again(victims):
    """Each as soon as it has so many answers."""
    while victims:
        time.sleep(0.01)  # noqa: TID251 - there is no event loop here
        for run, answers in tuple(victims.items()):
            if len(run.lines()) >= answers or not run.process.is_alive():
                run.kill()
                run.start()
                del victims[run]


def statistics(base_url):
    """What the gateway saw."""
    with urlopen(f"{base_url}/stats") as answer:
        return json.load(answer)


@pytest.fixture(params=["sqlite", "valkey"])
def ledger_url(request, tmp_path):
    """Where the account is kept."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite3"
    return request.getfixturevalue("new_valkey")().url


async def test_two_of_four_are_killed_and_go_on(ledger_url, runs):
    """The gateway refuses nothing, every prompt is answered once, and the books know every token that it charged.

    At most they know some more: a request that was let in, and whose process was killed before it said that it left.
    """
    with spawn(MockSettings(limits=GATEWAY, latency=0.05)) as base_url:
        all_runs = runs(base_url, ledger_url)
        kill_and_start_again({all_runs[0]: 3, all_runs[1]: 12})
        assert [run.end() for run in all_runs] == [0] * 4
        seen = statistics(base_url)
    lines = [line for run in all_runs for line in run.lines()]
    assert sorted(line["custom_id"] for line in lines if line["error"] is None) == sorted(IDS)
    assert set(seen["refused"].values()) == {0}
    assert seen["max_window_requests"] <= LIMITS.rpm
    books = await open_ledger(ledger_url, account=ACCOUNT)
    never_told = sum(process.pending for process in books.view().participants)
    too_many = books.usage().tpd.used - seen["charged_tokens"]
    await books.aclose()
    assert 0 <= too_many <= never_told * COST
