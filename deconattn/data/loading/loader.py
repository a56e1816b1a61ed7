"""Batches made ahead of their use: by a thread of this process, or by worker processes. The order is the same."""

from collections.abc import Iterable
from typing import Protocol

from deconattn.data.loading.batches import Batch, SampleStream
from deconattn.data.loading.prefetch import Prefetcher


class Loader(Protocol):
    """What the training loop sees."""

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
