"""The contenders of the benchmarks: what they are told, the processes and environments that they run in."""

import ast
import asyncio
import json
import os
import subprocess
import sys
import textwrap
from functools import cache
from importlib.metadata import PathDistribution
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from aiolimiter import AsyncLimiter
from openai import AsyncOpenAI

from benchmarks import contenders, processes, venvs
from benchmarks.contenders import CONTENDERS, Entry, admitted, openai_aiolimiter, openai_sdk
from benchmarks.contenders.contract import API_KEY, Account, Outcome, Progress, Request, ask_all
from benchmarks.lanes import Lane
from benchmarks.processes import Contest, contest, gateway
from kimi_async import RateLimits
from kimi_async.mock import Faults, MockSettings

from . import mocked

ROOT = Path(__file__).parent.parent
REQUESTS = [Request(f"Number {number}", 11, 20) for number in range(4)]
DIFFERENT = ("kimi_async", "httpx", "AsyncOpenAI + aiolimiter")
"""Contenders of this environment with nothing in common but the contract."""

ELSEWHERE = (
    "cookbook processor, as published",
    "async-batch-llm, low burst",
    "lm-deluge",
    "lm-deluge, as documented",
)
"""Contenders of other environments that are set up in more than one way."""

TIGHT = RateLimits(concurrency=4, rpm=2, tpm=10_000, minute=1.0)

HERE = [name for name, entry in CONTENDERS.items() if not entry.own_venv]


def account(base_url="http://mock/v1", **limits):
    """What a contender is told."""
    return Account(base_url=base_url, **{"concurrency": 4, "rpm": 100, "tpm": 10_000, "minute": 6.0, **limits})


# -- the contract ----------------------------------------------------------------------------------------------------


async def test_an_exception_is_an_outcome_and_not_the_end():
    """One answer, one lost request, one that the client threw at us; in the order of the requests."""
    fates = {"Number 0": True, "Number 1": False}

    async def ask(request):
        return fates[request.text]

    outcomes = await ask_all(ask, REQUESTS[:3])
    assert [outcome.answered for outcome in outcomes] == [True, False, False]
    assert [outcome.error for outcome in outcomes] == [None, "not answered", "KeyError: 'Number 2'"]


async def test_all_requests_are_under_way_at_once():
    """Nobody is answered before everybody has asked."""
    barrier = asyncio.Barrier(len(REQUESTS))

    async def ask(request):
        await barrier.wait()
        return True

    assert all(outcome.answered for outcome in await ask_all(ask, REQUESTS))


def test_what_was_never_finished_is_lost_at_the_time_of_asking():
    """A contender that is stopped half-way keeps what it has."""
    progress = Progress(2)
    progress.finished(1)
    lost, answered = progress.outcomes()
    assert (answered.answered, answered.error) == (True, None)
    assert (lost.answered, lost.error) == (False, "never finished")
    assert lost.submitted <= answered.finished <= lost.finished


# -- the list --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENDERS)
def test_an_entry_names_functions_that_are_there(name):
    """In the module's own text, since its packages may not be installed here."""
    entry = CONTENDERS[name]
    tree = ast.parse((Path(contenders.__file__).parent / f"{entry.module}.py").read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)}
    assigned = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
    assert entry.run in functions | assigned
    assert entry.connect is None or entry.connect in functions


def test_what_a_readme_says_comes_right_after_what_suits_kimi():
    """Another form of a contender follows it, in the same environment."""
    names = list(CONTENDERS)
    for before, name in pairwise(names):
        first, comma, _ = name.partition(",")
        if comma:
            assert before.partition(",")[0] == first
            assert CONTENDERS[name].venv == CONTENDERS[first].venv
            assert CONTENDERS[name].run != CONTENDERS[first].run or CONTENDERS[name].module != CONTENDERS[first].module


@pytest.mark.parametrize("name", CONTENDERS)
def test_packages_of_other_environments_are_pinned(name):
    """Results can only be compared if they are of the same versions."""
    entry = CONTENDERS[name]
    assert all("==" in package for package in entry.packages) or not entry.own_venv


def test_some_take_only_some_minutes():
    """A real minute, whole seconds, or any."""
    minutes = (60.0, 6.0, 1.5, 0.5)
    taken = {name: [entry.takes(minute) for minute in minutes] for name, entry in CONTENDERS.items()}
    assert taken["LiteLLM Router"] == [True, False, False, False]
    assert taken["token-throttle"] == [True, True, False, False]
    assert taken["kimi_async"] == [True, True, True, True]


async def test_who_takes_whole_files_only_cannot_be_connected_to():
    """The closed loops are told so."""
    with pytest.raises(ValueError, match="cookbook processor has no client"):
        await contenders.connect("cookbook processor", account())


def test_the_worker_imports_nothing_but_the_standard_library():
    """It runs where nothing else is installed."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import benchmarks.worker"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=30)


# -- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.real_time
@pytest.mark.parametrize("name", DIFFERENT)
def test_a_contender_of_this_environment_is_answered(name):
    """In a process of its own; what it cost is told."""
    with gateway(MockSettings(latency=0.0)) as base_url:
        found = contest(name, account(base_url), REQUESTS, patience=30)
        stats = httpx.get(f"{base_url}/stats", trust_env=False).json()
    assert (found.answered, stats["admitted"]) == (4, 4)
    assert found.outcomes[0].error is None
    assert 0 < found.seconds < 30
    assert found.cpu > 0
    assert found.imported > 0
    assert 10**7 < found.peak_memory < 10**9


@pytest.mark.real_time
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_contender_of_another_environment_is_answered(name):
    """If it has been made."""
    if lack := venvs.lacks().get(name):
        pytest.skip(lack)
    with gateway(MockSettings(latency=0.0)) as base_url:
        found = contest(name, account(base_url), REQUESTS, patience=30)
    assert [outcome.error for outcome in found.outcomes] == [None] * 4


@pytest.mark.real_time
def test_what_is_unanswered_when_patience_ends_is_lost():
    """One slot, an answer takes a second: the first request is answered in time, the others are not."""
    with gateway(MockSettings(latency=1.0, latency_jitter=0.0)) as base_url:
        found = contest("httpx", account(base_url, concurrency=1), REQUESTS, patience=1.6)
    assert [outcome.answered for outcome in found.outcomes] == [True, False, False, False]
    assert found.outcomes[3].error == "never finished"
    assert found.outcomes[3].finished > found.outcomes[0].finished


WORKER = """
    import os, sys
    from benchmarks import worker

    class Entry:
        settling = 0.0
        def load(self):
            async def run(account, requests, progress):
                progress.begin()
                {body}
            return run

    worker.CONTENDERS = {{"it": Entry()}}
    worker.main()
"""


def work(body, *, begin=True):
    """What a worker whose contender does that once it may begin prints, and what it prints beside it."""
    job = {"contender": "it", "account": {"base_url": "", "concurrency": 1, "rpm": 1, "tpm": 1}, "patience": 0.2}
    job["requests"] = [{"text": "a", "prompt_tokens": 1, "max_tokens": 1}] * 2
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORKER).format(body=body)],
        input=json.dumps(job) + "\nbegin\n" * begin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=False,
    )
    return done.stdout.removeprefix("ready\n"), done.stderr


def test_a_contender_that_never_lets_the_loop_go_is_stopped():
    """Its one answer counts."""
    printed, _ = work("progress.finished(0)\n            while True: pass")
    assert [outcome["answered"] for outcome in json.loads(printed)["outcomes"]] == [True, False]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not let choose")
def test_a_process_is_kept_on_one_core_once_it_is_ready():
    """It may use all of them before."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert os.sched_getaffinity(process.pid) == os.sched_getaffinity(0)
        processes._pin(process.pid, processes.CLIENT)
        assert os.sched_getaffinity(process.pid) == {min(os.sched_getaffinity(0))}


def test_what_a_contender_prints_does_not_mix_with_the_result():
    """Nor does what its C code writes."""
    printed, beside = work("print('chatter', flush=True); os.write(1, b'more')")
    assert len(json.loads(printed)["outcomes"]) == 2
    assert "chatter" in beside
    assert "more" in beside


def test_what_a_failing_process_printed_is_told():
    """The traceback is in the message."""
    with pytest.raises(RuntimeError, match=r"(?s)httpx failed in its process: exit status 1.*JSONDecodeError"):
        processes._worker("httpx", "no job", Lane(), timeout=30)


def test_a_contender_that_nobody_lets_begin_sends_nothing():
    """Whoever started it is gone."""
    assert work("print('sent')", begin=False) == ("", "")


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_says_when_it_is_ready(name):
    """In its own module, or by way of ``all_at_once``."""
    text = (Path(contenders.__file__).parent / f"{CONTENDERS[name].module}.py").read_text(encoding="utf-8")
    assert "progress.begin()" in text or f"{CONTENDERS[name].run} = all_at_once(" in text


def test_a_contender_is_not_led_astray_by_the_environment(monkeypatch):
    """Proxies and other people's keys stay outside."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere")
    monkeypatch.setenv("https_proxy", "http://proxy")
    monkeypatch.setenv("HOME", "/home/someone")
    kept = processes.environment()
    assert kept.keys().isdisjoint({"OPENAI_BASE_URL", "https_proxy"})
    assert kept["HOME"] == "/home/someone"


def test_a_contest_lasts_until_the_last_request_is_done_with():
    """Whether it was answered or given up."""
    outcomes = [
        {"answered": True, "submitted": 5.0, "finished": 7.0},
        {"answered": False, "submitted": 5.5, "finished": 9.0},
    ]
    found = Contest(tuple(Outcome(**outcome) for outcome in outcomes), 0.0, 0, 0.0)
    assert (found.seconds, found.answered) == (4.0, 1)


# -- somebody else's limiter -----------------------------------------------------------------------------------------


class Admissions:
    """Lets everybody pass, and counts."""

    def __init__(self):
        self.entered = self.left = 0

    def __call__(self, request):
        return self

    async def __aenter__(self):
        self.entered += 1

    async def __aexit__(self, *exc):
        self.left += 1


@pytest.fixture
async def at(monkeypatch):
    """A client of a mock gateway in this loop, behind a limiter; and how to ask the gateway what it saw."""
    opened = []

    def connect(admissions, **settings):
        mock = mocked.client(mocked.instant(**settings), clock=asyncio.get_running_loop().time)
        opened.append(mock)
        monkeypatch.setattr(admitted, "AsyncOpenAI", lambda **options: AsyncOpenAI(**options, http_client=mock))
        return admitted.admitted(account(), admissions), mock

    yield connect
    for mock in opened:
        await mock.aclose()


async def test_every_attempt_is_admitted(at):
    """Two requests, one a minute of 5 s: the second is refused at first, and passes the limiter again."""
    admissions = Admissions()
    ask, mock = at(admissions, limits=RateLimits(concurrency=4, rpm=1, tpm=10_000, minute=5.0))
    outcomes = await ask_all(ask, REQUESTS[:2])
    refused = (await mock.get("/stats")).json()["refused"]["rpm"]
    assert all(outcome.answered for outcome in outcomes)
    assert admissions.entered == admissions.left == 2 + refused
    assert refused >= 1


async def test_attempts_come_to_an_end(at):
    """Ten that break are enough."""
    admissions = Admissions()
    ask, _ = at(admissions, faults=Faults(error_5xx=1.0))
    [outcome] = await ask_all(ask, REQUESTS[:1])
    assert (outcome.error, admissions.entered) == ("not answered", admitted.ATTEMPTS)


async def test_what_no_other_attempt_would_mend_is_not_tried_again(at):
    """A bad key."""
    admissions = Admissions()
    ask, _ = at(admissions, bad_keys=frozenset({API_KEY}))
    [outcome] = await ask_all(ask, REQUESTS[:1])
    assert "401" in outcome.error
    assert admissions.entered == 1


@pytest.mark.parametrize(("connect", "attempts"), [("connect", 10), ("connect_as_documented", 3)])
async def test_the_sdk_comes_to_an_end_too(monkeypatch, connect, attempts):
    """After as many attempts as httpx makes, or as its README says; nothing is advised, so its own pauses count."""
    sent = []

    async def count(request):
        sent.append(request)

    async with mocked.client(mocked.instant(faults=Faults(error_5xx=1.0))) as mock:
        mock.event_hooks = {"request": [count]}
        monkeypatch.setattr(openai_sdk, "AsyncOpenAI", lambda **options: AsyncOpenAI(**options, http_client=mock))
        ask = await getattr(openai_sdk, connect)(account())
        [outcome] = await ask_all(ask, REQUESTS[:1])
    assert (outcome.error, len(sent)) == ("not answered", attempts)


async def test_every_attempt_passes_both_of_aiolimiter(monkeypatch):
    """Three requests, two a minute told and one of them enforced: whoever is refused asks both limiters again."""
    passed = []

    class Counted(AsyncLimiter):
        async def acquire(self, amount=1):
            passed.append(amount)
            await super().acquire(amount)

    monkeypatch.setattr(openai_aiolimiter, "AsyncLimiter", Counted)
    mock = mocked.client(mocked.instant(limits=TIGHT), clock=asyncio.get_running_loop().time)
    monkeypatch.setattr(admitted, "AsyncOpenAI", lambda **options: AsyncOpenAI(**options, http_client=mock))
    async with mock:
        ask = await openai_aiolimiter.connect(account(minute=1.0))
        outcomes = await ask_all(ask, REQUESTS[:3])
        refused = (await mock.get("/stats")).json()["refused"]["rpm"]
    assert all(outcome.answered for outcome in outcomes)
    assert refused >= 1
    assert passed.count(1) == passed.count(REQUESTS[0].tokens) == 3 + refused


# -- environments ----------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A machine on which nobody has made any environment, and what would be run on it."""
    commands = []

    def run(command, **options):
        commands.append(command[1:])
        if "venv" in command:
            (Path(command[-1]) / "lib").mkdir(parents=True)
        fails = "impossible==1" in command or command[-1].endswith("hopeless")
        return subprocess.CompletedProcess(command, int(fails), stdout="", stderr="")

    monkeypatch.setattr(venvs, "FOLDER", tmp_path)
    monkeypatch.setattr(venvs.subprocess, "run", run)
    monkeypatch.setattr(venvs, "_interpreter", lambda oldest: sys.executable)
    venvs._installed.cache_clear()
    yield commands
    venvs._installed.cache_clear()


def entries(monkeypatch, **packages):
    """Contenders that need those packages, in one environment."""
    found = {
        name: Entry(module=name, packages=(package,), venv="shared", about="") for name, package in packages.items()
    }
    monkeypatch.setattr(venvs, "CONTENDERS", found)


def test_contenders_of_this_environment_need_no_other(elsewhere):
    """The others say how to get one."""
    assert venvs.available() == frozenset(HERE)
    assert venvs.lacks()["lm-deluge"] == "no environment peers: python -m benchmarks setup"


def test_an_environment_is_made_once_and_filled_in_one_go(elsewhere, monkeypatch, capsys):
    """What pip can do together, it does together; who still lacks something is told."""
    entries(monkeypatch, one="a==1", other="b==2")
    assert venvs.setup() is False
    assert [command[:3] for command in elsewhere] == [["-m", "venv", "--clear"], ["-m", "pip", "install"]]
    assert elsewhere[1][-2:] == ["a==1", "b==2"]
    assert "one cannot run here" in capsys.readouterr().out


def test_one_impossible_package_does_not_keep_the_others_out(elsewhere, monkeypatch):
    """Then each contender is installed on its own."""
    entries(monkeypatch, one="a==1", other="impossible==1")
    venvs.setup()
    assert [command[4:] for command in elsewhere[1:]] == [["a==1", "impossible==1"], ["a==1"], ["impossible==1"]]


def test_an_environment_that_cannot_be_made_leaves_nothing_behind(elsewhere, monkeypatch, tmp_path, capsys):
    """Its Python lacks ensurepip: that is said in a line, and the next environment is made."""
    found = {
        venv: Entry(module=venv, packages=("a==1",), venv=venv, about="") for venv in ("hopeless", "next", "other")
    }
    monkeypatch.setattr(venvs, "CONTENDERS", found)
    assert venvs.setup() is False
    [said] = [line for line in capsys.readouterr().out.splitlines() if "not made" in line]
    assert f"hopeless: not made, since {sys.executable} -m venv fails" in said
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["next", "other"]
    assert [command[1] for command in elsewhere if command[0] == "-m"] == ["venv", "venv", "pip", "venv", "pip"]


def test_ctrl_c_leaves_no_half_of_an_environment(elsewhere, monkeypatch, tmp_path):
    """It would be taken for a whole one."""
    run = venvs.subprocess.run

    def interrupted(command, **options):
        run(command, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(venvs.subprocess, "run", interrupted)
    entries(monkeypatch, one="a==1")
    with pytest.raises(KeyboardInterrupt):
        venvs.setup()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("installed", "newer", "made"),
    [
        ({"python": "3.12.1", "pip": "1"}, "/newer", False),
        ({"python": "3.11.9", "pip": "1"}, "/newer", True),
        ({"python": "3.11.9", "pip": "1"}, None, False),
        ({"python": "3.12.1"}, None, True),
        ({}, None, True),
    ],
)
def test_an_environment_is_made_again_if_that_helps(elsewhere, monkeypatch, installed, newer, made):
    """If its Python is too old and another is there now, or if it is without pip: somebody stopped half-way."""
    monkeypatch.setattr(venvs, "_interpreter", lambda oldest: newer)
    monkeypatch.setattr(venvs, "_installed", cache(lambda venv: installed))
    assert venvs._made("shared", (3, 12))
    assert [command[:2] for command in elsewhere] == [["-m", "venv"]] * made


def test_what_pip_left_half_way_is_passed_over(monkeypatch, tmp_path):
    """Metadata without a name, here and in another environment."""
    broken = tmp_path / "broken-1.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\n")
    monkeypatch.setattr(venvs, "distributions", lambda: [PathDistribution(broken)])
    venvs._installed.cache_clear()
    assert venvs._installed("").keys() == {"python"}
    venvs._installed.cache_clear()
    done = subprocess.run(
        [sys.executable, "-c", venvs._VERSIONS],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "null" not in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("installed", "lack"),
    [
        ({"python": "3.12.1", "some-peer": "1"}, ""),
        ({"python": "3.12.1", "some-peer": "2"}, "not installed: some_peer==1"),
        ({"python": "3.11.9", "some-peer": "1"}, "needs Python 3.12, the environment has 3.11.9"),
    ],
)
def test_a_contender_needs_its_versions(monkeypatch, installed, lack):
    """Of its package and of Python; a name may be spelt with either dash."""
    entry = Entry(module="peer", packages=("some_peer==1",), venv="peers", python=(3, 12), about="")
    monkeypatch.setattr(venvs, "_installed", lambda venv: installed)
    assert venvs._lack(entry) == lack


def test_the_oldest_python_that_is_new_enough_is_taken(monkeypatch):
    """Interpreters that do not start are no choice."""
    releases = {"/a": "3 13", "/b": "", "/c": "3 12", "/d": "3 11"}
    monkeypatch.setattr(venvs, "_interpreters", lambda: iter(releases))
    monkeypatch.setattr(venvs, "_version", releases.get)
    assert venvs._interpreter((3, 12)) == "/c"
    assert venvs._interpreter((3, 14)) is None


def test_a_version_that_differs_between_environments_is_told_twice(monkeypatch):
    """Both have openai."""
    installed = {"": {"python": "3.11.7", "openai": "3.1"}, "old": {"python": "3.11.7", "openai": "2.9"}}
    monkeypatch.setattr(venvs, "_installed", installed.get)
    found = {venv: Entry(module="x", packages=("openai",), venv=venv, about="") for venv in installed}
    monkeypatch.setattr(venvs, "CONTENDERS", found)
    assert venvs.versions() == {"Python": "3.11.7", "openai": "3.1", "openai (old)": "2.9"}
