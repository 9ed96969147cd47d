"""Options, input and exit statuses that several commands share."""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Group, Parameter

from kimi_async.errors import ConfigurationError
from kimi_async.limits import RateLimits

STDIN = "standard input"
"""What ``-`` becomes before cyclopts sees it, which takes a lone hyphen for an option."""

ANSWERED, FAILED, USAGE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130

CLOSED_PIPE = 141
"""What a shell reports of a program that went on writing to one: 128 and SIGPIPE."""

FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""Errors of a disk that has no room; there is no EDQUOT on Windows."""

DEFAULT_MODEL = "kimi-k2.6"
"""The cheapest live model of general use, November 2026."""

LIMITS = Group("Limits of the account")

LimitsName = Literal["guide", "tier0", "tier1", "tier2", "tier3", "tier4", "tier5"]


@Parameter(name="*", group=LIMITS)
@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """What the account may do."""

    limits: LimitsName | None = None
    """Kimi's limits of a recharge tier, or the guide's free account. Default: tier0, or just the numbers given."""
    concurrency: int | None = None
    """Requests in flight at once."""
    rpm: int | None = None
    """Requests a minute."""
    tpm: int | None = None
    """Tokens a minute, max_tokens included."""
    tpd: int | None = None
    """Tokens a day, max_tokens included."""
    minute: float = 60.0
    """Seconds of a minute; other than 60 only for a mock on scaled time."""
    day: float = 86_400.0
    """Seconds of a day, likewise."""

    def rate_limits(self) -> RateLimits:
        """The limits meant: those named, with the numbers given put in; with numbers alone, the rest is unlimited."""
        given = {"concurrency": self.concurrency, "rpm": self.rpm, "tpm": self.tpm, "tpd": self.tpd}
        numbers = {name: number for name, number in given.items() if number is not None}
        named = self.limits or (None if numbers else "tier0")
        base = _named(named)
        values = {budget: getattr(base, budget) for budget in given} | numbers
        return RateLimits(**values, minute=self.minute, day=self.day)


def _named(name: LimitsName | None) -> RateLimits:
    if name is None:
        return RateLimits()
    return RateLimits.guide() if name == "guide" else RateLimits.tier(int(name.removeprefix("tier")))


def default_model() -> str:
    """The model where none is named: ``KIMI_MODEL`` of the environment, else `DEFAULT_MODEL`."""
    return os.environ.get("KIMI_MODEL") or DEFAULT_MODEL


@contextlib.contextmanager
def on_disk(name: str) -> Iterator[Path]:
    """An input as a file that can be read twice: standard input, a pipe or a device is copied to one.

    Raises:
        ConfigurationError: standard input is closed.
        OSError: it cannot be copied.
    """
    path = Path(name)
    if name != STDIN and (path.is_file() or path.is_dir() or not path.exists()):
        yield path
        return
    if name == STDIN and sys.stdin is None:
        raise ConfigurationError(f"{STDIN} is closed: give the name of a file, or pipe one in")
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "input")
        try:
            with (
                contextlib.nullcontext(sys.stdin.buffer) if name == STDIN else path.open("rb") as source,
                copy.open("wb") as file,
            ):
                shutil.copyfileobj(source, file)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, f"{name}, copied to {copy}") from exc
        yield copy


def what_failed(error: OSError) -> str:
    """An error of the system in one line."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
