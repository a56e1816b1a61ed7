"""Batches made ahead of their use: by a thread of this process, or by worker processes. The order is the same.

Worker processes run under torch's DataLoader: worker w of n makes every n-th batch, and batches are handed out in
order, so the order does not depend on n. A slow disk makes everybody wait; there is no time limit.
"""

import math
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from queue import Full, Queue
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing import get_context
from torch.utils.data import DataLoader, Dataset

from deconattn.data.loading.batches import Batch, Stream
from deconattn.errors import UserError

_SECONDS_BETWEEN_LOOKS = 0.1


class WorkerLoader:
    """The batches of the samples `numbers` in order, made by `workers` processes (a Loader, see `loading`).

    The processes are forked from a server of torch's own making: a training process has threads and a GPU, which no
    fork survives. What goes wrong in one is raised where its batch is asked for.
    """

    def __init__(
        self, stream: Stream, numbers: Iterable[range], doc_mask: bool, workers: int, ahead: int, pin: bool
    ) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(["torch", __name__])  # imported once, not once a worker
        before = set(multiprocessing.active_children())
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # how many is the user's choice
        loader: DataLoader[Any] = DataLoader(
            _Samples(stream, doc_mask),
            batch_size=None,  # an item is a batch already
            sampler=_Once(numbers),
            num_workers=workers,
            prefetch_factor=max(2, math.ceil(ahead / workers)),
            pin_memory=pin,
            multiprocessing_context=context,
            worker_init_fn=_live_and_die_with_the_trainer,
        )
        self._batches: Iterator[Tensor | Exception] | None = None
        try:
            self._batches = iter(loader)
        except (RuntimeError, OSError, EOFError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the workers of --loader-workers {workers} did not start ({reason}): free memory and /dev/shm, or use "
                "--loader-workers 0"
            ) from None
        self._processes = set(multiprocessing.active_children()) - before

    def take(self, count: int) -> list[Batch]:
        """The next batches.

        Raises:
            StopIteration: there are fewer.
            UserError: a worker died, or its data can no longer be read.
        """
        return [self._next() for _ in range(count)]

    def close(self) -> None:
        """End the processes, also one that waits for a disk."""
        self._batches = None
        for process in self._processes:
            process.kill()
            process.join()

    def _next(self) -> Batch:
        if self._batches is None:
            raise StopIteration
        try:
            item = next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:  # its own errors a worker returns
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"a worker of --loader-workers died ({reason}): look for the cause in the system's log (memory or "
                "/dev/shm exhausted, a disk that failed), or use --loader-workers 0; then resume the run"
            ) from None
        if isinstance(item, Exception):
            raise item
        return Batch.of(item)


class _Samples(Dataset[Any]):
    """Sample numbers of a batch -> its fields in one tensor, which costs one file descriptor to hand over; or what was
    raised, since torch would make a page of it."""

    def __init__(self, stream: Stream, doc_mask: bool) -> None:
        self._stream, self._doc_mask = stream, doc_mask

    def __getitem__(self, numbers: range) -> Tensor | Exception:
        try:
            return torch.from_numpy(self._stream.arrays(numbers, self._doc_mask))
        except Exception as error:
            return error


class _Once:
    """Sample numbers as a sampler: iterated once, of unknown length."""

    def __init__(self, numbers: Iterable[range]) -> None:
        self._numbers = numbers

    def __iter__(self) -> Iterator[range]:
        return iter(self._numbers)


def _live_and_die_with_the_trainer(worker: int) -> None:
    # Ctrl-C reaches every process of a terminal; the trainer finishes its step and needs its batches for it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # torch's workers look whether their parent lives, but that is the fork server here.
    threading.Thread(target=_end_after_the_trainer, daemon=True).start()


def _end_after_the_trainer() -> None:
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


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
    stream: Stream, numbers: Iterable[range], doc_mask: bool, workers: int, ahead: int, pin: bool
) -> Loader:
    """Batches of the samples `numbers`, in order.

    Args:
        workers: processes that make them; 0 is a thread of this one, which is enough for local files.
        ahead: batches made before they are asked for, at least.
        pin: put the tensors where a GPU can fetch them while it computes.
    """
    if workers:
        return WorkerLoader(stream, numbers, doc_mask, workers, ahead, pin)
    made = (Batch.of(torch.from_numpy(stream.arrays(batch, doc_mask))) for batch in numbers)
    return Prefetcher(made, ahead, pin)
