"""A map small enough to draw."""

import torch
from torch import Tensor

from deconattn.mixers import MapBlock

CELLS = 128


class PooledMap:
    """Means of a map over squares of tokens, at most CELLS a side, so that the map need not be held.

    Args:
        length: tokens L.
    """

    def __init__(self, length: int) -> None:
        self._side = min(length, CELLS)
        self._cell = torch.arange(length) * self._side // length
        self._sums: Tensor | None = None
        self._counts = torch.zeros(self._side, self._side, dtype=torch.float64)

    def add(self, block: MapBlock) -> None:
        """The rows of one sequence, weights [heads, n, stop]."""
        weights = block.weights.double().cpu()
        if self._sums is None:
            self._sums = torch.zeros(len(weights), self._side, self._side, dtype=torch.float64)
        visible = torch.ones(weights.shape[1:], dtype=torch.float64).tril(block.start)
        self._sums += self._pooled(weights, block)
        self._counts += self._pooled(visible[None], block)[0]

    def _pooled(self, weights: Tensor, block: MapBlock) -> Tensor:
        """[.., n, stop] -> [.., side, side]."""
        columns = weights.new_zeros(*weights.shape[:2], self._side).index_add_(2, self._cell[: block.stop], weights)
        rows = weights.new_zeros(len(weights), self._side, self._side)
        return rows.index_add_(1, self._cell[block.start : block.stop], columns)

    def means(self) -> Tensor:
        """float64 [heads, side, side]: over each cell's entries on or below the diagonal; NaN where it has none."""
        assert self._sums is not None, "no block was added"
        return self._sums / self._counts
