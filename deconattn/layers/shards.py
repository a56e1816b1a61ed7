"""What a rank holds of a tensor: tensor-parallel shards, how to take and join them, and ZeRO-3's partitions of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

_BUFFERS, _PARTITION = "buffer_shards", "kept_partition"


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


@dataclass(frozen=True, eq=False)
class Partition:
    """Some elements of a parameter in row-major order, which is what ZeRO-3 leaves of it on a rank.

    Attributes:
        memory: [partition], the elements and then padding.
        start: number of the first element.
        shape: of the parameter, cut or not.
    """

    memory: Tensor
    start: int
    shape: torch.Size

    @property
    def stop(self) -> int:
        """Return the number after the last element's: `start` where all is padding."""
        return min(self.start + self.memory.numel(), self.shape.numel())


def partition_bounds(elements: int, size: int, rank: int) -> tuple[int, int]:
    """Return the run of a tensor that is in a rank's ZeRO-3 partition of `size`; the last ones are padded."""
    return min(size * rank, elements), min(size * (rank + 1), elements)


def mark_partition(parameter: nn.Parameter, partition: Partition) -> None:
    """Attach to a parameter what a rank keeps of it, in place of memory of its own."""
    setattr(parameter, _PARTITION, partition)


def kept_part(parameter: Tensor) -> Partition:
    """Return what this rank keeps of a (cut) parameter, padding apart: all of its elements without ZeRO-3."""
    partition: Partition | None = getattr(parameter, _PARTITION, None)
    if partition is None:
        return Partition(parameter.detach().view(-1), 0, parameter.shape)
    return Partition(partition.memory[: partition.stop - partition.start], partition.start, partition.shape)


def local_shape(parameter: Tensor) -> torch.Size:
    """Return the shape of a (cut) parameter, partitioned or not."""
    partition: Partition | None = getattr(parameter, _PARTITION, None)
    return parameter.shape if partition is None else partition.shape


def assign(parameter: Tensor, value: Tensor) -> None:
    """Copy a (cut) parameter's value to what this rank keeps of it."""
    kept = kept_part(parameter)
    if value.shape != kept.shape:
        raise ValueError(f"a value of shape {tuple(value.shape)} for a parameter of shape {tuple(kept.shape)}")
    kept.memory.copy_(value.detach().flatten()[kept.start : kept.stop])
