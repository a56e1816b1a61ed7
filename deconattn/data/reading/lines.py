"""A stream of bytes, cut after line ends on a grid, so that where it is cut depends on its content alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

GRID = 1 << 20
"""Bytes from one block of JSON lines to the next, about."""
TEXT_GRID = 1 << 23
"""Bytes from one block of a text to the next, each a document: what is tokenized at once is paid for in memory. A line
that goes on for as many more is cut."""
LIMIT = 1 << 26
"""Bytes of the longest JSON line that is kept."""
_WORD = 1 << 12  # bytes in which a space is looked for, where a line is cut
_CONTINUATION = range(0x80, 0xC0)  # bytes of a UTF-8 character after its first


@dataclass(frozen=True)
class GridCell:
    """The lines that begin within one cell of the grid.

    Attributes:
        number: index of the cell; a cell in which no line begins is left out.
        content: whole lines, the stream's last one with or without its line end.
        too_long: whether one more line follows, left out because it is beyond the limit.
        position: file bytes consumed when the cell had been read.
    """

    number: int
    content: bytes
    too_long: bool
    position: int


def first_byte(start: int, grid: int) -> int:
    """The stream's byte from which :func:`cut_lines` must read to find cell `start`."""
    return max(start * grid - 1, 0)


def cut_lines(chunks: Iterable[tuple[bytes, int]], start: int, grid: int, limit: int) -> Iterator[GridCell]:
    """The cells from number `start` on, of a stream whose pieces begin with byte `first_byte(start, grid)`.

    Args:
        chunks: pieces of any size, each with the file bytes consumed.
        start: the first cell that is wanted.
        grid: bytes of a cell.
        limit: bytes of the longest line that is kept, its end included; at least `grid`.
    """
    begin = first_byte(start, grid)  # of what is pending, in the stream
    target = begin + 1 if start else grid  # it ends with the first line end at target - 1 or beyond
    wanted = start == 0  # otherwise the first line end only shows where the cell begins
    pending = _Pending(limit)
    position = 0
    for chunk, position in chunks:
        at = 0
        while at < len(chunk):
            seen = begin + pending.size
            end = chunk.find(b"\n", at + max(target - 1 - seen, 0)) + 1
            pending.add(chunk[at : end or len(chunk)])
            if not end:
                break
            if wanted:
                yield GridCell(begin // grid, *pending.content(), position)
            begin, at = begin + pending.size, end
            target = (begin // grid + 1) * grid
            wanted, pending = True, _Pending(limit)
    if wanted and pending.size:
        yield GridCell(begin // grid, *pending.content(), position)


def cut_text(chunks: Iterable[tuple[bytes, int]], start: int, grid: int) -> Iterator[GridCell]:
    """The cells from number `start` on, as :func:`cut_lines`, of a text of which nothing is left out.

    Where no line ends within `grid` bytes after a multiple of `grid` the text is cut there: before the next space, or,
    if there is none near, between two characters. So where it is cut depends on the bytes near by alone.
    """
    begin = first_byte(start, grid)
    target = begin + 1 if start else grid
    wanted = start == 0
    pending = bytearray()  # from `begin` on
    searched = position = 0
    for chunk, position in chunks:
        pending += chunk
        while len(pending) >= (least := target - begin):
            end = pending.find(b"\n", max(least - 1, searched), least + grid - 1) + 1
            if not end and len(pending) < least + grid:
                searched = len(pending)
                break
            cut = end or _place_in_line(pending, least, least + min(grid, _WORD))
            if wanted:
                yield GridCell(begin // grid, bytes(pending[:cut]), False, position)
            del pending[:cut]
            begin, wanted, searched = begin + cut, True, 0
            target = (begin // grid + 1) * grid
    if wanted and pending:
        yield GridCell(begin // grid, bytes(pending), False, position)


def _place_in_line(text: bytearray, first: int, last: int) -> int:
    if (space := text.find(b" ", first, last)) >= 0:
        return space
    return next((place for place in range(first, min(first + 4, last)) if text[place] not in _CONTINUATION), first)


class _Pending:
    """The pieces of a cell that is not whole yet.

    Only its last line can be beyond the limit: any other one ends within the cell.
    """

    def __init__(self, limit: int) -> None:
        self.size = 0  # bytes of the stream, kept or not
        self._limit = limit
        self._pieces: list[bytes] = []
        self._last_line: int | None = None  # where it begins; known once it may be too long
        self._too_long = False

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._too_long:
            return
        self._pieces.append(piece)
        if self.size <= self._limit:
            return
        if self._last_line is None:
            self._last_line = self._find_last_line()
        if self.size - self._last_line > self._limit:
            self._pieces = [b"".join(_first_bytes(self._pieces, self._last_line))]
            self._too_long = True

    def _find_last_line(self) -> int:
        start = self.size
        for piece in reversed(self._pieces):
            start -= len(piece)
            # The very last byte is the line's own end, if any.
            if end := piece.rfind(b"\n", 0, self.size - 1 - start) + 1:
                return start + end
        return 0

    def content(self) -> tuple[bytes, bool]:
        return b"".join(self._pieces), self._too_long


def _first_bytes(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    for piece in pieces:
        if count <= 0:
            return
        yield piece[:count]
        count -= len(piece)
