"""The arrays of a best-fit table, written to a file over a stream of the documents' lengths.

Memory does not grow with the documents: one pass over the lengths makes their histogram, and one for each 2**26 pieces
puts these into their places. What does grow, slowly, is the number of runs of
:class:`~deconattn.data.loading.best_fit_packing.Assignment`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from deconattn.data.corpus import TokenCorpus
from deconattn.data.loading.best_fit_packing import Assignment, Integers, assign

HEADER_BYTES = 4096
PIECES_AT_ONCE = 2**26
"""Pieces that are put into their places together, at 12 bytes each."""
_BINS_AT_ONCE = 2**20
_CHUNK_BITS = 20
_CHUNK = 2**_CHUNK_BITS
"""Documents that are looked at together; a number below it fits into the low bits of a key that is sorted."""


@dataclass(frozen=True)
class Counts:
    """Numbers of what a table holds, see :class:`~deconattn.data.loading.best_fit_table.Header`."""

    documents: int
    cut: int
    full: int
    packed: int
    pieces: int


def write_arrays(file: BinaryIO, corpus: TokenCorpus, seq_len: int) -> Counts:
    """Write the arrays of a corpus's table behind room for its header.

    Raises:
        UserError: a damaged shard.
        OSError: what writing raises.
    """
    file.seek(HEADER_BYTES)
    histogram, documents, cut, full = np.zeros(1, dtype=np.int64), 0, 0, 0
    for first, lengths in _chunks(corpus):
        documents, cut = documents + len(lengths), cut + int((lengths > seq_len).sum())
        pieces = _full_pieces(first, lengths, seq_len)
        full += len(pieces)
        file.write(pieces.data)
        ours = np.bincount(lengths % seq_len, minlength=len(histogram))
        ours[: len(histogram)] += histogram
        histogram = ours
    histogram[0] = 0
    plan = assign(histogram, seq_len)
    starts_at = file.tell()
    bounds_at = starts_at + 8 * plan.pieces
    lengths_at = bounds_at + 8 * (plan.count + 1)
    file.seek(bounds_at)
    cuts = _write_bounds(file, plan)
    for (low, before), (high, after) in pairwise(cuts):
        starts, sizes = _placed(corpus, seq_len, plan, low, high, after - before)
        file.seek(starts_at + 8 * before)
        file.write(starts.data)
        file.seek(lengths_at + 4 * before)
        file.write(sizes.data)
    return Counts(documents, cut, full, plan.count, plan.pieces)


def digest(file: BinaryIO) -> str:
    """Return the SHA-256 of the arrays in a table's file."""
    file.seek(HEADER_BYTES)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _chunks(corpus: TokenCorpus) -> Iterator[tuple[int, Integers]]:
    """Yield the documents' lengths, up to _CHUNK at once, and the corpus's token that the first of them begins with."""
    first = 0
    for shard in corpus.iterate_lengths():
        for at in range(0, len(shard), _CHUNK):
            lengths = shard[at : at + _CHUNK].astype(np.int64)
            yield first, lengths
            first += int(lengths.sum())


def _full_pieces(first: int, lengths: Integers, seq_len: int) -> Integers:
    """Full pieces of longer documents, `[full]`, as the table has them."""
    whole = lengths // seq_len
    cut = np.flatnonzero(whole)
    count = whole[cut]
    ends = first + np.cumsum(lengths)
    number = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    starts = np.repeat((ends - lengths)[cut], count) + number * seq_len
    return 2 * starts + (np.repeat(ends[cut], count) > starts + seq_len)


def _write_bounds(file: BinaryIO, plan: Assignment) -> list[tuple[int, int]]:
    """Write each bin's first piece, and the end; return where to cut: bins, and pieces before them."""
    cuts, total = [(0, 0)], 0
    for low in range(0, plan.count, _BINS_AT_ONCE):
        bounds = total + np.cumsum(plan.pieces_in(low, min(low + _BINS_AT_ONCE, plan.count)))
        bounds = np.concatenate([[total], bounds])
        file.write(bounds[:-1].data)
        total = int(bounds[-1])
        while total - cuts[-1][1] > PIECES_AT_ONCE:
            fitting = int(bounds.searchsorted(cuts[-1][1] + PIECES_AT_ONCE, side="right")) - 1
            fitting = max(fitting, cuts[-1][0] + 1 - low)  # one bin, however full
            cuts.append((low + fitting, int(bounds[fitting])))
            if fitting == len(bounds) - 1:
                break
    file.write(np.array([total], dtype=np.int64).data)
    return cuts if cuts[-1][0] == plan.count else [*cuts, (plan.count, total)]


def _placed(
    corpus: TokenCorpus, seq_len: int, plan: Assignment, low: int, high: int, pieces: int
) -> tuple[Integers, npt.NDArray[np.int32]]:
    """Starts and lengths of the `pieces` pieces in bins `low` to `high` - 1, bin after bin, each in corpus order."""
    counts = plan.pieces_in(low, high)
    free = np.cumsum(counts) - counts  # of each bin, the place of its next piece
    starts, sizes = np.empty(pieces, dtype=np.int64), np.empty(pieces, dtype=np.int32)
    seen = np.zeros(len(plan.before), dtype=np.int64)  # pieces of each length so far
    for first, lengths in _chunks(corpus):
        rest = lengths % seq_len
        packed = np.flatnonzero(rest)
        rest = rest[packed]
        begins = (first + np.cumsum(lengths))[packed] - rest
        order, length, ordinal = _ranked(rest)
        found = plan.bin_of(length, seen[length] + ordinal)
        seen += np.bincount(rest, minlength=len(seen))
        bins = np.empty_like(found)
        bins[order] = found
        ours = np.flatnonzero((bins >= low) & (bins < high))
        order, bins, ordinal = _ranked(bins[ours] - low)
        ours = ours[order]
        places = free[bins] + ordinal
        starts[places], sizes[places] = begins[ours], rest[ours]
        last = np.flatnonzero(np.diff(bins, append=-1))
        free[bins[last]] += ordinal[last] + 1
    return starts, sizes


def _ranked(values: Integers) -> tuple[Integers, Integers, Integers]:
    """Stable order of `values`, `[n]`, not negative; the sorted values; and each one's number among its equals.

    A plain sort of keys that hold value and place is several times as fast as a stable sort.
    """
    keys = np.sort(values << _CHUNK_BITS | np.arange(len(values)))
    order, ordered = keys & (_CHUNK - 1), keys >> _CHUNK_BITS
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    return order, ordered, np.arange(len(keys)) - np.repeat(begins, np.diff(begins, append=len(keys)))
