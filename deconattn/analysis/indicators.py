"""The paper's eight attention indicators (section 4.4): by their definition, and from blocks of a map's rows."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from deconattn.mixers import MapBlock

OFFSETS = 4
"""Local focus is of the diagonal and the sub-diagonals below it, N = 0 .. 3."""
NAMES = ("entropy", "concentration", "head diversity", "sink", *(f"local focus {n}" for n in range(OFFSETS)))


@dataclass(frozen=True)
class Indicators:
    """Indicators of causal maps A of L tokens, in float64; `..` is the batch's shape.

    Attributes:
        entropy: -sum_j a_ij log a_ij in nats, its mean over the rows i, [.., heads].
        concentration: Frobenius norm of A, [.., heads].
        diversity: standard deviation over the heads (of all of them: divided by their number) at a position j <= i,
            its mean over the L (L + 1) / 2 positions, [..].
        sink: mean of the first column, [.., heads].
        local: mean of the N-th sub-diagonal, [.., heads, OFFSETS].
    """

    entropy: Tensor
    concentration: Tensor
    diversity: Tensor
    sink: Tensor
    local: Tensor

    def by_name(self) -> dict[str, Tensor]:
        """The eight, in the order of :data:`NAMES`: head diversity [..], the others [.., heads]."""
        four = (self.entropy, self.concentration, self.diversity, self.sink)
        return dict(zip(NAMES, (*four, *self.local.unbind(-1)), strict=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Indicators":
        """Apply `change` to each of the tensors."""
        return Indicators(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


def define(whole: Tensor) -> Indicators:
    """The indicators of whole maps [.., heads, L, L], L at least OFFSETS, as they are defined."""
    whole = whole.double()
    length = whole.shape[-1]
    lower = torch.ones(length, length, dtype=torch.bool, device=whole.device).tril()
    spread = whole.std(dim=-3, correction=0)[..., lower].sum(dim=-1)
    return Indicators(
        entropy=torch.special.entr(whole).sum(dim=-1).mean(dim=-1),
        concentration=torch.linalg.matrix_norm(whole),
        diversity=2 / (length * (1 + length)) * spread,
        sink=whole[..., 0].mean(dim=-1),
        local=torch.stack([whole.diagonal(-n, -2, -1).mean(dim=-1) for n in range(OFFSETS)], dim=-1),
    )


class IndicatorSums:
    """Adds up the blocks of maps [R, heads, L, L]; holds a few numbers a head."""

    def __init__(self) -> None:
        self._length = 0
        self._sums: Indicators | None = None

    def add(self, block: MapBlock) -> None:
        """The next rows; all blocks of a map, first rows first."""
        assert block.start == self._length, "a block is missing, or comes twice"
        weights = block.weights.double()
        sums = Indicators(
            entropy=torch.special.entr(weights).sum(dim=(-2, -1)),
            concentration=weights.square().sum(dim=(-2, -1)),
            # Above the diagonal all heads are zero, and so is their deviation.
            diversity=_deviation(weights).sum(dim=(-2, -1)),
            sink=weights[..., 0].sum(dim=-1),
            local=torch.stack([weights.diagonal(block.start - n, -2, -1).sum(dim=-1) for n in range(OFFSETS)], dim=-1),
        )
        before = self._sums
        if before is not None:
            sums = Indicators(*(getattr(before, field.name) + getattr(sums, field.name) for field in fields(before)))
        self._sums, self._length = sums, block.stop

    def indicators(self) -> Indicators:
        """Return the indicators of the whole maps, equal to :func:`define`'s: diversity [R], the others [R, heads]."""
        assert self._sums is not None, "no block was added"
        sums, length = self._sums, self._length
        return Indicators(
            entropy=sums.entropy / length,
            concentration=sums.concentration.sqrt(),
            diversity=2 / (length * (1 + length)) * sums.diversity,
            sink=sums.sink / length,
            local=sums.local / (length - torch.arange(OFFSETS, device=sums.local.device)),
        )


def _deviation(weights: Tensor) -> Tensor:
    """Over the heads, [R, heads, n, m] -> [R, n, m]; Tensor.std takes eight times as long over such a dimension."""
    return (weights - weights.mean(dim=-3, keepdim=True)).square_().mean(dim=-3).sqrt_()
