"""Rotary embeddings: complex rotations in the half-split layout."""

import torch
from torch.testing import assert_close

from deconattn.layers.rotary import Rotary


def test_rotates_pairs_by_position_times_frequency(tiny_config):
    config = tiny_config("standard", rope_theta=100.0)
    positions = torch.tensor([[0, 1, 7, 30]])
    heads = torch.randn(1, 2, 4, 8, dtype=torch.double)
    rotated, _ = Rotary.of(config, positions, torch.double)(heads, heads)
    for pair in range(4):  # channels (pair, pair + 4) are one complex number
        turned = torch.complex(heads[..., pair], heads[..., pair + 4])
        turned = turned * torch.exp(1j * positions[0].double() * 100.0 ** (-pair / 4))
        assert_close(rotated[..., pair], turned.real, rtol=1e-12, atol=1e-12)
        assert_close(rotated[..., pair + 4], turned.imag, rtol=1e-12, atol=1e-12)


def test_rows_and_row(tiny_config):
    config = tiny_config("standard")
    heads = torch.randn(3, 2, 5, 8, dtype=torch.double)
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2], [0, 0, 0, 1, 2]])
    rotary = Rotary.of(config, positions, torch.double)
    whole = rotary(heads, heads)[0]
    assert torch.equal(rotary.rows(2)(heads[:2], heads[:2])[0], whole[:2])
    for row in (0, 1, -1):
        assert torch.equal(rotary.row(row)(heads[row][None], heads[row][None])[0][0], whole[row])
    shared = Rotary.of(config, positions[:1], torch.double)
    assert torch.equal(shared.row(-1)(heads[2:], heads[2:])[0], shared(heads, heads)[0][2:])
    assert torch.equal(shared.rows(2)(heads[:2], heads[:2])[0], shared(heads, heads)[0][:2])


def test_angles_are_precise_in_half_precision(tiny_config):
    """bf16 rounds the cosine, not the angle: position 2047 times frequency one keeps its phase."""
    rotary = Rotary.of(tiny_config("standard"), torch.tensor([[2047]]), torch.bfloat16)
    assert rotary.cos.dtype == torch.bfloat16
    assert abs(rotary.cos[0, 0, 0, 0].item() - torch.tensor(2047.0, dtype=torch.double).cos().item()) < 2**-8


def test_narrower_heads_have_frequencies_of_all(tiny_config):
    """Half of the width is what a model of such heads would have."""
    positions = torch.tensor([[0, 3, 200]])
    whole = Rotary.of(tiny_config("standard", head_dim=16), positions, torch.double)
    half = Rotary.of(tiny_config("standard", head_dim=8), positions, torch.double)
    assert_close(whole.narrowed(8).cos, half.cos, rtol=1e-12, atol=1e-12)
    assert_close(whole.narrowed(8).sin, half.sin, rtol=1e-12, atol=1e-12)
    assert whole.narrowed(16) is whole
    assert torch.equal(whole.narrowed(6).cos, whole.cos[..., [0, 2, 5, 8, 10, 13]])
