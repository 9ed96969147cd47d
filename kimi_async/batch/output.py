"""The file of answers: lines in Batch output form, appended one by one, so that a run can be resumed.

``{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}``; ``error`` is null where the
request was answered, else ``{"code", "message"}``.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Self

from pydantic_core import to_json

from kimi_async.errors import ConfigurationError
from kimi_async.jsonl import BadLine, BatchResult, output_line

try:
    import fcntl
except ImportError:  # Windows: two runs on one file are not noticed there
    fcntl = None  # type: ignore[assignment]

BEGINNING = b'{"id":"batch_req_'
"""Of each line that is written here; what begins otherwise was not torn by a run that was killed."""


class OutputFile:
    """Answers that are there already, and those to come.

    Opening it repairs what a killed run left behind: a torn last line is cut off, and the lines of failed requests
    are dropped, for these are tried again. What is kept is written beside the file and moved into its place, so
    nothing is lost if that is interrupted too.

    Args:
        path: created if need be.

    Attributes:
        answered: the ``custom_id`` of every request that needs no second try.

    Raises:
        ConfigurationError: the file holds something else than answers, or another run is writing it.
        OSError: it cannot be written; it names the file.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{path} is no regular file; answers are read again when a run is resumed")
        self.path = path.resolve()  # a link stays one when the file behind it is replaced
        self.answered: set[str] = set()
        self._file = self._locked()
        try:
            if not self._survey():
                with _naming(self.path):
                    self._rewrite()
        except BaseException:
            self._file.close()
            raise

    def _locked(self) -> FileIO:
        """The file opened to append, for this run alone."""
        while True:
            file = FileIO(self.path, "ab")
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                    return file
                file.close()  # another run has put a repaired copy in its place since it was opened
            except BlockingIOError as exc:
                file.close()
                raise ConfigurationError(f"{self.path} is being written by another run; wait for it") from exc

    def _survey(self) -> bool:
        """Note what is answered; whether the file can be appended to as it is."""
        sound = True
        for raw, custom_id in self._lines():
            if custom_id is None or custom_id in self.answered:
                sound = False
            else:
                self.answered.add(custom_id)
                sound = sound and raw.endswith(b"\n")
        return sound

    def _lines(self) -> Iterator[tuple[bytes, str | None]]:
        """Each line with the ``custom_id`` that it answers; None for one to drop."""
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = json.loads(raw)
                    custom_id, failed = line["custom_id"], line["error"] is not None
                    if not isinstance(custom_id, str):
                        raise TypeError("no name")  # noqa: TRY301 - one of the ways in which it is no such line
                except (ValueError, TypeError, KeyError, RecursionError) as exc:
                    if isinstance(exc, ValueError) and _torn(raw, number):
                        yield raw, None
                        return
                    raise ConfigurationError(
                        f"{self.path}:{number} is no line of answers; choose another OUTPUT, or move this file away"
                    ) from exc
                yield raw, None if failed else custom_id

    def _rewrite(self) -> None:
        self.answered.clear()  # and filled again, line by line: there may be millions, which need not be held twice
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.", delete=False) as copy:
            try:
                for raw, custom_id in self._lines():
                    if custom_id is not None and custom_id not in self.answered:
                        self.answered.add(custom_id)
                        copy.write(raw.rstrip(b"\r\n") + b"\n")
                copy.flush()
                os.fsync(copy.fileno())  # or a crash of the machine could leave an empty file in the old one's place
                os.chmod(copy.name, self.path.stat().st_mode & 0o777)  # noqa: PTH101 - copy has a name, no path
                Path(copy.name).replace(self.path)
            except BaseException:
                Path(copy.name).unlink(missing_ok=True)
                raise
        self._file.close()
        self._file = self._locked()

    def write(self, outcome: BatchResult | BadLine) -> None:
        """Append one line; it is with the operating system when this returns.

        Raises:
            OSError: it cannot be written, and nothing of it is; names the file.
        """
        line = to_json(output_line(outcome)) + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            with _naming(self.path):
                while line:
                    line = line[self._file.write(line) :]
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _torn(raw: bytes, number: int) -> bool:
    """Whether a line that is no JSON is the beginning of one that a killed run was writing.

    Where the whole machine went down, zeros may stand for what was never on the disk.
    """
    written = raw.rstrip(b"\0")
    ours = written[: len(BEGINNING)] == BEGINNING[: len(written)] and bool(written or number > 1)
    return ours and not raw.endswith(b"\n")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of writing, which know no file, name this one."""
    try:
        yield
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, str(path)) from exc
