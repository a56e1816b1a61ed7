"""Cuts of whole tensors: every element held, none lost, heads never torn."""

from itertools import pairwise

import pytest
import torch

from deconattn.layers.shards import Shard, partition_bounds


def parts(whole: torch.Tensor, dim: int, pieces: int, ranks: int) -> tuple[list[Shard], list[torch.Tensor]]:
    shards = [Shard.of(tuple(whole.shape), dim, pieces, rank, ranks) for rank in range(ranks)]
    return shards, [shard.take(whole) for shard in shards]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    ("size", "pieces", "ranks"), [(12, 12, 4), (13, 13, 4), (12, 4, 2), (12, 2, 2), (12, 2, 4), (12, 1, 4)]
)
def test_parts_join_to_the_whole(dim: int, size: int, pieces: int, ranks: int) -> None:
    whole = torch.randn(size, 5) if dim == 0 else torch.randn(5, size)
    shards, found = parts(whole, dim, pieces, ranks)
    assert all(part.shape == shard.local_shape for shard, part in zip(shards, found, strict=True))
    assert torch.equal(shards[0].join(found), whole)
    assert sum(shard.is_first_copy for shard in shards) == min(pieces, ranks)
    assert all(stop > start and (stop - start) % (size // pieces) == 0 for start, stop in shards[0].bounds)


def test_sizes_differ_by_one_at_most() -> None:
    sizes = [stop - start for start, stop in Shard.of((100, 3), 0, 100, 0, 7).bounds]
    assert sum(sizes) == 100
    assert max(sizes) - min(sizes) == 1


def test_fewer_pieces_than_ranks_are_held_by_neighbours() -> None:
    shards, _ = parts(torch.zeros(8, 1), 0, 2, 4)
    assert shards[0].bounds == ((0, 4), (0, 4), (4, 8), (4, 8))
    assert [shard.copies for shard in shards] == [2, 2, 2, 2]
    assert [shard.is_first_copy for shard in shards] == [True, False, True, False]


@pytest.mark.parametrize(("elements", "ranks"), [(32, 5), (32, 3), (6, 2), (2, 5), (1, 3)])
def test_partitions_are_the_tensor_and_nothing_of_the_padding(elements: int, ranks: int) -> None:
    size = -(-elements // ranks)
    bounds = [partition_bounds(elements, size, rank) for rank in range(ranks)]
    assert bounds[0][0] == 0 and bounds[-1][1] == elements
    assert all(one[1] == other[0] for one, other in pairwise(bounds))
