"""Markdown that is still being written, taken apart into blocks that no further text can change."""

import re
from itertools import pairwise

from markdown_it import MarkdownIt

_PARSER = MarkdownIt().enable(["strikethrough", "table"]).disable("inline")
"""As rich has it, but for what is inside of a block."""

_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)")


def split_blocks(text: str) -> tuple[list[str], str]:
    """The finished blocks of a text, and the rest; joined they are the text.

    A block is a paragraph, a whole fence of code, a list, a table, a quote or a heading. It is finished when the
    next one has begun: CommonMark is read line by line, and a block once closed stays so. The last line decides
    nothing before its newline, for "#" may become a heading or a hashtag.
    """
    complete = max(text.rfind("\n"), text.rfind("\r")) + 1
    lines = _LINE.findall(text[:complete])  # each match ends in a newline: linear, however long the last line
    starts = [token.map[0] for token in _PARSER.parse("".join(lines)) if token.map and token.level == 0]
    bounds = [0, *starts[1:]]
    finished = ["".join(lines[begin:end]) for begin, end in pairwise(bounds)]
    return finished, text[sum(map(len, finished)) :]
