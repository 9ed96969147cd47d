"""``kimi-async chat``: one answer, a conversation, and how both look while they come."""

import asyncio
import io
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.application import create_app_session
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console, NewLine
from rich.control import Control

from kimi_async.cli import gateway, main, session
from kimi_async.cli.blocks import split_blocks
from kimi_async.cli.display import Block, MarkdownDisplay, Style, Waiting, show_answer
from kimi_async.cli.session import Session, interruptible
from kimi_async.cli.terminal import Tail, Terminal, in_one_line, printable
from kimi_async.client import AsyncKimi
from kimi_async.limits import Cost, RateLimits

from .scripted import NO_BALANCE, Body, Scripted, Step, error, refused

WIDE = RateLimits(concurrency=10, rpm=1000, tpm=1_000_000)
ENTER, ALT_ENTER, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x03", "\x04"
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\].*?\x07)")


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    """Whatever the developer's shell holds is not here."""
    for name in ("MOONSHOT_API_KEY", "KIMI_API_KEY", "MOONSHOT_BASE_URL", "KIMI_BASE_URL", "KIMI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOONSHOT_API_KEY", "sk-test")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def event(delta, finish=None, usage=None):
    """One chunk, on the wire."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish} | ({"usage": usage} if usage else {})
    return b"data: " + json.dumps({"id": "c", "model": "kimi-k2.6", "choices": [choice]}).encode() + b"\n\n"


def streamed(*texts, thought="", finish="stop", broken=False, on_open=None, seconds=0.0, **step):
    """An answer in chunks; ``on_open`` is called once the first has been read."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 2000, "total_tokens": 3000}
    chunks = [event({"reasoning_content": thought})] if thought else []
    chunks += [event({"content": text}) for text in texts]
    if not broken:
        chunks += [event({}, finish, usage), b"data: [DONE]\n\n"]
    body = Body(*chunks, seconds=seconds) if on_open is None else Calling(on_open, *chunks, seconds=seconds)
    return Step(content=body, headers={"content-type": "text/event-stream"}, **step)


class Calling(Body):
    """A body that does something after its first chunk, and then hangs."""

    def __init__(self, call, *chunks, seconds):
        super().__init__(*chunks, seconds=seconds)
        self.call = call

    async def __aiter__(self):
        yield self.chunks[0]
        await asyncio.sleep(1)
        self.call()
        await asyncio.sleep(60)


def client(*steps, **options):
    """A client of a scripted gateway, for which a character is a token."""
    inner = Scripted(*steps)
    options = {"api_key": "sk-test", "model": "kimi-k2.6", "limits": WIDE, "on_event": str, **options}
    kimi = AsyncKimi(transport=inner, **options)
    kimi.counter._encode = list
    return kimi, inner


@pytest.fixture
def scripted(monkeypatch):
    """Let the command talk to a scripted gateway; returns a function that takes the steps."""

    def install(*steps):
        inner = Scripted(*steps)

        def make(**options):
            kimi = AsyncKimi(**{**options, "transport": inner})
            kimi.counter._encode = list
            return kimi

        monkeypatch.setattr(gateway, "AsyncKimi", make)
        return inner

    return install


@pytest.fixture
def stdin(monkeypatch):
    """Standard input: a function that takes what is piped in, or None for a terminal."""

    def install(content):
        stream = io.TextIOWrapper(io.BytesIO(content or b""))
        stream.isatty = lambda: content is None
        monkeypatch.setattr(sys, "stdin", stream)

    install(None)
    return install


def run(*arguments):
    """The command, in this process; its exit status."""
    with pytest.raises(SystemExit) as exited:
        main(["chat", *arguments])
    return exited.value.code


def screen(height=12):
    """A terminal of 60 columns: both outputs in one place."""
    terminal = Terminal()
    terminal.out = Console(file=io.StringIO(), force_terminal=True, width=60, height=height, color_system=None)
    terminal.err = terminal.out
    return terminal


def shown(terminal):
    """All that was ever drawn, without the control sequences."""
    return ESCAPES.sub("", terminal.out.file.getvalue()).replace("\r", "")


# -- one prompt -----------------------------------------------------------------------------------------------


def test_one_prompt_is_answered_on_standard_output(scripted, stdin, capsys):
    """Just the answer and a newline; what the model thought is nowhere; the request is what was asked for."""
    inner = scripted(streamed("It ", "is **blue**.", thought="hm"))
    status = run("why?", "--system", "Be brief.", "--max-tokens", "50", "--no-thinking")
    assert (status, *capsys.readouterr()) == (0, "It is **blue**.\n", "")
    (asked,) = inner.payloads
    assert [message["content"] for message in asked["messages"]] == ["Be brief.", "why?"]
    assert (asked["model"], asked["max_tokens"], asked["thinking"]) == ("kimi-k2.6", 50, {"type": "disabled"})


@pytest.mark.parametrize(
    ("arguments", "piped", "said"),
    [
        ([], b"hi\n", "hi"),
        (["-"], b"hi", "hi"),
        (["Summarise:"], "长文\n\n".encode(), "Summarise:\n\n长文"),
        (["hi"], b"\n", "hi"),
        (["hi"], None, "hi"),
    ],
)
def test_the_prompt_comes_from_the_argument_and_the_pipe(scripted, stdin, *, arguments, piped, said):
    """The argument first, a blank line, then what was piped in."""
    inner = scripted(streamed("yes\n"))
    stdin(piped)
    assert run(*arguments) == 0
    assert inner.payloads[0]["messages"] == [{"role": "user", "content": said}]


@pytest.mark.parametrize(
    ("arguments", "piped", "message"),
    [
        ([], b"", "nothing to say"),
        ([" "], None, "nothing to say"),
        ([], None, "a conversation needs a terminal"),
        ([], b"\xff", "not UTF-8 at byte 1"),
        (["hi", "--temperature", "0.1"], None, "kimi-k2.6 takes only 1"),
        (["hi", "--load", "nowhere.json"], None, "nowhere.json: No such file"),
        (["hi", "--base-url", "nowhere"], None, "must begin with https://"),
        (["hi", "--max-tokens", "many"], None, "many"),
    ],
)
def test_usage_errors_have_status_2(scripted, stdin, capsys, *, arguments, piped, message):
    """One line on standard error; nothing was sent."""
    inner = scripted(streamed("yes"))
    stdin(piped)
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, inner.requests) == ("", [])
    assert message in err


@pytest.mark.parametrize(
    ("step", "status", "message"),
    [
        (error(400, "invalid_request_error", "Invalid request: no"), 1, "Invalid request: no"),
        (error(401, "invalid_authentication_error", "Invalid Authentication"), 2, "not interchangeable"),
        (error(429, *NO_BALANCE), 3, "insufficient balance"),
    ],
)
def test_failures_have_their_status(scripted, stdin, capsys, *, step, status, message):
    """As batch has them; the message is on standard error, the key is not."""
    scripted(step)
    assert run("hi") == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "sk-test" not in err


def test_the_spent_tokens_of_the_day_have_status_3(scripted, stdin, capsys):
    """It says when to come back; a request that no day would admit is a mere failure."""
    scripted(refused("tpd", limit=1_500_000, current=1_508_351))
    assert run("hi") == 3
    assert "the day's 1,500,000 tokens are spent" in capsys.readouterr().err
    assert run("hi", "--tpd", "100", "--max-tokens", "500") == 1
    assert "TPD is 100" in capsys.readouterr().err


def test_a_broken_stream_says_that_what_is_shown_is_incomplete(scripted, stdin, capsys):
    """What had come stays, with its newline."""
    scripted(streamed("half of ", "an", broken=True))
    assert run("hi") == 1
    out, err = capsys.readouterr()
    assert out == "half of an\n"
    assert "incomplete" in err


def test_an_answer_cut_off_is_named(scripted, stdin, capsys):
    """The status is 0: it was answered."""
    scripted(streamed("and so", finish="length"))
    assert run("hi", "--max-tokens", "2000") == 0
    assert capsys.readouterr() == ("and so\n", "kimi-async: cut off at 2,000 tokens; --max-tokens raises that\n")


def test_the_model_comes_from_the_option_the_file_or_the_environment(scripted, stdin, tmp_path, monkeypatch):
    """In that order, and then the default."""
    kimi, _ = client(streamed("yes"))
    saved = kimi.conversation(model="kimi-k3", system="Rhyme.")
    saved.save(tmp_path / "saved.json")
    inner = scripted(streamed("yes"))
    monkeypatch.setenv("KIMI_MODEL", "kimi-k2.7-code")
    assert run("a", "--load", str(tmp_path / "saved.json"), "--model", "kimi-k3.1-pro") == 0
    assert run("a", "--load", str(tmp_path / "saved.json")) == 0
    assert run("a") == 0
    models = [payload["model"] for payload in inner.payloads]
    assert models == ["kimi-k3.1-pro", "kimi-k3", "kimi-k2.7-code"]
    assert inner.payloads[1]["messages"][0]["content"] == "Rhyme."


def test_a_pipe_is_no_terminal_whatever_the_environment_says(scripted, stdin, capsys, monkeypatch):
    """FORCE_COLOR puts no control sequences into an answer."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    scripted(streamed("**x**"))
    assert run("hi") == 0
    assert capsys.readouterr() == ("**x**\n", "")


def test_answers_that_the_locale_cannot_spell_are_shown_nevertheless(scripted, stdin, monkeypatch):
    """With question marks."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    scripted(streamed("é 月"))
    assert run("hi") == 0
    assert out.buffer.getvalue() == "é ?\n".encode("latin-1")


# -- blocks of Markdown ---------------------------------------------------------------------------------------

FRAGMENTS = ["a", "b\n", "\n", "\n\n", "# ", "- ", "  ", "    ", "1. ", "```", "```py\n", "> ", "|a|b|\n", "|-|-|\n"]
FRAGMENTS += ["---\n", "===\n", "*x*", "`", "~~~\n", "<div>\n", "月", "\t", "#"]
MARKDOWN = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join)


def fed(pieces):
    """What is printed for a text in pieces, and what is left."""
    printed, rest = [], ""
    for piece in pieces:
        finished, rest = split_blocks(rest + piece)
        printed += finished
    return printed, rest


@given(st.lists(st.text()))
def test_blocks_lose_nothing(pieces):
    """For any text in any pieces, what was printed and what is left make the text."""
    printed, rest = fed(pieces)
    assert "".join(printed) + rest == "".join(pieces)


@given(MARKDOWN, st.data())
def test_blocks_do_not_depend_on_how_the_text_comes(text, data):
    """A character at a time, or in any pieces, as in one."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert fed(pieces) == fed(list(text)) == fed([text])


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("one\n\ntwo\n\nthree", ["one\n\n"]),
        ("one\n\ntwo\n\nthree\n", ["one\n\n", "two\n\n"]),
        ("# head\ntext\n", ["# head\n"]),
        ("```\na\n\n# b\n\nc\n", []),
        ("```\na\n```\nb\n", ["```\na\n```\n"]),
        ("- a\n\n- b\n\n  c\n\n", []),
        ("- a\n\nb\n", ["- a\n\n"]),
        ("title\n===\n", []),
        ("a\n\n#", []),
        ("|a|b|\n|-|-|\n|1|2|\n\nx\n", ["|a|b|\n|-|-|\n|1|2|\n\n"]),
    ],
)
def test_a_block_is_finished_when_the_next_has_begun(text, blocks):
    """Never before: the last may still grow, and the last line decides nothing."""
    assert split_blocks(text)[0] == blocks


# -- in a terminal --------------------------------------------------------------------------------------------

DOCUMENT = (
    "# Rivers\n\nThe *Glomma* is long.\n\n- one\n- two\n\n```python\n"
    + "".join(f"line_{number}()\n" for number in range(40))
    + "```\n\n> quote\n\nThe end."
)


class Recorder(Console):
    """Keeps what is printed for good."""

    def __init__(self, **options):
        super().__init__(file=io.StringIO(), force_terminal=True, color_system=None, **options)
        self.kept = []

    def print(self, *contents, **options):
        if not isinstance(contents[0], Control | NewLine):  # which Live prints, and takes back
            with (copy := Console(file=io.StringIO(), width=self.width, color_system=None)).capture() as capture:
                copy.print(*contents, **options)
            self.kept += capture.get().splitlines()
        super().print(*contents, **options)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_long_answer_is_printed_once_and_whole(size):
    """Higher than the terminal, in pieces of any size: every line once, in order, as if it had come in one."""
    terminal = screen()
    terminal.out = Recorder(width=60, height=8)
    pieces = [DOCUMENT[start : start + size] for start in range(0, len(DOCUMENT), size)]
    kimi, _ = client(streamed(*pieces, seconds=0.01))
    style = Style(terminal, {})
    await show_answer(kimi.conversation(), "hi", style.display(kimi, kimi.conversation()))
    lines = [line.strip() for line in terminal.out.kept if line.strip()]
    assert lines[:5] == ["Rivers", "The Glomma is long.", "• one", "• two", "line_0()"]
    assert lines[4:44] == [f"line_{number}()" for number in range(40)]
    assert lines[44:] == ["▌ quote", "The end."]


async def test_thinking_comes_first_and_plain():
    """Above the answer, Markdown left alone, an empty line between."""
    terminal = screen()
    terminal.out = Recorder(width=60, height=8)
    kimi, _ = client(streamed("**yes**", thought="let *me*\nthink"))
    await show_answer(kimi.conversation(), "hi", MarkdownDisplay(terminal, Waiting(kimi.limiter, "m")))
    assert [line.rstrip() for line in terminal.out.kept] == ["let *me*", "think", "", "yes"]


def test_the_redrawn_part_never_exceeds_the_terminal():
    """Its end is what is shown; a live region that scrolls cannot be taken back."""
    console = Console(width=20, height=10, file=io.StringIO(), force_terminal=True)
    lines = console.render_lines(Tail(Block("```\n" + "x\n" * 50 + "last\n```")), pad=False)
    assert len(lines) == 8
    assert "last" in "".join(segment.text for line in lines for segment in line)


async def test_what_a_terminal_would_obey_is_left_out():
    """An answer moves no cursor and sets no title."""
    terminal = screen()
    kimi, _ = client(streamed("a\x1b]0;evil\x07b\x9b2J\r\n", thought="\x1b[31mred"))
    style = Style(terminal, {}, plain=True)
    await show_answer(kimi.conversation(), "hi", style.display(kimi, kimi.conversation()))
    assert "a]0;evilb2J\n" in shown(terminal)
    assert printable("a\tb\nc\x00\x7f\x85") == "a\tb\nc"
    assert in_one_line("a\tb\nc\x1b") == "a b c"


async def test_a_wait_is_shown_until_the_first_chunk():
    """For what and how long; then it is gone."""
    terminal = screen()
    kimi, _ = client(streamed("now"), limits=RateLimits(rpm=1, minute=20))
    async with kimi.limiter.acquire(Cost(1)) as reservation:
        reservation.sent()
    await asyncio.sleep(2)
    style = Style(terminal, {})
    await show_answer(kimi.conversation(), "hi", style.display(kimi, kimi.conversation(model="kimi-k2.6")))
    drawn = shown(terminal)
    assert "waiting 18 s for rpm" in drawn
    assert "waiting 1 s for rpm" in drawn
    assert "asking kimi-k2.6" in drawn
    assert "waiting" not in drawn[drawn.index("now") :]


async def test_events_are_lines_above_what_is_redrawn():
    """Where both outputs are one terminal they go through the console that redraws, and the answer stays whole."""
    terminal = screen()
    terminal.out = terminal.err = Recorder(width=100, height=8)
    kimi, _ = client(Step(503, b"busy"), streamed("yes"), on_event=terminal.note)
    style = Style(terminal, {})
    await show_answer(kimi.conversation(), "hi", style.display(kimi, kimi.conversation()))
    event, answer = terminal.out.kept
    assert event.startswith("attempt 1 failed")
    assert answer.strip() == "yes"


def test_events_of_a_pipe_go_to_standard_error(scripted, stdin, capsys):
    """Retries are told there; the answer stays clean."""
    scripted(Step(503, b"busy"), streamed("yes"))
    assert run("hi") == 0
    out, err = capsys.readouterr()
    assert out == "yes\n"
    assert "attempt 1 failed" in err


# -- a conversation -------------------------------------------------------------------------------------------


async def converse(kimi, *keys, style=None):
    """Type into a session until it ends; the session."""
    style = style or Style(screen(), {})
    chat = Session(kimi, kimi.conversation(**style.options), style, InMemoryHistory())
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text("".join(keys) + CTRL_D)
        assert await chat.run() == 0
    return chat


async def test_a_conversation_remembers_its_turns():
    """Each question goes out with what was said before; an empty line is none."""
    kimi, inner = client(streamed("one"), streamed("two"))
    chat = await converse(kimi, "first", ENTER, ENTER, "second", ENTER)
    assert [message["content"] for message in inner.payloads[1]["messages"]] == ["first", "one", "second"]
    assert "two" in shown(chat._terminal)


async def test_lines_that_belong_together_stay_together():
    """By Alt-Enter, or pasted."""
    kimi, inner = client(streamed("yes"))
    await converse(kimi, "a", ALT_ENTER, "b\x1b[200~c\nd\x1b[201~", ENTER)
    assert [message["content"] for message in inner.payloads[0]["messages"]] == ["a\nbc\nd"]


async def test_ctrl_c_at_the_prompt_clears_the_line():
    """And does not leave."""
    kimi, inner = client(streamed("yes"))
    await converse(kimi, "wrong", CTRL_C, "right", ENTER)
    assert [payload["messages"][-1]["content"] for payload in inner.payloads] == ["right"]


async def test_ctrl_c_stops_the_answer_and_not_the_program():
    """What had come stays in sight, the turn is taken back, the slot is free, the next one works."""
    kimi, inner = client(
        streamed("so far", on_open=lambda: signal.raise_signal(signal.SIGINT)), streamed("again"), limits=WIDE
    )
    before = signal.getsignal(signal.SIGINT)
    chat = await converse(kimi, "first", ENTER, "second", ENTER)
    assert [message["content"] for message in chat.conversation.messages] == ["second", "again"]
    assert "so far" in shown(chat._terminal)
    assert "taken back" in shown(chat._terminal)
    assert inner.bodies[0].closed
    await asyncio.sleep(1)
    assert kimi.limiter.usage().concurrency.used == 0
    assert signal.getsignal(signal.SIGINT) is before


async def test_being_cancelled_is_not_ctrl_c():
    """Whoever cancels the session ends it."""
    task = asyncio.create_task(interruptible(asyncio.sleep(10)))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_failed_turn_is_told_and_the_conversation_goes_on():
    """In one line each; a broken stream says that it is incomplete."""
    kimi, _ = client(error(400, "invalid_request_error", "no\nway"), streamed("ha", broken=True), streamed("fine"))
    chat = await converse(kimi, "a", ENTER, "b", ENTER, "c", ENTER)
    drawn = shown(chat._terminal)
    assert "no way" in drawn
    assert "incomplete" in drawn
    assert [message["content"] for message in chat.conversation.messages] == ["c", "fine"]


async def test_commands_change_what_is_sent():
    """The system prompt and the model hold for the next turn; clear forgets the last ones."""
    kimi, inner = client(streamed("yes"))
    lines = ["a", "/system Be brief.", "/model kimi-k3", "/clear", "b", "/system -", "/system"]
    chat = await converse(kimi, *(key for line in lines for key in (line, ENTER)))
    assert inner.payloads[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "b"},
    ]
    assert inner.payloads[1]["model"] == "kimi-k3"
    assert "context 1,048,576" in shown(chat._terminal)
    assert "system: none" in shown(chat._terminal)


async def test_an_unknown_command_names_those_there_are():
    """And is not sent; a space before it says it."""
    kimi, inner = client(streamed("yes"))
    chat = await converse(kimi, "/usr/bin is what?", ENTER, " /usr/bin is what?", ENTER)
    assert "no command /usr/bin" in shown(chat._terminal)
    assert "/exit" in shown(chat._terminal)
    assert len(inner.payloads) == 1


async def test_exit_leaves():
    """What is typed after it is for the shell."""
    kimi, inner = client(streamed("yes"))
    await converse(kimi, "/exit", ENTER, "a", ENTER)
    assert inner.requests == []


async def test_what_was_saved_can_be_loaded(tmp_path):
    """With its turns; a file that is none is told, and changes nothing."""
    kimi, inner = client(streamed("yes"))
    style = Style(screen(), {"max_tokens": 77})
    path = tmp_path / "saved.json"
    await converse(kimi, "a", ENTER, f"/save {path}", ENTER, style=style)
    (tmp_path / "other.json").write_text("{}")
    lines = [f"/load {path}", f"/load {tmp_path / 'other.json'}", "/load", "/save", "/load /nowhere"]
    lines += ["/load ~nosuchuser/x", "/save ~nosuchuser/x", "b"]
    chat = await converse(kimi, *(key for line in lines for key in (line, ENTER)), style=style)
    assert [message["content"] for message in inner.payloads[-1]["messages"]] == ["a", "yes", "b"]
    assert inner.payloads[-1]["max_tokens"] == 77
    drawn = shown(chat._terminal)
    assert "is no saved conversation" in drawn
    assert drawn.count("needs the name of a file") == 2
    assert "No such file" in drawn
    assert drawn.count("~nosuchuser/x: there is no such user") == 2


async def test_usage_shows_budgets_tokens_and_money():
    """What the limiter counts, and what the answers were billed: K2.6 on .cn costs 6.50 and 27 a million."""
    kimi, _ = client(streamed("yes"), base_url="https://api.moonshot.cn/v1")
    chat = await converse(kimi, "a", ENTER, "b", ENTER, "/usage", ENTER, style=Style(screen(), {"max_tokens": 100}))
    drawn = shown(chat._terminal)
    assert "2 / 1,000" in drawn
    assert "tpd          228 / unlimited" in drawn
    assert "2,000 of prompt + 4,000 of completion" in drawn
    assert "¥0.1210 at list price" in drawn


async def test_an_answer_cut_off_is_told_in_a_conversation_too():
    """It is a turn like any other."""
    kimi, _ = client(streamed("and so", finish="length"), streamed("no", finish="content_filter"))
    chat = await converse(kimi, "a", ENTER, "b", ENTER, style=Style(screen(), {"max_tokens": 100}))
    assert "cut off at 100 tokens" in shown(chat._terminal)
    assert "ended by content_filter" in shown(chat._terminal)
    assert len(chat.conversation.messages) == 4


async def test_models_are_those_of_the_account_or_the_known_ones():
    """With their contexts, the present one marked."""
    listing = {"object": "list", "data": [{"id": "kimi-new", "context_length": 4096}, {"id": "kimi-k2.6"}]}
    kimi, _ = client(Step(content=json.dumps(listing).encode()), error(403, "permission_denied_error", "no"))
    chat = await converse(kimi, "/model", ENTER, "/model", ENTER)
    drawn = shown(chat._terminal)
    assert "kimi-new   4,096 tokens" in drawn
    assert "*  kimi-k2.6" in drawn
    assert "kimi-k2.7-code  " in drawn
    assert "262,144 tokens" in drawn


async def test_help_names_every_command():
    """With what each does."""
    kimi, _ = client(streamed("yes"))
    chat = await converse(kimi, "/help", ENTER)
    for name in chat._commands:
        assert name in shown(chat._terminal)


@pytest.mark.parametrize(
    ("typed", "completions"),
    [("/sy", ["/system"]), ("/model kimi-k2.6", ["kimi-k2.6"]), ("hello /sy", []), ("/s", ["/system", "/save"])],
)
def test_commands_and_models_complete(typed, completions):
    """Only where a command can stand."""
    completer = session._Completer(["/system", "/model", "/save"])
    found = [completion.text for completion in completer.get_completions(Document(typed), None)]
    assert found == completions


def test_files_complete(tmp_path):
    """After /load and /save."""
    (tmp_path / "saved.json").touch()
    found = session._Completer([]).get_completions(Document(f"/load {tmp_path}/sa"), None)
    assert [completion.text for completion in found] == ["ved.json"]


def test_history_is_kept_to_oneself(tmp_path, monkeypatch):
    """A file with mode 0600 in a directory with mode 0700; memory where there can be none."""
    history = session._history()
    history.append_string("hello")
    path = tmp_path / "state" / "kimi_async" / "chat_history"
    assert "hello" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.unlink()
    path.mkdir()
    assert isinstance(session._history(), InMemoryHistory)
    history.append_string("lost, but no error")


# -- real processes -------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "kimi_async", "chat", "--mock"]


@pytest.mark.real_time
def test_a_pipe_that_is_closed_ends_quietly():
    """No traceback, no message; the status is that of SIGPIPE."""
    with subprocess.Popen([*COMMAND, "hi"], stdin=subprocess.DEVNULL, stdout=-1, stderr=-1) as process:
        assert process.stdout.read(3) == "月".encode()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 141


@pytest.mark.real_time
def test_a_terminal_that_controls_another_process_can_be_written_to():
    """As ``setsid`` leaves it: its keyboard's echo is not ours to turn off."""
    terminal, ours = pty.openpty()
    with subprocess.Popen([*COMMAND, "hi"], stdin=ours, stdout=ours, stderr=ours, start_new_session=True) as process:
        os.close(ours)
        said = read_until(terminal, None)
        os.close(terminal)
    assert (process.returncode, "Traceback" in said) == (0, False)
    assert "月" in said


@pytest.mark.real_time
def test_a_conversation_in_a_real_terminal():
    """SIGINT from the keyboard stops the answer; the program takes the next question and leaves on Ctrl-D."""
    command = [*COMMAND, "--limits", "tier1", "--max-tokens", "100000", "--no-thinking"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"})
    try:
        read_until(terminal, "leaves.*> ?")
        os.write(terminal, b"tell me\r")
        read_until(terminal, "The moon rose")
        os.write(terminal, b"\x03")
        read_until(terminal, "taken back.*> ?")
        os.write(terminal, b"/usage\r")
        assert "1 stopped" in read_until(terminal, "at list price.*> ?")
        os.write(terminal, b"\x04")
        read_until(terminal, None)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(terminal)


def read_until(terminal, pattern):
    """All that is written up to a pattern, or to the end, answering what prompt_toolkit asks the terminal."""
    seen, text, until = b"", "", time.monotonic() + 20
    while pattern is None or not re.search(pattern, text, re.DOTALL):
        assert select.select([terminal], [], [], until - time.monotonic())[0], text
        try:
            part = os.read(terminal, 4096)
        except OSError:  # how Linux tells the end of a terminal
            break
        if b"\x1b[6n" in part:
            os.write(terminal, b"\x1b[1;1R")
        seen += part
        text = ESCAPES.sub("", seen.decode(errors="replace"))
    return text


def test_a_default_that_nobody_chose_fits_the_model(scripted, stdin, capsys):
    """Half of a small context is left for the prompt."""
    inner = scripted(streamed("Hello."), streamed("Hello."))
    for model in ("moonshot-v1-8k", "kimi-k2.6"):
        assert run("hi", "--model", model) == 0
    assert [payload["max_tokens"] for payload in inner.payloads] == [4_096, 8_192]


def test_a_long_line_that_has_not_ended_takes_no_longer_to_split_than_to_read():
    """Its characters are looked at once: a minute of work would it be otherwise."""
    text = "a paragraph\n\n" + "x" * 300_000
    finished, rest = split_blocks(text)
    assert "".join(finished) + rest == text
