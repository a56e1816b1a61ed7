"""Best-fit packing as it was before tables: a reference for its successor, in memory and at every start.

`whole_tables` gives what each rank kept: about 15 bytes a document, and 60 while it is made.
"""

from collections import deque

import numpy as np
import numpy.typing as npt

Tables = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]


def whole_tables(lengths: npt.NDArray[np.int32], seq_len: int) -> Tables:
    """Starts and lengths of all pieces, `[pieces]`, sequence after sequence; each sequence's first place in them,
    `[sequences + 1]`; and of the full pieces, which come first, whether their document goes on."""
    whole, rest = np.divmod(lengths, np.int32(min(seq_len, 2**31 - 1)))
    ends = np.cumsum(lengths, dtype=np.int64)
    packed = np.flatnonzero(rest)
    rest = rest[packed]
    order, bounds = best_fit(rest, seq_len)
    cut = np.flatnonzero(whole)
    count = whole[cut].astype(np.int64)
    number = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    full = np.repeat((ends - lengths)[cut], count) + number * seq_len
    starts = np.concatenate([full, (ends[packed] - rest)[order]])
    sizes = np.concatenate([np.full(len(full), seq_len, dtype=np.int32), rest[order]])
    return (
        starts,
        sizes,
        np.concatenate([np.arange(len(full)), bounds + len(full)]),
        np.repeat(ends[cut], count) > full + seq_len,
    )


def best_fit(lengths: npt.NDArray[np.int32], capacity: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pack pieces of `lengths`, `[n]`, each 1 .. capacity, into as few bins of `capacity` as best-fit decreasing can.

    Returns the pieces, `[n]`, bin after bin and within a bin in increasing order, and each bin's first place in it,
    `[bins + 1]`.
    """
    if not len(lengths):
        return np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    present, counts = np.unique(lengths, return_counts=True)
    bins = _Bins(capacity)
    chosen = np.concatenate([bins.place(int(present[k]), int(counts[k])) for k in range(len(present) - 1, -1, -1)])
    narrow = np.uint16 if capacity < 2**16 else np.int32  # 16 bits are sorted by radix
    bin_of_piece = np.empty(len(lengths), dtype=np.int32)
    bin_of_piece[np.argsort((capacity - lengths).astype(narrow), kind="stable")] = chosen
    bounds = np.concatenate([[0], np.cumsum(np.bincount(chosen, minlength=bins.count))]).astype(np.int64)
    return np.argsort(bin_of_piece, kind="stable"), bounds


class _Bins:
    """Bins by the room that they have left."""

    def __init__(self, capacity: int) -> None:
        self.count = 0
        self._capacity = capacity
        self._by_room: dict[int, deque[npt.NDArray[np.int32]]] = {}
        self._rooms = 0  # bit r is set where a bin has room r: the next one above a length is quickly found

    def place(self, length: int, count: int) -> npt.NDArray[np.int32]:
        """The bins, `[count]`, that so many pieces of one length come into."""
        chosen = []
        while count:
            fitting = self._rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else self._capacity
            each = room // length  # the bin just used stays the fullest that fits, until it is full
            wanted = -(-count // each)
            bins = self._take(room, wanted) if fitting else self._new(wanted)
            filled = min(len(bins), count // each)
            chosen.append(np.repeat(bins[:filled], each))
            count -= filled * each
            self._give(room - each * length, bins[:filled])
            if filled < len(bins):
                chosen.append(np.repeat(bins[filled:], count))
                self._give(room - count * length, bins[filled:])
                count = 0
        return np.concatenate(chosen)

    def _new(self, count: int) -> npt.NDArray[np.int32]:
        self.count += count
        return np.arange(self.count - count, self.count, dtype=np.int32)

    def _take(self, room: int, count: int) -> npt.NDArray[np.int32]:
        taken, chunks = [], self._by_room[room]
        while count and chunks:
            chunk = chunks.popleft()
            taken.append(chunk[:count])
            if len(chunk) > count:
                chunks.appendleft(chunk[count:])
            count -= len(taken[-1])
        if not chunks:
            self._rooms &= ~(1 << room)
        return np.concatenate(taken)

    def _give(self, room: int, bins: npt.NDArray[np.int32]) -> None:
        if room and len(bins):
            self._by_room.setdefault(room, deque()).append(bins)
            self._rooms |= 1 << room
