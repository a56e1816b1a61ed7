"""Batches by a thread or by worker processes: the same order, and one clear line when something goes wrong."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch

from deconattn.data import SampleStream, TokenCorpus
from deconattn.data.loading.loader import open_loader
from deconattn.errors import UserError

PackedFolder = Callable[..., Path]


class Slow(SampleStream):
    """A stream whose every third batch waits for its disk."""

    def arrays(self, numbers: range, doc_mask: bool) -> npt.NDArray[np.int64]:  # type: ignore[override]
        if numbers.start % 3 == 0:
            time.sleep(0.05)
        return super().arrays(numbers, doc_mask)


@pytest.fixture
def folder(packed_folder: PackedFolder) -> Path:
    return packed_folder([[[*range(first, first + 99), 0]] * 5 for first in (1, 200, 400)])


def numbers(count: int, first: int = 0) -> Iterator[range]:
    return (range(start, start + 2) for start in range(first, first + 2 * count, 2))


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_is_the_same_for_any_number_of_workers(folder: Path, workers: int, packing: str) -> None:
    stream = Slow([(TokenCorpus(folder), 1.0)], 16, seed=0, packing=packing)  # type: ignore[arg-type]
    wanted = [stream.batch(batch, True) for batch in numbers(12)]
    with closing(open_loader(stream, numbers(12), True, workers, ahead=2, pin=False)) as loader:
        found = [*loader.take(5), *loader.take(7)]
        with pytest.raises(StopIteration):
            loader.take(1)
    with closing(open_loader(stream, numbers(4, first=16), True, workers, ahead=2, pin=False)) as loader:
        resumed = loader.take(4)
    for one, other in zip([*wanted, *wanted[8:]], [*found, *resumed], strict=True):
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)
        assert one.position_ids is not None and other.position_ids is not None
        assert torch.equal(one.position_ids, other.position_ids)
        assert one.document_ids is not None and other.document_ids is not None
        assert torch.equal(one.document_ids, other.document_ids)
        assert one.document_offsets is not None and other.document_offsets is not None
        assert torch.equal(one.document_offsets, other.document_offsets)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_is_named(folder: Path, workers: int) -> None:
    stream = SampleStream([(TokenCorpus(folder), 1.0)], 100, seed=0, shuffle=False)
    (folder / "train-00002.arrow").unlink()
    with closing(open_loader(stream, numbers(6), False, workers, ahead=1, pin=False)) as loader:
        assert len(loader.take(4)) == 4
        with pytest.raises(UserError, match="train-00002.arrow is missing.*copy it again") as caught:
            loader.take(2)
    assert "\n" not in str(caught.value)


def test_a_worker_that_dies_is_one_line_and_none_is_left(folder: Path) -> None:
    stream = Slow([(TokenCorpus(folder), 1.0)], 16, seed=0)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with closing(open_loader(stream, numbers(10_000), False, 2, ahead=2, pin=False)) as loader:
        loader.take(2)  # one of each worker
        workers = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        workers = [child for child in workers if not child.children()]
        for worker in workers:
            worker.send_signal(signal.SIGINT)  # they leave that to the trainer
            worker.send_signal(signal.SIGTERM)
        loader.take(20)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="a worker of --loader-workers died .*--loader-workers 0") as caught:
            loader.take(10_000)
    assert "\n" not in str(caught.value)
    assert not psutil.wait_procs(workers, timeout=10)[1]
