"""Inputs as a sequence of blocks, lines or rows that are not yet parsed, read and decompressed ahead in a thread."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Generic, TypeVar

from deconattn.data.reading.columns import cut_rows
from deconattn.data.reading.input_files import Input
from deconattn.data.reading.lines import GRID, LIMIT, TEXT_GRID, cut_lines, cut_text, first_byte
from deconattn.data.reading.sources import read_chunks

T = TypeVar("T")
_END_WAIT = 5.0  # seconds to wait for a thread that hangs in a read
_AHEAD = 8 << 20
"""Bytes of blocks that may wait, beside one of any size."""


def read_ahead(
    make: Callable[[Callable[[], bool]], Iterator[T]], size_of: Callable[[T], int], limit: int
) -> Generator[T, None, None]:
    """The items of an iterator that a thread runs ahead, until `limit` bytes wait to be taken.

    Args:
        make: makes the iterator, in the thread; what it is given says whether nobody waits for more.
        size_of: an item's bytes.
        limit: bytes of the items that wait; a single item may be larger.

    What the iterator raises is raised here, after the items before it. Closing this iterator ends the thread.
    """
    queue = _Queue(size_of, limit)

    def fill() -> None:
        try:
            for item in make(queue.is_stopped):
                if not queue.put(item):
                    return
            queue.end(None)
        except BaseException as error:
            queue.end(error)

    thread = Thread(target=fill, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield from queue.taken()
    finally:
        queue.stop()
        thread.join(_END_WAIT)


class _Queue(Generic[T]):
    def __init__(self, size_of: Callable[[T], int], limit: int) -> None:
        self._size_of, self._limit = size_of, limit
        self._items: deque[T] = deque()
        self._bytes = 0
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._changed = Condition()

    def put(self, item: T) -> bool:
        """Wait for room and add an item; False if nobody wants it."""
        size = self._size_of(item)
        with self._changed:
            while self._items and self._bytes + size > self._limit and not self._stopped:
                self._changed.wait()
            self._items.append(item)
            self._bytes += size
            self._changed.notify()
            return not self._stopped

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify()

    def is_stopped(self) -> bool:
        return self._stopped

    def taken(self) -> Iterator[T]:
        while True:
            with self._changed:
                while not self._items and not self._ended:
                    self._changed.wait()
                if not self._items:
                    break
                item = self._items.popleft()
                self._bytes -= self._size_of(item)
                self._changed.notify()
            yield item
        if self._error is not None:
            raise self._error


@dataclass(frozen=True)
class InputBlock:
    """Consecutive lines or rows of one input.

    Attributes:
        input: number of the input in the list.
        number: increases from block to block of an input, from 0 and with gaps.
        kind: "text" (the block is one document), "json" (lines) or "arrow".
        payload: whole lines, or an Arrow IPC stream of one column of texts.
        position: bytes of the input's file consumed when the block had been read.
        too_long: whether one more JSON line follows, left out because it is longer than 64 MiB.
    """

    input: int
    number: int
    kind: str
    payload: bytes
    position: int
    too_long: bool = False


def read_blocks(
    inputs: Sequence[Input], text_field: str, start: tuple[int, int] = (0, 0)
) -> Generator[InputBlock, None, None]:
    """The blocks of all inputs in order, from `start`, (input, number), or the first one after it.

    How an input is cut depends on its content only: JSON lines where a multiple of 1 MiB of decompressed bytes is
    passed, texts at multiples of 8 MiB (within a line that goes on for 8 MiB more), rows when they reach 1 MiB. What is
    before `start` in plain files of lines, row groups and Arrow files is not read; elsewhere it is read and dropped. A
    thread reads some 8 MiB ahead; closing the iterator ends it.

    Raises:
        UserError: an input that is damaged, cannot be read, changed, or has no column of that name.
    """

    def blocks(stopped: Callable[[], bool]) -> Iterator[InputBlock]:
        for index in range(start[0], len(inputs)):
            first = start[1] if index == start[0] else 0
            yield from read_input(inputs[index], text_field, index, first, stopped=stopped)

    return read_ahead(blocks, lambda block: len(block.payload), _AHEAD)


def read_input(
    source: Input,
    text_field: str,
    index: int = 0,
    first: int = 0,
    text_grid: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[InputBlock, None, None]:
    """The blocks of one input from number `first` on, without a thread.

    Args:
        index: the input's number, for the blocks.
        text_grid: bytes of text after which a new block begins; 8 MiB where not given.
        stopped: asked now and then whether to end early.
    """
    if source.kind in ("parquet", "arrow"):
        for rows in cut_rows(source, text_field, first):
            yield InputBlock(index, rows.number, "arrow", rows.content, rows.position)
        return
    grid = GRID if source.kind == "json" else text_grid or TEXT_GRID
    number = None
    with closing(read_chunks(source, first_byte(first, grid), stopped)) as chunks:
        text = source.kind == "text"
        for cell in cut_text(chunks, first, grid) if text else cut_lines(chunks, first, grid, LIMIT):
            number = cell.number
            yield InputBlock(index, number, source.kind, cell.content, cell.position, cell.too_long)
    if number is None and first == 0 and source.kind == "text":
        yield InputBlock(index, 0, "text", b"", 0)  # one document, though an empty one
