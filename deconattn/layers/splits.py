"""Tensor-parallel splits that a module declares for its tensors (Megatron's column and row parallelism).

A module that declares `splits` takes whole inputs and, computed with the cut layers of one rank, gives a part of
its output: the parts of all ranks sum to the whole. What it does not name is held by every rank.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deconattn.layers.config import ModelConfig


@dataclass(frozen=True)
class Split:
    """The cut of one linear layer, or of a parameter or buffer of the module itself.

    Attributes:
        dim: dimension of the weight [out, in], or of the tensor, that is cut; a bias is cut with dimension 0.
        pieces: how many pieces must stay whole (heads), or the field of ModelConfig that says so; None is no such
            pieces. Where there are fewer pieces than ranks, neighbouring ranks hold the same one.
    """

    dim: int
    pieces: str | int | None = None

    def count(self, config: "ModelConfig", size: int) -> int:
        """Return the number of pieces of the dimension, which has `size` elements."""
        if self.pieces is None:
            return size
        return self.pieces if isinstance(self.pieces, int) else int(getattr(config, self.pieces))


def column(pieces: str | int | None = None) -> Split:
    """Return a column-parallel split: each rank computes some of the outputs from the whole input."""
    return Split(0, pieces)


def row(pieces: str | int | None = None) -> Split:
    """Return a row-parallel split: each rank adds its inputs' share to every output. The layer must have no bias."""
    return Split(1, pieces)
