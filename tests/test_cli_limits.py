"""``kimi-async limits``: an account's budgets, who shares them, what was learned."""

import asyncio
import json

import pytest

from kimi_async.cli import main
from kimi_async.cli.gateway import account_of, default_ledger
from kimi_async.errors import ConfigurationError
from kimi_async.ledger import account_of_key, open_ledger
from kimi_async.ledger.replica import LEASE, Entry, Replica
from kimi_async.ledger.view import Participant, view
from kimi_async.limiter import RateLimiter
from kimi_async.limits import Cost, RateLimits

LIMITS = RateLimits(concurrency=3, rpm=10, tpd=1_000)


def run(*arguments):
    """The command, in this process; its exit status."""
    with pytest.raises(SystemExit) as exited:
        main(["limits", *arguments])
    return exited.value.code


@pytest.fixture
def url(tmp_path):
    """A ledger in which one request was sent, by a process that has gone since."""
    url = f"sqlite://{tmp_path}/ledger.sqlite3"

    async def use():
        ledger = await open_ledger(url, account="mine")
        async with RateLimiter(LIMITS, ledger=ledger).acquire(Cost(30, 70)) as reservation:
            reservation.sent()
        await ledger.aclose()

    asyncio.run(use())
    return url


def test_what_is_left_of_the_day_is_shown_after_the_process_has_gone(url, capsys):
    """A line for each budget."""
    assert run("--ledger", url, "--account", "mine") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "concurrency 0 / 3 3 left",
        "rpm 1 / 10 9 left",
        "tpm 100 / unlimited",
        "tpd 100 / 1,000 900 left",
    ]


def test_other_programs_read_json(url, capsys):
    """All of it in one line."""
    assert run("--ledger", url, "--account", "mine", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["usage"]["tpd"] == {"used": 100, "limit": 1_000}
    assert (shown["learned"], shown["pauses"], shown["participants"]) == ({}, {}, [])


def test_an_account_that_nobody_used_is_told(url, capsys):
    """And another one than that which was."""
    assert run("--ledger", url, "--account", "other") == 0
    assert capsys.readouterr().out == "nothing has been recorded yet\n"


def test_the_memory_of_a_process_cannot_be_shown(capsys):
    """Nobody else sees it."""
    assert run("--ledger", "memory:") == 2
    assert "only a ledger that is shared" in capsys.readouterr().err


def test_a_view_tells_who_waits_what_is_closed_and_what_was_learned():
    """As of a moment."""
    replica = Replica()
    refusal = {"kind": "budget", "budget": "rpm", "limit": 5, "retry_after": 1.0}
    entries = [
        ("a", "join", {"address": "1"}),
        ("a", "limits", {"rpm": 10}),
        ("a", "reserve", {"tokens": 7}),
        ("b", "join", {"address": "2"}),
        ("b", "wait", {}),
        ("a", "sent", {"charge": 3}),
        ("a", "refuse", {"charge": 3, **refusal, "pause": True}),
        ("a", "reserve", {"tokens": 7}),
    ]
    for number, (process, operation, detail) in enumerate(entries, start=1):
        replica.apply(Entry(number, 100.0, process, operation, detail))
    seen = view(replica, 100.5)
    assert seen.learned == {"rpm": 5}
    assert seen.pauses == {"rpm": pytest.approx(0.5)}
    assert seen.participants == (Participant("a", 0.5, 1, 1, False, None), Participant("b", 0.5, 0, 0, False, 1))
    assert seen.usage.concurrency.used == 1
    later = view(replica, 100.1 + LEASE)
    assert [one.dead for one in later.participants] == [True, True]
    assert later.usage.concurrency.used == 0


def test_an_account_is_known_by_its_key_and_the_key_by_nobody(monkeypatch):
    """The same name for the same key, another for another, and no way back."""
    monkeypatch.setenv("MOONSHOT_API_KEY", "sk-SECRET0123456789")
    assert account_of() == account_of_key("sk-SECRET0123456789 ") != account_of_key("sk-other")
    assert "SECRET" not in account_of()
    monkeypatch.setenv("MOONSHOT_API_KEY", "sk-\udcff")  # no UTF-8: a name all the same, and the client refuses it
    assert account_of() == account_of_key("sk-\udcff") != account_of_key("sk-")
    monkeypatch.delenv("MOONSHOT_API_KEY")
    monkeypatch.delenv("KIMI_API_KEY", raising=False)
    assert account_of() == "default"


@pytest.mark.parametrize(
    ("base_url", "ledger"),
    [
        (None, "sqlite:"),
        ("https://api.moonshot.ai/v1", "sqlite:"),
        ("http://127.0.0.1:8000/v1", "memory:"),
        ("http://localhost:8000/v1", "memory:"),
    ],
)
def test_a_mock_on_this_machine_leaves_no_trace(monkeypatch, base_url, ledger):
    """The real gateway's account is remembered."""
    monkeypatch.delenv("MOONSHOT_BASE_URL", raising=False)
    monkeypatch.delenv("KIMI_BASE_URL", raising=False)
    assert default_ledger(base_url) == ledger


@pytest.mark.parametrize(
    ("option", "environment", "problem"),
    [
        (None, "https://api.moonshot.cn/v1\r", "'\\r' at position 26"),  # from a file with Windows' ends of lines
        ("https://api.moonshot.cn:abc/v1", "", "Invalid port: 'abc'"),
    ],
)
def test_a_base_url_that_is_none_names_no_ledger(monkeypatch, option, environment, problem):
    """It is told as what it is, before anything is opened."""
    monkeypatch.setenv("MOONSHOT_BASE_URL", environment)
    with pytest.raises(ConfigurationError) as caught:
        default_ledger(option)
    assert str(caught.value).startswith(f"base_url={option or environment!r}: ")
    assert problem in str(caught.value)


def test_a_ledger_that_cannot_be_kept_is_told_with_the_way_round_it(tmp_path, monkeypatch, capsys):
    """Nobody waits for a directory that is none."""
    tmp_path.joinpath("file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("MOONSHOT_API_KEY", "sk-test")
    monkeypatch.delenv("MOONSHOT_BASE_URL", raising=False)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"hi"\n')
    with pytest.raises(SystemExit) as exited:
        main(["batch", str(prompts), "-o", str(tmp_path / "out.jsonl"), "--model", "kimi-k2.6"])
    assert exited.value.code == 2
    assert "memory: is for this run alone" in capsys.readouterr().err
