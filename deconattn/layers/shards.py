"""Tensor-parallel shards: the whole shape, where the cuts lie, and how to take and join parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

_BUFFERS = "buffer_shards"


@dataclass(frozen=True)
class Shard:
    """The part of a whole tensor that one tensor-parallel rank holds.

    Attributes:
        shape: of the whole.
        dim: the dimension that is cut.
        bounds: (start, stop) along `dim`, one a rank; neighbours may hold the same part.
        rank: this rank's index into `bounds`.
    """

    shape: tuple[int, ...]
    dim: int
    bounds: tuple[tuple[int, int], ...]
    rank: int

    @classmethod
    def of(cls, shape: Sequence[int], dim: int, pieces: int, rank: int, ranks: int) -> "Shard":
        """Return the part of `rank` of `ranks`, as :func:`part_bounds` deals them."""
        return cls(tuple(shape), dim, part_bounds(shape[dim], pieces, ranks), rank)

    @property
    def local_shape(self) -> tuple[int, ...]:
        start, stop = self.bounds[self.rank]
        return (*self.shape[: self.dim], stop - start, *self.shape[self.dim + 1 :])

    @property
    def copies(self) -> int:
        """Number of ranks that hold this part."""
        return self.bounds.count(self.bounds[self.rank])

    @property
    def is_first_copy(self) -> bool:
        """Whether this rank is the first that holds its part, to count each part once."""
        return self.bounds.index(self.bounds[self.rank]) == self.rank

    def take(self, whole: Tensor) -> Tensor:
        """Return this rank's part of a whole tensor, a view."""
        start, stop = self.bounds[self.rank]
        return whole.narrow(self.dim, start, stop - start)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Join all ranks' parts to the whole tensor."""
        distinct = [part for index, part in enumerate(parts) if self.bounds.index(self.bounds[index]) == index]
        return torch.cat(distinct, dim=self.dim)


def part_bounds(size: int, pieces: int, ranks: int) -> tuple[tuple[int, int], ...]:
    """Return (start, stop) of each rank's part of `size` elements in `pieces` equal pieces that stay whole.

    Pieces are dealt to `ranks` in order, as evenly as it goes. Fewer pieces than ranks: each is held by ranks / pieces
    neighbours.
    """
    assert size % pieces == 0
    width = size // pieces
    if pieces >= ranks:
        return tuple(pairwise(pieces * index // ranks * width for index in range(ranks + 1)))
    assert ranks % pieces == 0
    first = [index * pieces // ranks * width for index in range(ranks)]
    return tuple((start, start + width) for start in first)


def largest_part(size: int, pieces: int, ranks: int) -> int:
    """Return elements of the rank that holds most, of `size` in `pieces` pieces that stay whole."""
    return max(stop - start for start, stop in part_bounds(size, pieces, ranks))


def mark(parameter: nn.Parameter, shard: Shard) -> None:
    """Attach its shard to a parameter, and `model_parallel` for DeepSpeed's gradient norm."""
    parameter.shard = shard  # type: ignore[attr-defined]
    parameter.model_parallel = shard.is_first_copy  # type: ignore[attr-defined]


def mark_buffer(owner: nn.Module, name: str, shard: Shard) -> None:
    """Attach a buffer's shard to its module: a change of device or type makes another tensor of it."""
    vars(owner).setdefault(_BUFFERS, {})[name] = shard


def buffer_shards(model: nn.Module) -> dict[str, Shard]:
    """Return the shards of buffers that are cut, by name."""
    return {
        f"{path}.{name}": shard
        for path, module in model.named_modules()
        for name, shard in vars(module).get(_BUFFERS, {}).items()
    }


def shard_of(parameter: Tensor) -> Shard | None:
    """Return a parameter's shard; None if every tensor-parallel rank holds all of it."""
    return getattr(parameter, "shard", None)
