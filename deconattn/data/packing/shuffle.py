"""All documents in a seeded random order, through the disk: sorted runs of a random key, merged range by range.

A document's key depends on its number and the seed alone, so that the order depends on nothing else.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn import durable
from deconattn.data.loading.sampler import make_key, mix
from deconattn.data.packing.document_batch import DocumentBatch
from deconattn.data.packing.journal import Journal

RUN_BYTES = 128 << 20
"""Memory of a run's documents while they are sorted."""
RANGE_BYTES = 256 << 20
"""Approximate memory of the documents of a range of keys."""
_DOCUMENT_BYTES = 128  # of a document beside its tokens: a view of them, a key
_CHUNK_TOKENS = 1 << 20
_KEYS = 2**64
_ROW = np.dtype([("number", "<u8"), ("end", "<i8")])  # end: of the document's tokens within the run


class SortedRun:
    """Documents that are being collected for one sorted run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.documents = 0
        self._bytes = 0
        self._parts: list[DocumentBatch] = []

    @property
    def full(self) -> bool:
        """Whether it is time to write. A single document is not: it may turn out to be the only one."""
        return self._bytes >= RUN_BYTES and self.documents > 1

    def add(self, documents: DocumentBatch) -> None:
        """Take documents into the run."""
        self._parts.append(documents)
        self.documents += len(documents.lengths)
        self._bytes += documents.tokens.nbytes + _DOCUMENT_BYTES * len(documents.lengths)

    def write(self, journal: Journal, number: int) -> None:
        """Write the run, number so and so, in order of its keys, durably."""
        numbers = np.concatenate([part.numbers for part in self._parts])
        keys = mix(numbers ^ np.uint64(make_key(self.seed)))
        order = np.argsort(keys)
        lengths = np.concatenate([part.lengths for part in self._parts])[order]
        texts = [text for part in self._parts for text in _split(part.tokens, part.lengths)]
        rows = np.empty(len(order), dtype=_ROW)
        rows["number"], rows["end"] = numbers[order], np.cumsum(lengths)
        paths = _paths(journal, number)
        with paths[0].open("wb") as file:
            for span in _spans(lengths):
                np.concatenate([texts[place] for place in order[span]]).tofile(file)
        rows.tofile(paths[1])
        keys[order].tofile(paths[2])
        for path in paths:
            durable.sync_file(path)


def count_ranges(documents: int, tokens: int, dtype: str) -> int:
    """Number of ranges of keys into which so many documents of so many tokens are cut."""
    return -(-(tokens * np.dtype(dtype).itemsize + documents * _DOCUMENT_BYTES) // RANGE_BYTES)


def read_range(journal: Journal, runs: int, dtype: str, number: int, ranges: int) -> Iterator[DocumentBatch]:
    """The documents of one range of keys, in order of their keys, some at a time.

    Args:
        runs: number of runs.
        dtype: the ids' dtype.
        number: index of the range, below `ranges`.
    """
    first, last = (place * _KEYS // ranges for place in (number, number + 1))
    parts = [_read_part(journal, run, dtype, first, last) for run in range(runs)]
    order = np.argsort(np.concatenate([keys for keys, _ in parts]))
    numbers = np.concatenate([documents.numbers for _, documents in parts])[order]
    lengths = np.concatenate([documents.lengths for _, documents in parts])[order]
    texts = [text for _, documents in parts for text in _split(documents.tokens, documents.lengths)]
    del parts
    for span in _spans(lengths):
        tokens = np.concatenate([texts[place] for place in order[span]])
        yield DocumentBatch(tokens, lengths[span], numbers[span])


def _read_part(
    journal: Journal, run: int, dtype: str, first: int, last: int
) -> tuple[npt.NDArray[np.uint64], DocumentBatch]:
    """Keys and documents of a run whose keys are at least `first` and below `last`."""
    tokens_path, rows_path, keys_path = _paths(journal, run)
    try:
        keys = np.memmap(keys_path, dtype=np.uint64, mode="r")
        start = int(np.searchsorted(keys, np.uint64(first)))
        stop = len(keys) if last == _KEYS else int(np.searchsorted(keys, np.uint64(last)))
        before = min(start, 1)  # the row that says where the first document begins
        rows = np.fromfile(rows_path, _ROW, stop - start + before, offset=(start - before) * _ROW.itemsize)
        ends = np.concatenate([np.zeros(1 - before, dtype=np.int64), rows["end"]])
        size = np.dtype(dtype).itemsize
        tokens = np.fromfile(tokens_path, dtype, int(ends[-1] - ends[0]), offset=int(ends[0]) * size)
    except (FileNotFoundError, ValueError):
        raise journal.damaged(keys_path) from None
    if len(tokens) != ends[-1] - ends[0]:
        raise journal.damaged(tokens_path)
    return np.array(keys[start:stop]), DocumentBatch(tokens, np.diff(ends), rows["number"][before:])


def _paths(journal: Journal, run: int) -> list[Path]:
    return [journal.work / f"run-{run:05d}.{part}" for part in ("tokens", "rows", "keys")]


def _split(tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """Views of documents that lie end to end."""
    ends = np.cumsum(lengths).tolist()
    return [tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _spans(lengths: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Consecutive documents of about a million tokens together."""
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // _CHUNK_TOKENS)) + 1
    bounds = [0, *cuts.tolist(), len(lengths)]
    yield from (slice(start, end) for start, end in pairwise(bounds) if end > start)
