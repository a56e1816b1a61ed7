"""Documents as token ids, many at a time."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Documents:
    """Documents laid end to end, `n` of them.

    Attributes:
        tokens: their ids, separators included, in the shards' type.
        lengths: tokens of each, `[n]`.
        numbers: of each in reading order, `[n]`, uint64.
    """

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.uint64]

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """Where each one's tokens end, `[n]`."""
        return np.cumsum(self.lengths)

    def part(self, first: int, last: int) -> "Documents":
        """Those from `first` to before `last`; nothing is copied."""
        start, end = (int(self.ends[place - 1]) if place else 0 for place in (first, last))
        return Documents(self.tokens[start:end], self.lengths[first:last], self.numbers[first:last])

    def take(self, chosen: npt.NDArray[np.bool_]) -> "Documents":
        """Some of them, by a mask `[n]`."""
        if chosen.all():
            return self
        bounds = np.concatenate([np.zeros(1, dtype=np.int64), self.ends])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]])))  # of runs of neighbours
        runs = [self.tokens[start:end] for start, end in bounds[edges].reshape(-1, 2)]
        tokens = np.concatenate(runs) if runs else self.tokens[:0]
        return Documents(tokens, self.lengths[chosen], self.numbers[chosen])
