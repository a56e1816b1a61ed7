"""Moments, extremes and quantiles of activations that come in pieces."""

import math
from itertools import pairwise

import pytest
import torch

from deconattn.analysis.pre_softmax import A_DECADE, ActivationSums, Distribution, bin_edges

BIN = 10 ** (1 / A_DECADE)


def distribution(*pieces: torch.Tensor) -> Distribution:
    sums = ActivationSums()
    for piece in pieces:
        sums.add(piece)
    assert sums.finite
    found = sums.distribution()
    assert found is not None
    return found


@pytest.mark.parametrize("shift", [0.0, 1e5])
def test_moments_and_extremes_are_exact(shift: float):
    values = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 3 + shift
    found = distribution(values[0, :10], values[0, 10:], values[1:])
    assert found.count == 3000 == found.bins.sum()
    assert found.mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert found.std == pytest.approx(float(values.std(correction=0)), rel=1e-9)
    assert (found.minimum, found.maximum) == (float(values.min()), float(values.max()))


def test_bins_count_what_lies_between_their_edges():
    edges = bin_edges()
    assert (edges.diff() > 0).all()
    assert torch.equal(edges, -edges.flip(0))
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1), dtype=torch.double) * 100
    values = torch.cat([values, torch.tensor([0.0, 1e-9, -1e-9, 1e8, -1e8], dtype=torch.double), edges[::9]])
    found = distribution(values)
    bounds = [-math.inf, *edges.tolist(), math.inf]
    expected = [int(((values >= low) & (values < high)).sum()) for low, high in pairwise(bounds)]
    assert found.bins.tolist() == expected


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_quantiles_are_within_a_bin(scale: float):
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(2), dtype=torch.double) * scale
    found = distribution(values)
    for share in (0.0, 0.01, 0.25, 0.75, 0.99, 1.0):
        exact = float(values.quantile(share))
        assert abs(exact) / BIN <= abs(found.quantile(share)) <= abs(exact) * BIN
        assert found.quantile(share) * exact > 0
    assert (found.quantile(0), found.quantile(1)) == (found.minimum, found.maximum)


def test_one_value():
    found = distribution(torch.full((7,), 2.5))
    assert {found.quantile(share) for share in (0.0, 0.3, 0.5, 1.0)} == {2.5}
    assert found.std == 0


def test_hidden_entries_are_none():
    hidden = torch.full((2, 3), -math.inf)
    hidden[1, 0] = 4.0
    found = distribution(hidden)
    assert (found.count, found.mean) == (1, 4.0)
    sums = ActivationSums()
    sums.add(hidden[:1])
    assert sums.distribution() is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_noticed(bad: float):
    sums = ActivationSums()
    sums.add(torch.tensor([1.0, bad]))
    assert not sums.finite
