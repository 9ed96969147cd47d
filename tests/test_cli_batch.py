"""``kimi-async batch`` where its input, its output or its screen is no ordinary file: pipes, full disks, nothing."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading

import pytest

from kimi_async.batch import OutputFile
from kimi_async.cli import main, options
from kimi_async.mock import MockSettings, spawn

from .test_batch_output import HalfFull
from .test_cli import LIMITS, OPTIONS, environment, prompts, results, wait_for_lines

pytestmark = pytest.mark.real_time

MODEL = ["--model", "kimi-k2.6", "--max-tokens", "20"]
FULL = "/dev/full"
COMMAND = sys.modules["kimi_async.cli.batch"]  # whose name in the package is the function's


@pytest.fixture(scope="module")
def url():
    """A gateway that answers after 20 ms."""
    with spawn(MockSettings(limits=LIMITS, latency=0.02)) as url:
        yield url


@pytest.fixture
def answered(url, monkeypatch, capsys):
    """Run the command in this process; its exit status and what it wrote to both outputs."""
    monkeypatch.setenv("MOONSHOT_BASE_URL", url)
    monkeypatch.setenv("MOONSHOT_API_KEY", "sk-test")

    def run(*arguments):
        with pytest.raises(SystemExit) as exited:
            main(["batch", *map(str, arguments), *MODEL, *OPTIONS])
        return exited.value.code, *capsys.readouterr()

    return run


def shell(url, line, *arguments):
    """A command line of bash, in which ``$@`` is ours; its statuses, and what it wrote to standard error."""
    command = [sys.executable, "-m", "kimi_async", *map(str, arguments), *OPTIONS]
    script = f"{line}; echo ${{PIPESTATUS[*]}}"
    run = subprocess.run(
        ["bash", "-c", script, "bash", *command],
        env=environment(url, PYTHONUNBUFFERED=""),  # the developer's may be set
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return run.stdout.splitlines()[-1], run.stderr


# -- input ----------------------------------------------------------------------------------------------------


def test_a_pipe_is_read_once_and_answered(answered, tmp_path):
    """Whatever its name; it could not be opened a second time."""
    fifo, out = tmp_path / "fifo", tmp_path / "out.jsonl"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_text, args=('"a"\n"b"\n',))
    writer.start()
    status, said, _ = answered(fifo, "-o", out)
    writer.join()
    assert (status, results(out).keys()) == (0, {"line-1", "line-2"})
    assert "answered  2 of 2" in said


def test_a_substituted_process_and_the_name_of_standard_input_are_pipes(url, tmp_path):
    """As the shell makes them."""
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    arguments = ["-o", first, *MODEL, "--quiet"]
    assert shell(url, """"${@:1:4}" <(echo '"a"') "${@:5}" """, "batch", *arguments) == ("0", "")
    arguments = ["-o", second, *MODEL, "--quiet"]
    assert shell(url, """echo '"a"' | "${@:1:4}" /dev/stdin "${@:5}" """, "batch", *arguments) == ("0 0", "")
    assert len(results(first)) == len(results(second)) == 1


def test_lines_that_are_gone_when_they_are_to_be_sent_are_no_success(answered, tmp_path, monkeypatch):
    """Somebody wrote the file anew meanwhile: exit status 3, with their number."""
    file, out = prompts(tmp_path, 3), tmp_path / "out.jsonl"

    class Shortened(OutputFile):
        def __init__(self, path):
            super().__init__(path)
            file.write_text(file.read_text().splitlines()[0])

    monkeypatch.setattr(COMMAND, "OutputFile", Shortened)
    status, _, said = answered(file, "-o", out)
    assert (status, len(results(out))) == (3, 1)
    assert "2 of its lines are gone; run the same command again to go on" in said


@pytest.mark.parametrize("command", [["batch", "-", "-o", "out.jsonl"], ["count", "-"]])
def test_a_standard_input_that_is_closed_is_told(monkeypatch, tmp_path, capsys, command):
    """``<&-`` in a shell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit) as exited:
        main(command)
    assert exited.value.code == 2
    assert "standard input is closed" in capsys.readouterr().err


def test_a_pipe_that_does_not_fit_on_the_disk_stops_with_the_name_of_its_copy(answered, tmp_path, monkeypatch):
    """Exit status 3: a full disk is no mistake of the user."""

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(options.shutil, "copyfileobj", full)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"a"')))
    status, _, said = answered("-", "-o", tmp_path / "out.jsonl")
    assert status == 3
    assert "kimi-async: standard input, copied to /" in said
    assert "input: No space left on device" in said


# -- output ---------------------------------------------------------------------------------------------------


def test_a_hyphen_is_standard_input_only_where_a_file_is_read(answered, tmp_path, monkeypatch, capsys):
    """As the value of an option it is itself; answers need a file."""
    monkeypatch.chdir(tmp_path)
    status, _, said = answered(prompts(tmp_path, 1), "-o", "-")
    assert status == 2
    assert "OUTPUT is read again when a run is resumed: name a file for it" in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    tmp_path.joinpath("in.jsonl").unlink()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"a"')))
    assert answered("--quiet", "-", "-o", "out.jsonl")[0] == 0


def test_the_value_of_an_option_may_be_a_hyphen(monkeypatch):
    """It is not the words that stand for standard input."""
    taken = {}
    monkeypatch.setattr(COMMAND, "Defaults", lambda **fields: taken.update(fields) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(["batch", "in.jsonl", "-o", "out.jsonl", "--system", "-"])
    assert taken["system"] == "-"


def test_a_disk_that_is_full_when_a_run_is_resumed_stops_it_with_the_files_name(answered, tmp_path, monkeypatch):
    """Exit status 3, and the file is as it was."""
    file, out = prompts(tmp_path, 1), tmp_path / "out.jsonl"
    assert answered(file, "-o", out)[0] == 0
    before = out.read_bytes() * 2
    out.write_bytes(before)  # a name twice: to be repaired

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        status, _, said = answered(file, "-o", out)
    assert status == 3
    assert f"kimi-async: {out}: No space left on device" in said
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_disk_that_fills_while_a_run_is_under_way_is_told_with_the_files_name(answered, tmp_path, monkeypatch):
    """Exit status 3."""

    class Full(OutputFile):
        def __init__(self, path):
            super().__init__(path)
            self._file = HalfFull(self._file)

    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(COMMAND, "OutputFile", Full)
    status, _, said = answered(prompts(tmp_path, 1), "-o", out)
    assert status == 3
    assert f"stopped: {out}: No space left on device; run the same command again" in said


# -- the screen -----------------------------------------------------------------------------------------------


def test_a_standard_error_that_nobody_reads_any_more_ends_no_batch(url, tmp_path):
    """What is in flight is paid for: it is waited for, and written, though nothing can be said of it."""
    out = tmp_path / "out.jsonl"
    quick = "from kimi_async.cli import main, progress; progress.PLAIN_REFRESH = 0.05; main()"
    command = [sys.executable, "-c", quick, "batch", str(prompts(tmp_path, 600)), "-o", str(out), *MODEL, *OPTIONS]
    with subprocess.Popen(command, env=environment(url), stdout=subprocess.DEVNULL, stderr=-1, text=True) as process:
        assert " done, " in process.stderr.readline()
        process.stderr.close()
        assert process.wait(60) == 0
    assert len(results(out)) == 600


def test_an_interrupt_that_cannot_be_acknowledged_still_finishes_what_is_in_flight(url, tmp_path):
    """Ctrl-C in ``2>&1 | tee log`` ends tee first."""
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "kimi_async", "batch", str(prompts(tmp_path, 600)), "-o", str(out)]
    screen = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, *MODEL, *OPTIONS], env=environment(url), **screen) as process:
        wait_for_lines(out, 50)
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert 50 <= len(results(out)) < 600


@pytest.mark.parametrize("said", ["batch", "limits", "help"])
def test_a_standard_output_that_nobody_reads_has_the_status_of_sigpipe(url, tmp_path, said):
    """Not one of the interpreter's own, with a complaint; the answers are in their file."""
    out = tmp_path / "out.jsonl"
    if said == "batch":
        status, stderr = shell(url, '"$@" | true', "batch", prompts(tmp_path, 2), "-o", out, *MODEL)
        assert len(results(out)) == 2
    elif said == "limits":
        ledger = f"sqlite://{tmp_path}/ledger.sqlite3"
        status, stderr = shell(url, f'"${{@:1:4}}" --json --ledger {ledger} | sleep 0', "limits")
    else:
        status, stderr = shell(url, '"${@:1:4}" --help | sleep 0', "batch")
    assert (status, stderr) == ("141 0", "")


@pytest.mark.skipif(not os.path.exists(FULL), reason="Linux has it")  # noqa: PTH110 - a name, as a shell has it
def test_a_standard_output_that_is_full_is_told(url, tmp_path):
    """In a line, and by the status of a full disk."""
    out = tmp_path / "out.jsonl"
    status, stderr = shell(url, f'"$@" > {FULL}', "batch", prompts(tmp_path, 2), "-o", out, *MODEL)
    assert (status, stderr) == ("3", "kimi-async: standard output: No space left on device\n")
    assert len(results(out)) == 2


def test_a_summary_that_the_locale_cannot_spell_is_shown_nevertheless(answered, tmp_path, monkeypatch):
    """GBK has no half-width yen sign."""
    written = io.BytesIO()
    monkeypatch.setattr(COMMAND, "currency_of", lambda base_url: "CNY")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="gbk"))
    assert answered(prompts(tmp_path, 1), "-o", tmp_path / "out.jsonl")[0] == 0
    assert b"money     ?0.00" in written.getvalue()
