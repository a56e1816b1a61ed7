"""An iterator that runs ahead in a thread of its own, within a bound of bytes."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from threading import Condition, Thread
from typing import Generic, TypeVar

T = TypeVar("T")
_END_WAIT = 5.0  # seconds to wait for a thread that hangs in a read


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
