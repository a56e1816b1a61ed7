"""JSON files that are not lines: an array, or objects that span lines, made into one line a value.

The content decides. An element keeps its bytes but for line ends, which become carriage returns: white space between
values, and as wrong within a string as they were.
"""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Literal

Layout = Literal["lines", "array", "values"]
_BOM = b"\xef\xbb\xbf"
_MARK = re.compile(rb'["{}\[\],\r]')
_WITHIN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


class BadJson(ValueError):
    """A file that is no JSON as a whole; the message says why."""


def find_layout(chunks: Iterator[tuple[bytes, int]], limit: int) -> tuple[Layout, Iterator[tuple[bytes, int]]]:
    """The layout of a file, and its pieces again.

    It is an array where the first character is a bracket, and lines where the first line ends with a brace, the second
    begins with one, or there is no second; at most `limit` bytes are looked at. Otherwise objects span lines.
    """
    seen = bytearray()
    taken: list[tuple[bytes, int]] = []
    layout: Layout | None = None
    begun = False  # then only a line end tells more
    for piece in chunks:
        taken.append(piece)
        seen += piece[0]
        layout = _decide(seen) if not begun or b"\n" in piece[0] else None
        if layout is not None or len(seen) > limit:
            break
        begun = begun or not piece[0].isspace()
    return layout or "lines", chain(taken, chunks)


def _decide(seen: bytearray) -> Layout | None:
    content = seen.removeprefix(_BOM).lstrip()
    if not content:
        return None
    if content[:1] != b"{":
        return "array" if content[:1] == b"[" else "lines"
    first, end, rest = content.partition(b"\n")
    if not end:
        return None
    if first.rstrip().endswith(b"}"):
        return "lines"
    second = rest.lstrip()
    if not second:
        return None
    return "lines" if second[:1] == b"{" else "values"


def one_a_line(chunks: Iterator[tuple[bytes, int]], layout: Layout) -> Iterator[tuple[bytes, int]]:
    """The pieces of a whole file, made into one line a value; lines stay as they are.

    Raises :class:`BadJson` for an array or a last value that is not closed, and for what follows an array.
    """
    if layout == "lines":
        yield from chunks
        return
    splitter = _Array() if layout == "array" else _Values()
    first = True
    position = 0
    for chunk, position in chunks:
        yield splitter.feed(chunk.removeprefix(_BOM) if first else chunk), position
        first = False
    yield splitter.finish(), position


class _Splitter:
    """Follows strings and brackets through the pieces of a file."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self._out: list[bytes] = []
        self._chunk = b""
        self._start = 0  # of what is not out yet, in the chunk

    def feed(self, chunk: bytes) -> bytes:
        """The lines, or parts of lines, that a piece gives."""
        self._chunk, self._start = chunk.replace(b"\n", b"\r"), 0
        at = 0
        while at < len(chunk):
            if self._in_string:
                at = self._within_string(at)
                continue
            mark = _MARK.search(self._chunk, at)
            if mark is None:
                break
            at = mark.end()
            if mark[0] == b'"':
                self._in_string = True
            self._see(mark[0], at)
        self._put(len(chunk))
        out, self._out = b"".join(self._out), []
        return out

    def _within_string(self, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        match = _WITHIN_STRING.match(self._chunk, at)
        assert match is not None, "it matches nothing too"
        at = match.end()
        if at < len(self._chunk):  # otherwise the string goes on in the next piece, perhaps after a backslash
            self._escaped = self._chunk[at] != ord('"')
            self._in_string = self._escaped
        return at + 1

    def _put(self, end: int) -> None:
        self._out.append(self._chunk[self._start : end])
        self._start = end

    def _see(self, mark: bytes, end: int) -> None:
        raise NotImplementedError

    def finish(self) -> bytes:
        """The end of the last line. Raises :class:`BadJson`."""
        raise NotImplementedError


class _Values(_Splitter):
    def _see(self, mark: bytes, end: int) -> None:
        if mark in b"{[":
            self._depth += 1
        elif mark in b"}]":
            self._depth = max(self._depth - 1, 0)
        if self._depth == 0 and mark in b"}]\r":
            self._put(end)
            self._out.append(b"\n")

    def finish(self) -> bytes:
        if self._depth or self._in_string:
            raise BadJson("its last JSON object is not closed")
        return b""


class _Array(_Splitter):
    def __init__(self) -> None:
        super().__init__()
        self._blank = True  # nothing but white space since the element began
        self._elements = 0
        self._closed = False

    def _put(self, end: int) -> None:
        piece = self._chunk[self._start : end]
        blank = not piece or piece.isspace()
        if self._closed and not blank:
            raise BadJson("something follows the end of its JSON array")
        if not self._closed:
            self._blank = self._blank and blank
            self._out.append(piece)
        self._start = end

    def _see(self, mark: bytes, end: int) -> None:
        if mark in b"{[":
            self._depth += 1
            if self._depth == 1:
                self._start = end
        elif mark in b"}]":
            self._depth -= 1
            if self._depth == 0 and not self._closed:
                if mark != b"]":
                    raise BadJson("its JSON array is closed by a brace")
                self._end_element(end, last=True)
                self._closed = True
        elif mark == b"," and self._depth == 1:
            self._end_element(end, last=False)

    def _end_element(self, end: int, last: bool) -> None:
        self._put(end - 1)
        self._start = end
        if self._blank and not (last and self._elements == 0):
            self._out.append(b",")  # an element that is missing is bad, not white space
        self._out.append(b"\n")
        self._elements += 1
        self._blank = True

    def finish(self) -> bytes:
        if not self._closed:
            raise BadJson("its JSON array is not closed")
        return b""
