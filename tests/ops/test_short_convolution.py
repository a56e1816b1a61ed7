"""A short convolution against its sum, and what it keeps of the tokens before."""

import pytest
import torch
from torch.testing import assert_close

from deconattn.ops.short_convolution import last_inputs, short_convolution
from tests.mixers.test_contract import positions_in

IDS = torch.tensor([[0] * 2 + [1] + [2] * 17, [0] * 20])


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
def test_it_is_the_sum_over_the_taps(masked: bool):
    inputs, weight = torch.randn(2, 20, 3, dtype=torch.double), torch.randn(3, 4, dtype=torch.double)
    output = short_convolution(inputs, weight, positions_in(IDS) if masked else None)
    for row in range(2):
        for i in range(20):
            seen = [m for m in range(4) if i >= m and (not masked or IDS[row, i - m] == IDS[row, i])]
            assert_close(output[row, i], sum(weight[:, 3 - m] * inputs[row, i - m] for m in seen))


def test_it_continues_what_was_kept():
    inputs, weight = torch.randn(2, 20, 3), torch.randn(3, 4)
    whole, before, parts = short_convolution(inputs, weight), torch.zeros(2, 3, 3), []
    for part in inputs.split([1, 5, 2, 12], dim=1):
        parts.append(short_convolution(part, weight, None, before))
        before = last_inputs(part, before)
    assert_close(torch.cat(parts, dim=1), whole)


def test_padding_is_not_kept():
    inputs, before = torch.randn(2, 5, 3), torch.randn(2, 3, 3)
    real = torch.tensor([[True] * 2 + [False] * 3, [False] * 5])
    kept = last_inputs(inputs, before, real)
    assert_close(kept, torch.stack([torch.cat([before[0, 2:], inputs[0, :2]]), before[1]]))
