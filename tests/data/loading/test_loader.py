"""Batches made ahead: their order, their end, and what goes wrong while they are made."""

import threading
from collections.abc import Iterator

import pytest
import torch

from deconattn.data import Batch, Prefetcher


def batches(count: int, made: list[int] | None = None, fails_at: int | None = None) -> Iterator[Batch]:
    for number in range(count):
        if number == fails_at:
            raise OSError("the disk is gone")
        if made is not None:
            made.append(number)
        yield Batch(torch.full((1, 2), number), torch.full((1, 2), -number))


def numbers(taken: list[Batch]) -> list[int]:
    return [int(batch.input_ids[0, 0]) for batch in taken]


def test_order_and_end():
    prefetcher = Prefetcher(batches(7), ahead=2)
    assert numbers(prefetcher.take(3)) == [0, 1, 2]
    assert numbers(prefetcher.take(4)) == [3, 4, 5, 6]
    for _ in range(2):
        with pytest.raises(StopIteration):
            prefetcher.take(1)
    prefetcher.close()


def test_an_error_is_raised_where_its_batch_is_asked_for():
    prefetcher = Prefetcher(batches(5, fails_at=2), ahead=4)
    assert numbers(prefetcher.take(2)) == [0, 1]
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            prefetcher.take(1)
    prefetcher.close()


def test_no_more_than_asked_for_is_made_ahead_and_closing_ends_the_thread():
    made: list[int] = []
    before = threading.active_count()
    prefetcher = Prefetcher(batches(1000, made), ahead=3)
    prefetcher.take(2)
    prefetcher.close()
    assert threading.active_count() == before
    assert made == list(range(len(made)))
    assert 2 <= len(made) <= 2 + 3 + 1  # what was taken, the queue, and one in hand
