"""The file of answers: appended line by line, repaired and resumed."""

import errno
import fcntl
import json
import os

import pytest

from kimi_async.batch.output import OutputFile
from kimi_async.chat import ChatCompletion
from kimi_async.errors import BadRequestError, ConfigurationError, RequestTooLarge
from kimi_async.jsonl import BadLine, BatchResult

COMPLETION = {
    "id": "chatcmpl-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "好"}, "finish_reason": "stop"}],
    "x_new_field": {"kept": True},
}


def answered(name):
    """A result with an answer."""
    return BatchResult(custom_id=name, completion=ChatCompletion.model_validate(COMPLETION))


def failed(name):
    """A result without one."""
    error = BadRequestError("400: no", status_code=400, request_id="r-1", body='{"error": {}}')
    return BatchResult(custom_id=name, error=error)


def write(path, *outcomes):
    """Open, append, close."""
    with OutputFile(path) as output:
        for outcome in outcomes:
            output.write(outcome)


def lines(path):
    """The file's lines, parsed."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(path):
    """The names in the file, in order."""
    return [line["custom_id"] for line in lines(path)]


@pytest.fixture
def path(tmp_path):
    """A place for a file."""
    return tmp_path / "out.jsonl"


def test_an_answer_is_written_in_batch_output_form(path):
    """With the body as Kimi sent it, unknown fields included."""
    write(path, answered("a"))
    (line,) = lines(path)
    assert line["custom_id"] == "a"
    assert line["response"] == {"status_code": 200, "request_id": None, "body": COMPLETION}
    assert line["error"] is None
    assert line["id"].startswith("batch_req_")


def test_a_failure_says_what_and_keeps_the_answer_that_said_so(path):
    """An error status has a response; a request that was never sent has none."""
    write(path, failed("a"), BatchResult(custom_id="b", error=RequestTooLarge("no", needed=2, limit=1, budget="tpm")))
    sent, unsent = lines(path)
    assert sent["error"] == {"code": "BadRequestError", "message": "400: no"}
    assert sent["response"] == {"status_code": 400, "request_id": "r-1", "body": '{"error": {}}'}
    assert (unsent["response"], unsent["error"]["code"]) == (None, "RequestTooLarge")


def test_a_bad_line_is_an_error_with_its_number(path):
    """So that it can be mended."""
    write(path, BadLine(7, "line-7", "not JSON"))
    assert lines(path)[0]["error"] == {"code": "invalid_line", "message": "line 7: not JSON", "line": 7}


def test_each_line_is_in_the_file_at_once(path):
    """A killed run loses what was in flight, and nothing else."""
    with OutputFile(path) as output:
        output.write(answered("a"))
        assert names(path) == ["a"]


def test_what_is_answered_is_known_again(path):
    """And only that: failures are tried again."""
    write(path, answered("a"), failed("b"), answered("c"))
    with OutputFile(path) as output:
        assert output.answered == {"a", "c"}


def test_failed_lines_make_room_for_their_second_try(path):
    """Every name is in the file once."""
    write(path, answered("a"), failed("b"))
    write(path, answered("b"))
    assert names(path) == ["a", "b"]


@pytest.mark.parametrize("zeros", [0, 100])
@pytest.mark.parametrize("cut", [1, 20, 60, -1, -12, -30])
def test_a_torn_last_line_is_cut_off(path, cut, zeros):
    """As a kill in the middle of a write leaves it, or the end of the whole machine."""
    write(path, answered("a"), answered("b"))
    content = path.read_bytes()
    second = content.index(b"\n") + 1
    path.write_bytes(content[: second - cut if cut < 0 else -cut] + bytes(zeros))
    with OutputFile(path) as output:
        torn = output.answered
    write(path, *(answered(name) for name in ("a", "b") if name not in torn))
    assert names(path) == ["a", "b"]


def test_a_last_line_that_only_lacks_its_end_is_kept(path):
    """The newline was lost, the answer was not."""
    write(path, answered("a"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write(path, answered("b"))
    assert names(path) == ["a", "b"]


def test_a_name_that_was_answered_twice_stays_once(path):
    """Whatever older tools appended."""
    write(path, answered("a"))
    path.write_bytes(path.read_bytes() * 2)
    with OutputFile(path):
        assert names(path) == ["a"]


@pytest.mark.parametrize(
    "content",
    [
        "hello\n",
        '{"custom_id": [], "error": null}\n',
        '{"some": "json"}\n',
        "[1]\n",
        '{"custom_id": "a"}\n"x"',
        "my notes",
        "\0" * 9,
        '{"model": "kimi-k2.6"}',
        '{"prompt": "tor',
        '{"id":"batch_req_not_ours"}',
        "[" * 100_000,
    ],
)
def test_a_file_of_something_else_is_refused_untouched(path, content):
    """With its line number."""
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"out\.jsonl:1 is no line of answers"):
        OutputFile(path)
    assert path.read_text() == content


def test_two_runs_may_not_write_one_file(path):
    """The second is told so."""
    with OutputFile(path), pytest.raises(ConfigurationError, match="being written by another run"):
        OutputFile(path)


def test_what_cannot_be_written_whole_is_not_written_at_all(path, monkeypatch):
    """The disk is full in the middle of a line, and has room again for the next one."""
    with OutputFile(path) as output:
        output.write(answered("a"))
        whole = output._file
        monkeypatch.setattr(output, "_file", HalfFull(whole))
        with pytest.raises(OSError, match=r"No space left.*out\.jsonl"):
            output.write(answered("b"))
        monkeypatch.setattr(output, "_file", whole)
        output.write(answered("c"))
    assert names(path) == ["a", "c"]


class HalfFull:
    """Takes ten bytes, and then no more."""

    def __init__(self, file):
        self.fileno, self.close, self._file, self._full = file.fileno, file.close, file, False

    def write(self, data):
        if self._full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._full = True
        return self._file.write(data[:10])


def test_a_run_that_opened_a_file_which_was_then_replaced_opens_the_new_one(path, monkeypatch):
    """Between its opening and its lock another run repaired the file, by putting a copy in its place."""
    write(path, answered("a"))
    lock = fcntl.flock

    def replaced_meanwhile(file, how):
        copy = path.with_suffix(".copy")
        copy.write_bytes(path.read_bytes())
        copy.replace(path)
        monkeypatch.setattr(fcntl, "flock", lock)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", replaced_meanwhile)
    write(path, answered("b"))
    assert names(path) == ["a", "b"]


def test_a_link_stays_one_when_its_file_is_repaired(path, tmp_path):
    """The file behind it is replaced."""
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    write(link, failed("a"))
    write(link, answered("a"))
    assert link.is_symlink()
    assert names(path) == ["a"]


def test_what_is_repaired_is_on_the_disk_before_it_takes_the_files_place(path, monkeypatch):
    """Or a crash of the machine could leave neither."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.pread(descriptor, 10_000, 0)))
    write(path, answered("a"), failed("b"))
    write(path)
    assert synced == [path.read_bytes()]
    assert names(path) == ["a"]


def test_repairing_keeps_the_files_mode_and_leaves_nothing_behind(path):
    """The copy takes the file's place, permissions and all."""
    write(path, failed("a"))
    path.chmod(0o600)
    write(path, answered("a"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["out.jsonl"]
