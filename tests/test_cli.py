"""The command line, as a user runs it: real processes against a mock in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest

from kimi_async.limits import RateLimits
from kimi_async.mock import MockSettings, spawn

pytestmark = pytest.mark.real_time

LIMITS = RateLimits(concurrency=8, rpm=1000, tpm=1_000_000, minute=1.0)
OPTIONS = ["--concurrency", "8", "--rpm", "1000", "--tpm", "1000000", "--minute", "1"]


@pytest.fixture(scope="module")
def gateway():
    """A gateway that answers after 20 ms."""
    with spawn(MockSettings(limits=LIMITS, latency=0.02)) as url:
        yield url


def environment(url, **more):
    """A clean one, with a key."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MOONSHOT", "KIMI"))}
    return kept | {"MOONSHOT_API_KEY": "sk-test", "MOONSHOT_BASE_URL": url, "COLUMNS": "200"} | more


def kimi(url, *arguments, stdin="", options=OPTIONS, **more):
    """Run to the end."""
    command = [sys.executable, "-m", "kimi_async", *map(str, arguments), *options]
    return subprocess.run(
        command, env=environment(url, **more), input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def started(url, *arguments):
    """Run beside the test; killed at the end if need be."""
    command = [sys.executable, "-m", "kimi_async", *map(str, arguments), *OPTIONS]
    with subprocess.Popen(command, env=environment(url), stdout=-1, stderr=-1, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def prompts(tmp_path, number):
    """A file of so many prompts."""
    file = tmp_path / "in.jsonl"
    file.write_text("".join(f'{{"custom_id": "p-{n}", "prompt": "question {n}"}}\n' for n in range(number)))
    return file


def results(path):
    """The output's lines, by name; every name once."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def wait_for_lines(path, number):
    """Until the output has so many."""
    while not path.exists() or path.read_bytes().count(b"\n") < number:
        os.sched_yield()


def test_a_file_of_prompts_is_answered(gateway, tmp_path):
    """All of them; the summary says so, and the exit status."""
    out = tmp_path / "out.jsonl"
    run = kimi(gateway, "batch", prompts(tmp_path, 50), "-o", out, "--model", "kimi-k2.6", "--max-tokens", 20)
    assert run.returncode == 0, run.stderr
    assert results(out).keys() == {f"p-{n}" for n in range(50)}
    assert all(line["response"]["body"]["choices"][0]["message"]["content"] for line in results(out).values())
    assert "answered  50 of 50 in 0:0" in run.stdout
    assert "refusals  none" in run.stdout


def test_standard_input_and_quiet(gateway, tmp_path):
    """A pipe in, nothing on the screen."""
    out = tmp_path / "out.jsonl"
    run = kimi(gateway, "batch", "-", "-o", out, "--model", "kimi-k2.6", "--quiet", stdin='"a"\n"b"\n')
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert results(out).keys() == {"line-1", "line-2"}


def test_a_malformed_line_fails_alone(gateway, tmp_path):
    """Its error is a line of the output; the others are answered; exit status 1."""
    out = tmp_path / "out.jsonl"
    run = kimi(gateway, "batch", "-", "-o", out, "--model", "kimi-k2.6", stdin='"a"\n{bad\n"c"\n')
    assert run.returncode == 1
    assert results(out)["line-2"]["error"]["message"].startswith("line 2: not JSON")
    assert "failed    invalid line 1" in run.stdout


def test_duplicate_names_are_refused_before_anything_is_sent(tmp_path):
    """No gateway is needed for that, and no output is made."""
    out = tmp_path / "out.jsonl"
    run = kimi("http://127.0.0.1:1/v1", "batch", "-", "-o", out, stdin='{"custom_id":"a","prompt":"x"}\n' * 2)
    assert run.returncode == 2
    assert "lines 1 and 2 both have custom_id 'a'" in run.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batch", "nowhere.jsonl", "-o", "out.jsonl"], "nowhere.jsonl: No such file or directory"),
        (["batch", "-", "-o", "out.jsonl", "--limits", "tier9"], "tier9"),
        (["batch", "-"], "--output"),
        (["batch", "-", "-o", "out.jsonl", "--tpd", "0"], "tpd=0: a limit is at least 1"),
        (["batch", "-", "-o", "out.jsonl", "--ledger", "postgres://:secret@host/0"], "postgres://…"),
        (["batch", "-", "-o", "out.jsonl", "--base-url", "api.moonshot.cn"], "must begin with https://"),
        (["bath"], "bath"),
    ],
)
def test_usage_errors_say_what_is_wrong(tmp_path, monkeypatch, arguments, message):
    """Exit status 2, one line, no traceback, no secret."""
    monkeypatch.chdir(tmp_path)
    run = kimi("http://127.0.0.1:1/v1", *arguments, options=[])
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert "secret" not in run.stderr


def test_without_a_key_it_says_which_variable_to_set(tmp_path):
    """And makes no output."""
    run = kimi("", "batch", "-", "-o", tmp_path / "out.jsonl", stdin='"a"', MOONSHOT_API_KEY="")
    assert (run.returncode, (tmp_path / "out.jsonl").exists()) == (2, False)
    assert "MOONSHOT_API_KEY" in run.stderr


def test_input_and_output_must_differ(gateway, tmp_path):
    """The prompts stay as they are."""
    file = prompts(tmp_path, 2)
    run = kimi(gateway, "batch", file, "-o", file)
    assert run.returncode == 2
    assert "answers need a file of their own" in run.stderr
    assert file.read_text().count("\n") == 2


def test_killed_and_run_again_every_name_is_there_once(gateway, tmp_path):
    """Kill -9 in the middle loses what was in flight; the second run does just the rest."""
    file, out = prompts(tmp_path, 400), tmp_path / "out.jsonl"
    arguments = ["batch", file, "-o", out, "--model", "kimi-k2.6", "--max-tokens", 20]
    with started(gateway, *arguments) as process:
        wait_for_lines(out, 100)
        process.send_signal(signal.SIGKILL)
    before = out.read_bytes().count(b"\n")
    assert 100 <= before < 400
    run = kimi(gateway, *arguments)
    assert run.returncode == 0, run.stderr
    assert results(out).keys() == {f"p-{n}" for n in range(400)}
    assert f"skipped   {before} answered before" in run.stdout


def test_ctrl_c_finishes_what_is_in_flight_and_says_how_to_go_on(gateway, tmp_path):
    """Exit status 130; nothing that was sent is lost."""
    file, out = prompts(tmp_path, 400), tmp_path / "out.jsonl"
    sent = httpx.get(f"{gateway}/stats").json()["admitted"]
    with started(gateway, "batch", file, "-o", out, "--model", "kimi-k2.6", "--max-tokens", 20) as process:
        wait_for_lines(out, 100)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "finishing what is in flight" in stderr
    assert "run the same command again to go on" in stderr
    assert len(results(out)) == httpx.get(f"{gateway}/stats").json()["admitted"] - sent < 400


def test_a_full_disk_stops_the_run_and_keeps_what_was_written(gateway, tmp_path):
    """Exit status 3; a file size limit stands in for the disk."""
    file, out = prompts(tmp_path, 200), tmp_path / "out.jsonl"
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY));"
        "from kimi_async.cli import main; main(sys.argv[1:])"
    )
    arguments = ["batch", str(file), "-o", str(out), "--model", "kimi-k2.6", "--max-tokens", "20", *OPTIONS]
    run = subprocess.run(
        [sys.executable, "-c", limited, *arguments],
        env=environment(gateway),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 3, run.stderr
    assert "File too large" in run.stderr
    assert "go on" in run.stderr
    assert kimi(gateway, *arguments, options=[]).returncode == 0
    assert len(results(out)) == 200


def test_an_exhausted_day_stops_the_batch_to_be_resumed(tmp_path):
    """Exit status 3, with the time until it resets; what was answered stays."""
    out = tmp_path / "out.jsonl"
    options = ["--concurrency", "2", "--tpd", "100", "--mock"]
    run = kimi(
        "", "batch", prompts(tmp_path, 20), "-o", out, "--model", "kimi-k2.6", "--max-tokens", 20, options=options
    )
    assert run.returncode == 3
    assert "the day's 100 tokens are spent" in run.stderr
    assert 0 < len(results(out)) < 20


def test_a_wrong_key_stops_at_once(tmp_path):
    """Exit status 2; the hint names both sites, and the key is not shown."""
    with spawn(MockSettings(limits=LIMITS, bad_keys=frozenset({"sk-test"}))) as url:
        run = kimi(url, "batch", "-", "-o", tmp_path / "out.jsonl", "--model", "kimi-k2.6", stdin='"a"\n')
    assert run.returncode == 2
    assert "not interchangeable" in run.stderr
    assert "sk-test" not in run.stderr + run.stdout


def test_the_mock_announces_itself_and_enforces_its_limits(tmp_path):
    """A port of its own choice, the limits given, and Ctrl-C ends it with status 0."""
    command = [sys.executable, "-m", "kimi_async", "mock", "--port", "0", "--rpm", "1", "--latency", "0"]
    with subprocess.Popen(command, stdout=-1, text=True) as process:
        try:
            url = process.stdout.readline().split()[3]
            ask = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
            key = {"Authorization": "Bearer k"}
            answers = [httpx.post(f"{url}/chat/completions", json=ask, headers=key) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 429]
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()
