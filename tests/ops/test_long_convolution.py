"""A long convolution, whole or within documents, against its matrix."""

import pytest
import torch
from torch.testing import assert_close

from deconattn.ops.long_convolution import long_convolution


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 64, 100, 300])
def test_it_and_its_gradients_are_the_matrixs(length: int, masked: bool):
    inputs = torch.randn(3, length, 4, dtype=torch.double, requires_grad=True)
    taps = torch.randn(length, 4, dtype=torch.double, requires_grad=True)
    ids = torch.stack([(torch.rand(length) < rate).cumsum(0) for rate in (0, 0.03, 0.3)]) if masked else None
    distance = torch.arange(length)[:, None] - torch.arange(length)
    visible = (distance >= 0).expand(3, -1, -1)
    if ids is not None:
        visible = visible & (ids[:, :, None] == ids[:, None])
    expected = torch.einsum("ijn,rij,rjn->rin", taps[distance.clamp(min=0)], visible.double(), inputs)
    output, upstream = long_convolution(inputs, taps, ids), torch.randn_like(expected)
    assert_close(output, expected)
    for ours, theirs in zip(
        *(torch.autograd.grad(one, (inputs, taps), upstream) for one in (output, expected)), strict=True
    ):
        assert_close(ours, theirs)
