"""The indicators against numbers worked out by hand, and streaming against the definition."""

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.analysis.collect import CELLS, PooledMap
from deconattn.analysis.indicators import NAMES, OFFSETS, Indicators, IndicatorSums, define
from deconattn.analysis.sample import SHORTEST
from deconattn.mixers import MapBlock
from deconattn.mixers.map_blocks import cut


def random_maps(*shape: int) -> Tensor:
    """Causal, rows summing to one, some entries exactly zero."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.double) * 3
    weights = scores.exp().where(scores > -4, 0) * torch.ones(shape[-1], shape[-1]).tril()
    weights += torch.eye(shape[-1]) * 1e-3
    return weights / weights.sum(dim=-1, keepdim=True)


def streamed(whole: Tensor, size: int) -> Indicators:
    sums = IndicatorSums()
    for block in cut(whole, size):
        sums.add(block)
    return sums.indicators()


def test_uniform_maps_by_hand():
    length = 7
    rows = torch.arange(1, length + 1, dtype=torch.double)
    uniform = torch.ones(length, length, dtype=torch.double).tril() / rows[:, None]
    found = define(torch.stack([uniform, uniform])).by_name()
    assert tuple(found) == NAMES
    assert_close(found["entropy"], torch.full((2,), math.log(math.factorial(7)) / 7, dtype=torch.double))
    harmonic = sum(1 / i for i in range(1, 8))
    assert_close(found["concentration"], torch.full((2,), math.sqrt(harmonic), dtype=torch.double))
    assert found["head diversity"] == 0
    assert_close(found["sink"], torch.full((2,), harmonic / 7, dtype=torch.double))
    for n in range(OFFSETS):
        expected = sum(1 / i for i in range(1 + n, 8)) / (7 - n)
        assert_close(found[f"local focus {n}"], torch.full((2,), expected, dtype=torch.double))


def test_maps_that_look_at_one_token_by_hand():
    itself = torch.eye(5)
    first = torch.zeros(5, 5)
    first[:, 0] = 1
    previous = torch.diag(torch.ones(4), -1)
    previous[0, 0] = 1
    found = define(torch.stack([itself, first, previous])).by_name()
    assert found["entropy"].tolist() == [0, 0, 0]
    assert_close(found["concentration"], torch.full((3,), math.sqrt(5), dtype=torch.double))
    assert_close(found["sink"], torch.tensor([1 / 5, 1, 2 / 5], dtype=torch.double))
    assert_close(found["local focus 0"], torch.tensor([1, 1 / 5, 1 / 5], dtype=torch.double))
    assert_close(found["local focus 1"], torch.tensor([0, 1 / 4, 1], dtype=torch.double))
    assert_close(found["local focus 3"], torch.tensor([0, 1 / 2, 0], dtype=torch.double))
    # At (0, 0) the heads agree. At (1, 0) one of three differs, at (1, 1) too; of the other 12 positions, three rows
    # have three each at which one head of three has a one.
    one_of_three = math.sqrt(2) / 3
    assert_close(float(found["head diversity"]), 2 / (5 * 6) * (2 + 3 * 3) * one_of_three)


@pytest.mark.parametrize("size", [1, 3, 16, 37, 50])
def test_streaming_is_the_definition(size: int):
    whole = random_maps(2, 5, 37)
    assert (whole == 0)[..., 5:, :5].any()
    ours, theirs = streamed(whole, size), define(whole)
    for field in fields(Indicators):
        assert_close(getattr(ours, field.name), getattr(theirs, field.name), rtol=1e-10, atol=1e-12)
    assert ours.diversity.shape == (2,) and ours.local.shape == (2, 5, OFFSETS)


def test_a_missing_block_is_noticed():
    first, _, last = cut(random_maps(1, 2, 9), 3)
    sums = IndicatorSums()
    sums.add(first)
    with pytest.raises(AssertionError, match="a block is missing"):
        sums.add(last)


def test_the_shortest_sequence_has_all_sub_diagonals():
    assert SHORTEST == OFFSETS
    found = define(random_maps(1, 2, SHORTEST))
    assert all(tensor.isfinite().all() for tensor in found.by_name().values())


@pytest.mark.parametrize("length", [9, CELLS, 3 * CELLS + 50])
def test_a_pooled_map_has_the_means_of_its_cells(length: int):
    whole = random_maps(2, length)
    picture = PooledMap(length)
    for block in cut(whole, 100):
        picture.add(MapBlock(block.weights, None))
    means = picture.means()
    side = min(length, CELLS)
    assert means.shape == (2, side, side)
    cell = [i * side // length for i in range(length)]
    for row, column in ((0, 0), (side - 1, 0), (side - 1, side - 1), (side // 2, side // 3), (side // 2, side // 2)):
        entries = [
            whole[:, i, j]
            for i in range(length)
            if cell[i] == row
            for j in range(i + 1)
            if cell[j] == column
        ]  # fmt: skip
        assert_close(means[:, row, column], torch.stack(entries).mean(dim=0))
    assert means[:, 0, 1:].isnan().all()
