"""Text from files and names, made safe to show: on a terminal, in one line, in Markdown."""

import html
import re
from collections.abc import Sequence
from typing import Any, TextIO

_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but line ends and tabs, what turns the direction of writing, and halves of surrogate pairs."""
_DRAWING = re.compile(r"(\x1b\[(?:[0-9;]*m|\?25[lh]|[0-9]*A|[12]?K)|\r)")
"""What progress bars and colours need of a terminal."""


def visible(text: str) -> str:
    """Return `text` with each character that a terminal would obey, and not show, as an escape such as `\\x1b`."""
    return _HIDDEN.sub(_escape, text)


def one_line(text: object) -> str:
    """Return :func:`visible` text in which line ends and tabs are escapes, too."""
    return re.sub(r"[\n\t]", _escape, visible(str(text)))


def markdown_text(text: object) -> str:
    """Return text that Markdown, in a table too, shows as it is: no HTML, no cell's end, no link."""
    return re.sub(r"([`\[\]|])", r"\\\1", html.escape(one_line(text), quote=False))


def markdown_table(title: str, cells: Sequence[Sequence[str]]) -> str:
    """Return a heading and a table of rows of text, the columns' names first."""
    lines = ["| " + " | ".join(markdown_text(cell) for cell in row) + " |" for row in cells]
    lines.insert(1, "| --- |" + " ---: |" * (len(cells[0]) - 1))
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


class SafeStream:
    """A text stream through which no control character comes; colours and progress bars do, onto a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if self.stream.isatty():
            pieces = _DRAWING.split(text)
            text = "".join(piece if place % 2 else visible(piece) for place, piece in enumerate(pieces))
        else:
            text = visible(text)
        return self.stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def data_stream(stream: TextIO) -> TextIO:
    """Return where a command writes data, not messages: byte for byte into a pipe or a file, safe on a terminal."""
    return stream if stream.isatty() or not isinstance(stream, SafeStream) else stream.stream
