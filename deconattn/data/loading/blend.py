"""Corpora interleaved by weight, exactly: each has its share of any number of samples, give or take less than one."""

from collections.abc import Sequence
from fractions import Fraction
from heapq import heapify, heappop, heappush
from math import lcm

import numpy as np
import numpy.typing as npt

_LENGTH = 2**16  # samples that are scheduled at once, and the longest period that is
_STATES_KEPT_EVERY = 64
_UNSURE = 2.0**-30  # of a float's fraction: whether it is below or above the whole number is asked of integers

Stretch = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""Corpus of each of some consecutive samples, and how often that corpus was drawn before."""


class Blend:
    """Interleave corpora by weight: sample number -> (corpus, index within that corpus).

    At every prefix of n samples each corpus c has been drawn `n * counts[c] / period` times, give or take less than
    one. The shares are the weights as they are written in decimal, exactly; `period` is their common denominator.

    Where the period is at most 2**16 the order is one table. Otherwise it is made in stretches of 2**16 samples, each
    from the draws before it, which are found stretch by stretch from the beginning.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights must be positive and finite, not {list(weights)}")
        exact = [Fraction(str(float(weight))) for weight in weights]  # 0.1 means a tenth
        total = sum(exact)
        shares = [weight / total for weight in exact]
        self.period = lcm(*(share.denominator for share in shares))
        self.counts = tuple(int(share * self.period) for share in shares)
        self.weights = tuple(map(float, shares))
        self._periodic = self.period <= _LENGTH
        self._length = self.period if self._periodic else _LENGTH
        self._states = {0: [0] * len(weights)}  # draws before a stretch
        self._stretches: dict[int, Stretch] = {}  # the last two: a batch may straddle them

    def __call__(self, numbers: npt.NDArray[np.int64]) -> Stretch:
        """The corpora that samples `numbers` come from, and how many samples each corpus has given before."""
        turns, places = np.divmod(numbers, self._length)
        if self._periodic:
            corpora, drawn = self._stretch(0)
            corpora = corpora[places]
            return corpora, turns * np.array(self.counts, dtype=np.int64)[corpora] + drawn[places]
        corpora, drawn = np.empty(len(numbers), dtype=np.int32), np.empty(len(numbers), dtype=np.int64)
        for turn in np.unique(turns).tolist():
            ours = turns == turn
            corpora[ours], drawn[ours] = (part[places[ours]] for part in self._stretch(turn))
        return corpora, drawn

    def drawn(self, number: int) -> tuple[int, ...]:
        """How many of the first `number` samples are each corpus's."""
        turn, place = divmod(number, self._length)
        before = [turn * count for count in self.counts] if self._periodic else self._state(turn)
        within = np.bincount(self._stretch(0 if self._periodic else turn)[0][:place], minlength=len(self.counts))
        return tuple(count + int(more) for count, more in zip(before, within, strict=True))

    def _stretch(self, turn: int) -> Stretch:
        found = self._stretches.get(turn)
        if found is None:
            while len(self._stretches) > 1:
                del self._stretches[next(iter(self._stretches))]
            states = self._state(turn), self._state(turn + 1)
            self._stretches[turn] = found = schedule(self.counts, turn * self._length, *states)
        return found

    def _state(self, turn: int) -> list[int]:
        last = max(kept for kept in self._states if kept <= turn)
        state = self._states[last]
        for number in range(last, turn):
            state = draws_after(self.counts, number * self._length, self._length, state)
            self._states[number + 1] = state
            if number % _STATES_KEPT_EVERY:
                del self._states[number]
        return state


def schedule(counts: Sequence[int], first: int, before: Sequence[int], after: Sequence[int]) -> Stretch:
    """Order of the samples from number `first` on that take the corpora from `before` to `after` draws.

    Among the corpora that may be drawn without running one ahead of their share, the one is drawn that would fall one
    behind soonest: earliest deadline first, which never misses where all deadlines can be met.

    Args:
        counts: a corpus' draws in a period, which is their sum.
    """
    period, length = sum(counts), sum(after) - sum(before)
    corpus, rank = np.empty(length, dtype=np.int32), np.empty(length, dtype=np.int64)
    drawn = list(before)
    waiting = [(drawn[c] * period // count + 1, c) for c, count in enumerate(counts) if drawn[c] < after[c]]
    heapify(waiting)
    ready: list[tuple[int, int]] = []
    for place in range(length):
        while waiting and waiting[0][0] <= first + place + 1:
            c = heappop(waiting)[1]
            heappush(ready, (-(-(drawn[c] + 1) * period // counts[c]), c))
        c = heappop(ready)[1]
        corpus[place], rank[place] = c, drawn[c]
        drawn[c] += 1
        if drawn[c] < after[c]:
            heappush(waiting, (drawn[c] * period // counts[c] + 1, c))
    return corpus, rank


def draws_after(counts: Sequence[int], first: int, length: int, before: Sequence[int]) -> list[int]:
    """Draws of each corpus after the `length` samples from number `first` on, of which there were `before`.

    They are the shares, rounded up or down so that these samples can be scheduled and those after them too. Rounding up
    means that the draw under way is made in time. For any sample s, no more draws may be made that must come after s
    than there are samples after it. Among the choices that keep to this the one with the earliest deadlines is best for
    what follows; the limits are on nested sets (a matroid), so that taking one by one finds it.
    """
    period, end = sum(counts), first + length
    drawn = [end * count // period for count in counts]
    missing = end - sum(drawn)
    if not missing:
        return drawn
    begin = [  # of the draws that must be made: the sample after which they may be
        _beginnings(draw, done, period, count) - first
        for done, count, made in zip(drawn, counts, before, strict=True)
        if (draw := max(made, -(-first * count // period))) < done
    ]
    needed = np.bincount(np.concatenate(begin), minlength=length) if begin else np.zeros(length, dtype=np.int64)
    room = np.arange(length, 0, -1) - needed[::-1].cumsum()[::-1]
    under_way = []
    for c, (done, count) in enumerate(zip(drawn, counts, strict=True)):
        if before[c] > done:
            drawn[c], missing = before[c], missing - 1
        elif end * count % period:
            under_way.append((-(-(done + 1) * period // count), c, done * period // count - first))
    for _, c, earliest in sorted(under_way):
        limits = room[1 : max(earliest, 0) + 1]
        if missing and limits.min(initial=1) > 0:
            drawn[c] += 1
            missing -= 1
            limits -= 1
    assert not missing, "each sample is some corpus'"
    return drawn


def _beginnings(draw: int, end: int, period: int, count: int) -> npt.NDArray[np.int64]:
    """The samples after which draws `draw` to `end` - 1 may be made: `draw * period // count`, exactly."""
    numbers = np.arange(end - draw)
    start, rest = divmod(draw * period, count)
    step, more = divmod(period, count)
    fraction = rest / count + numbers * (more / count)
    whole = np.floor(fraction).astype(np.int64)
    for number in np.flatnonzero(np.abs(fraction - np.rint(fraction)) < _UNSURE).tolist():
        whole[number] = (rest + number * more) // count
    return start + numbers * min(step, 2**62) + whole  # a larger step belongs to a single draw
