"""Tables in Markdown, aligned so that they can be read in a terminal as well, and where they are written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a header; columns that hold numbers, but for the first of words, are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def __str__(self) -> str:
        lines = [[cell.replace("|", "\\|") for cell in line] for line in (self.header, *self.rows)]
        columns = range(len(self.header))
        widths = [max(3, *(_width(line[column]) for line in lines)) for column in columns]
        right = [column >= self.words and any(_NUMBER.match(line[column]) for line in lines[1:]) for column in columns]
        rule = ["-" * (width - 1) + ":" if of else "-" * width for width, of in zip(widths, right, strict=True)]
        return "\n".join(
            "| " + " | ".join(_padded(line, widths, right)) + " |" for line in (lines[0], rule, *lines[1:])
        )


_NUMBER = re.compile(r"\**-?\d")


def bold(text: str) -> str:
    """In Markdown."""
    return f"**{text}**" if text else ""


def replaced(text: str, name: str, content: str) -> str | None:
    """The text with another part between ``<!-- name -->`` and ``<!-- /name -->``; None without such markers."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    found = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    return found.sub(lambda match: f"{begin}\n\n{content}\n\n{end}", text) if found.search(text) else None


def _padded(line: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    cells = []
    for cell, width, of in zip(line, widths, right, strict=True):
        blank = " " * (width - _width(cell))
        cells.append(blank + cell if of else cell + blank)
    return cells


def _width(cell: str) -> int:
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in cell)
