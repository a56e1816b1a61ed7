"""A split of a packed corpus document by document, a record batch in memory at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.manifest import ShardEntry
from deconattn.data.mapped import fetch
from deconattn.data.shards import open_shard
from deconattn.errors import UserError
from deconattn.program import command


def read_batches(
    folder: Path, entries: Sequence[ShardEntry], start: int = 0
) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[np.int32]]]:
    """The documents of one split, in order, many at a time: the first one's number, values, and bounds in the values.

    Args:
        entries: the split's shards.
        start: the number, from 0, of the first document; shards before it are not opened.

    Raises:
        UserError: a shard that is missing or damaged, or that does not hold what the manifest says.
    """
    number = 0
    for entry in entries:
        if number + entry.documents <= start:
            number += entry.documents
            continue
        path = folder / entry.name
        shard = open_shard(path, entry)
        held = sum(len(bounds) - 1 for bounds in shard.offsets)
        if held != entry.documents:
            raise UserError(
                f"{path} holds {held} documents, {entry.documents} expected; see {command('shards')} verify {folder}"
            )
        for values, bounds in zip(shard.values, shard.offsets, strict=True):
            skipped = max(start - number, 0)
            if skipped < len(bounds) - 1:
                _fetch(path, values)
                _check_order(path, number, bounds)
                yield number + skipped, values, bounds[skipped:]
            number += len(bounds) - 1


def read_documents(
    folder: Path, entries: Sequence[ShardEntry], start: int = 0
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """The same one at a time: number and ids `[n]`, separator included."""
    for first, values, bounds in read_batches(folder, entries, start):
        for place in range(len(bounds) - 1):
            yield first + place, values[bounds[place] : bounds[place + 1]]


def _check_order(path: Path, first: int, bounds: npt.NDArray[np.int32]) -> None:
    wrong = np.flatnonzero(np.diff(bounds) < 0)
    if len(wrong):
        raise UserError(f"{path}: document {first + wrong[0]} ends before it begins; see {command('shards')} verify")


def _fetch(path: Path, values: npt.NDArray[Any]) -> None:
    try:
        fetch(values.ctypes.data, values.nbytes)
    except OSError as error:
        raise UserError(f"{path} can no longer be read ({error.strerror}); check the disk and the file") from None
