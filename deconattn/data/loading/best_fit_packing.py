"""Best-fit decreasing over a histogram of lengths: which bin the n-th piece of a length goes into.

"Fewer Truncations Improve Language Modeling" (Ding et al. 2024): the longest pieces first, each into the fullest bin
that still has room. Pieces of one length are placed together and bins are kept as intervals of their numbers, so that
time and memory grow with the number of different lengths and not with that of the pieces. The result is that of
placing them one by one.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Assignment:
    """Bins of all pieces, in runs: run i gives `each[i]` pieces to each of `bins[i]` bins from number `first[i]` on.

    Pieces are in decreasing order of length, those of one length in their own order.

    Attributes:
        starts: pieces before each run, `[runs]`.
        before: pieces longer than each length, `[longest + 1]`.
        pieces, count: numbers of pieces and of bins.
    """

    first: Integers
    bins: Integers
    each: Integers
    starts: Integers
    before: Integers
    pieces: int
    count: int

    def bin_of(self, lengths: Integers, ordinals: Integers) -> Integers:
        """Bin of the `ordinals[i]`-th piece, from 0, of length `lengths[i]`; `[n]` each."""
        place = self.before[lengths] + ordinals
        run = self.starts.searchsorted(place, side="right") - 1
        return self.first[run] + (place - self.starts[run]) // self.each[run]

    def pieces_in(self, low: int, high: int) -> Integers:
        """Numbers of pieces in bins `low` to `high` - 1, `[high - low]`."""
        steps = np.zeros(high - low + 1, dtype=np.int64)
        inside = np.flatnonzero((self.first < high) & (self.first + self.bins > low))
        np.add.at(steps, np.maximum(self.first[inside], low) - low, self.each[inside])
        np.subtract.at(steps, np.minimum(self.first[inside] + self.bins[inside], high) - low, self.each[inside])
        return np.cumsum(steps)[:-1]


def assign(counts: Integers, capacity: int) -> Assignment:
    """Assign `counts[length]` pieces of each length below `len(counts)` to as few bins as best-fit decreasing can.

    Args:
        counts: `[longest + 1]`; none of length 0, and no length beyond `capacity`.
    """
    bins = _Bins(capacity)
    for length in np.flatnonzero(counts)[::-1].tolist():
        bins.place(length, int(counts[length]))
    first, sizes, each = np.array(bins.runs, dtype=np.int64).reshape(-1, 3).T
    total = int(counts.sum())
    return Assignment(
        first=first,
        bins=sizes,
        each=each,
        starts=np.cumsum(sizes * each) - sizes * each,
        before=total - np.cumsum(counts),
        pieces=total,
        count=bins.count,
    )


class _Bins:
    """Bins by the room that they have left, each room's in the order in which they came to have it.

    Attributes:
        runs: first bin, number of bins and pieces in each, in the order in which pieces were placed.
    """

    def __init__(self, capacity: int) -> None:
        self.count = 0
        self.runs: list[tuple[int, int, int]] = []
        self._capacity = capacity
        self._by_room: dict[int, deque[tuple[int, int]]] = {}  # intervals: first bin, number of bins
        self._rooms = 0  # bit r is set where a bin has room r: the next one above a length is quickly found

    def place(self, length: int, count: int) -> None:
        """Place so many pieces of one length."""
        while count:
            fitting = self._rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else self._capacity
            each = room // length  # the bin just used stays the fullest that fits, until it is full
            wanted = -(-count // each)
            for first, bins in self._take(room, wanted) if fitting else self._new(wanted):
                filled = min(bins, count // each)
                if filled:
                    self.runs.append((first, filled, each))
                    self._give(room - each * length, first, filled)
                    count -= filled * each
                if filled < bins:  # the last bin, which the rest does not fill
                    self.runs.append((first + filled, 1, count))
                    self._give(room - count * length, first + filled, 1)
                    count = 0

    def _new(self, count: int) -> list[tuple[int, int]]:
        self.count += count
        return [(self.count - count, count)]

    def _take(self, room: int, count: int) -> list[tuple[int, int]]:
        taken, intervals = [], self._by_room[room]
        while count and intervals:
            first, bins = intervals.popleft()
            if bins > count:
                intervals.appendleft((first + count, bins - count))
                bins = count
            taken.append((first, bins))
            count -= bins
        if not intervals:
            self._rooms &= ~(1 << room)
        return taken

    def _give(self, room: int, first: int, bins: int) -> None:
        if not room:
            return
        intervals = self._by_room.setdefault(room, deque())
        if intervals and sum(intervals[-1]) == first:
            first, bins = intervals[-1][0], intervals.pop()[1] + bins
        intervals.append((first, bins))
        self._rooms |= 1 << room
