"""Batches made ahead of their use: by a thread of this process, or by worker processes. The order is the same."""

import threading
from collections.abc import Iterable, Iterator
from queue import Full, Queue
from typing import Protocol

from deconattn.data.loading.batches import Batch, SampleStream

_SECONDS_BETWEEN_LOOKS = 0.1


class Prefetcher:
    """The batches of an iterator in their order, up to `ahead` of them made before they are asked for.

    What the iterator raises is raised where the batch is asked for. Close it, or the thread lives on.

    Args:
        pin: put the tensors where a GPU can fetch them while it computes.
    """

    def __init__(self, batches: Iterator[Batch], ahead: int, pin: bool = False) -> None:
        self._queue: Queue[Batch | BaseException] = Queue(maxsize=max(1, ahead))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches, pin), name="prefetch", daemon=True)
        self._thread.start()

    def take(self, count: int) -> list[Batch]:
        """The next batches.

        Raises:
            StopIteration: the iterator has fewer.
        """
        return [self._next() for _ in range(count)]

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _next(self) -> Batch:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._put(item)  # for whoever asks again
            raise item
        return item

    def _fill(self, batches: Iterator[Batch], pin: bool) -> None:
        try:
            for batch in batches:
                if not self._put(batch.pinned() if pin else batch):
                    return
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        """Whether there was room before the end."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_SECONDS_BETWEEN_LOOKS)
                return True
            except Full:
                continue
        return False


class Loader(Protocol):
    """Interface of the training loop to batches made ahead."""

    def take(self, count: int) -> list[Batch]:
        """The next batches; StopIteration if there are fewer. UserError for data that can no longer be read."""
        ...

    def close(self) -> None:
        """End the thread or the processes."""
        ...


def open_loader(
    stream: SampleStream, numbers: Iterable[range], doc_mask: bool, workers: int, ahead: int, pin: bool
) -> Loader:
    """Batches of the samples `numbers`, in order.

    Args:
        workers: processes that make them; 0 is a thread of this one, which is enough for local files.
        ahead: batches made before they are asked for, at least.
        pin: put the tensors where a GPU can fetch them while it computes.
    """
    if workers:
        from deconattn.data.loading.workers import WorkerLoader

        return WorkerLoader(stream, numbers, doc_mask, workers, ahead, pin)
    return Prefetcher((stream.batch(batch, doc_mask) for batch in numbers), ahead, pin)
