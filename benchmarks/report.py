"""Results: as JSON with everything that was measured, as tables for the terminal and for this folder's README."""

import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from unicodedata import east_asian_width

FOLDER = Path(__file__).parent
PACKAGES = ("kimi_async", "httpx", "openai", "aiolimiter", "uvicorn", "uvloop")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a header; the first column is words, the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(_width(line[column]) for line in lines) for column in range(len(self.header))]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join("| " + " | ".join(_padded(line, widths)) + " |" for line in (self.header, rule, *self.rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one run of a scenario found.

    Attributes:
        name: of the result's file and of the README's markers.
        parameters: all that is needed to run it again, the seed included.
        summary: a sentence or table each, in order.
        samples: every single measurement.
    """

    name: str
    parameters: dict[str, object]
    summary: Sequence[str | Table]
    samples: Sequence[dict[str, object]]
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.summary))

    def publish(self) -> None:
        """Print it, keep it as JSON, and rewrite its part of the README."""
        print(f"\n{self.name}\n\n{self}\n")
        content = {
            "scenario": self.name,
            "date": self.date,
            "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
            "machine": machine(),
            "versions": {package: version(package) for package in PACKAGES},
            "parameters": self.parameters,
            "samples": list(self.samples),
        }
        path = FOLDER / "results" / f"{self.name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        readme = FOLDER / "README.md"
        provenance = f"{self.date[:10]}, {machine()}"
        text = replaced(readme.read_text(encoding="utf-8"), self.name, f"{self}\n\n*{provenance}*")
        readme.write_text(text, encoding="utf-8")


def replaced(text: str, name: str, content: str) -> str:
    """``text`` with what stands between the markers ``<!-- name -->`` and ``<!-- /name -->`` replaced.

    Raises:
        ValueError: it has no such markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    found = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if not found.search(text):
        raise ValueError(f"no {begin} … {end} to write the tables between")
    return found.sub(lambda match: f"{begin}\n\n{content}\n\n{end}", text)


def spread(values: Sequence[float], digits: int) -> str:
    """The median, and the least and the greatest where they differ: ``1.42 (1.39 to 1.51)``."""
    median, least, greatest = (
        f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return median if least == greatest else f"{median} ({least} to {greatest})"


def machine() -> str:
    """Processor, cores, system and Python, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{_processor()}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    blanks = [" " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)]
    return [line[0] + blanks[0], *(blank + cell for blank, cell in zip(blanks[1:], line[1:], strict=True))]


def _width(cell: str) -> int:
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in cell)
