"""The README runs: every Python block, the timetable, the shape of the quick start."""

import ast
import re
from pathlib import Path

import pytest

from kimi_async.budgets import Budgets, Denial
from kimi_async.limits import Cost, RateLimits
from kimi_async.mock import MockSettings, running

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ROW = re.compile(r"\| (\d\d):(\d\d\.\d) \| (\d) \| (sent|waits ([\d.]+) s) \|")


@pytest.mark.real_time
@pytest.mark.parametrize("block", BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
async def test_each_python_block_runs(block, monkeypatch, tmp_path):
    """Against a mock gateway, with ``await`` at the top level; files go elsewhere."""
    monkeypatch.chdir(tmp_path)
    async with running(MockSettings(limits=RateLimits(concurrency=100), latency=0.01)) as base_url:
        monkeypatch.setenv("MOONSHOT_BASE_URL", base_url)
        monkeypatch.setenv("MOONSHOT_API_KEY", "sk-test")
        code = compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        names = {"__name__": "readme"}
        if (coroutine := eval(code, names)) is not None:
            await coroutine


def test_the_timetable_is_what_the_rule_does():
    """Row by row: what is in the log, and whether the request is sent or waits for how long."""
    books, rows = Budgets(RateLimits(rpm=3)), ROW.findall(README)
    assert len(rows) == 6
    for minutes, seconds, logged, outcome, wait in rows:
        now = int(minutes) * 60 + float(seconds)
        verdict = books.reserve(now, Cost(1))
        assert books.usage(now).rpm.used - (not isinstance(verdict, Denial)) == int(logged), now
        if outcome == "sent":
            books.sent(now, verdict)
        else:
            assert verdict.wait == pytest.approx(float(wait))


def test_the_quick_start_is_two_commands():
    """Each one line, both make or reuse .venv; the second is the tests'."""
    section = README.split("## Quick start")[1].split("\n## ")[0]
    commands = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert [command.count("\n") for command in commands] == [1, 1]
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)
    assert commands[1].rstrip().endswith("pytest")


def test_the_readme_is_short_and_shows_code_early():
    """Under 300 lines, code before line 30."""
    lines = README.splitlines()
    assert len(lines) < 300
    assert lines.index("```python") < 30
