"""Chunks of the delta rule against the recurrence in float64, with gradients."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.ops import reference
from deconattn.ops.delta_rule import delta_rule

DECAYS = ("none", "scalar", "channel")


def drawn(length: int, decay: str, strength: float = 1.0) -> list[Tensor | None]:
    """Queries, keys of length one, values, strengths, and log decays of all sizes between none and `strength`."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.double)

    log_decay = -strength * normal(2, 3, length, 5 if decay == "channel" else 1).relu()
    keys = torch.nn.functional.normalize(normal(2, 3, length, 5), dim=-1)
    tensors = [normal(2, 3, length, 5), keys, normal(2, 3, length, 4), normal(2, 3, length).sigmoid(), log_decay]
    if decay == "none":
        tensors[4] = None
    return [None if tensor is None else tensor.requires_grad_() for tensor in tensors]


def documents(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return (torch.rand(2, length, generator=generator) < 1 / 30).long().cumsum(dim=1)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_chunks_are_the_recurrence(length: int, masked: bool, decay: str):
    inputs = drawn(length, decay)
    ids = documents(length) if masked else None
    mixed, expected = delta_rule(*inputs, ids)[0], reference.delta_rule(*inputs, ids)
    assert_close(mixed, expected, rtol=1e-11, atol=1e-11)
    upstream = torch.randn(mixed.shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    wanted = [tensor for tensor in inputs if tensor is not None]
    got = torch.autograd.grad(mixed, wanted, upstream)
    for ours, theirs in zip(got, torch.autograd.grad(expected, wanted, upstream), strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decay", DECAYS)
def test_pieces_continue_one_another_and_padding_leaves_the_state(decay: str):
    inputs = [tensor if tensor is None else tensor.detach() for tensor in drawn(200, decay)]
    expected, last = delta_rule(*inputs)
    state, pieces = None, []
    for start, stop in ((0, 1), (1, 70), (70, 71), (71, 200)):
        padded = [None if one is None else torch.cat([one[:, :, start:stop], one[:, :, :3]], dim=2) for one in inputs]
        real = (torch.arange(stop - start + 3) < stop - start).expand(2, -1)
        mixed, state = delta_rule(*padded, state=state, real=real)
        pieces.append(mixed[:, :, : stop - start])
    assert_close(torch.cat(pieces, dim=2), expected, rtol=1e-11, atol=1e-11)
    assert_close(state, last, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("strength", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("decay", ["scalar", "channel"])
def test_however_fast_it_decays_fp32_is_close(decay: str, strength: float):
    inputs = drawn(200, decay, strength)
    expected = reference.delta_rule(*inputs)
    single = [tensor.detach().float().requires_grad_() for tensor in inputs]
    mixed = delta_rule(*single)[0]
    # A sum of decays over a chunk has the rounding of its size, which is that of the next token's part in it.
    unit = 64 * strength * torch.finfo(torch.float32).eps
    assert (mixed.double() - expected).norm() <= unit * expected.norm()
    got = torch.autograd.grad(mixed.sum(), single)
    for ours, theirs in zip(got, torch.autograd.grad(expected.sum(), inputs), strict=True):
        assert ours.isfinite().all()
        assert (ours.double() - theirs).norm() <= unit * theirs.norm()
