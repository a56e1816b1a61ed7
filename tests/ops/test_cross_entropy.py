"""The sliced cross-entropy against PyTorch's."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from deconattn.ops.cross_entropy import linear_cross_entropy

TOKENS, WORDS, DIM = 100, 50, 16


def inputs(dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, DIM, generator=generator, dtype=torch.double).to(dtype).requires_grad_()
    weight = torch.randn(WORDS, DIM, generator=generator, dtype=torch.double).to(dtype).requires_grad_()
    labels = torch.randint(WORDS, (TOKENS,), generator=generator)
    labels[[0, 17, 18, 99]] = -100
    return hidden, weight, labels


# All at once; slices of 30, 30, 30 and 10 tokens; one token at a time, even where not one fits.
@pytest.mark.parametrize("at_once", [TOKENS * WORDS, 30 * WORDS + 7, 1])
def test_value_and_gradients(at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deconattn.ops.cross_entropy.LOGITS_AT_ONCE", at_once)
    hidden, weight, labels = inputs()
    ours = linear_cross_entropy(hidden, weight, labels)
    theirs = cross_entropy(hidden @ weight.T, labels, reduction="sum")
    assert ours.shape == ()
    assert ours.dtype == torch.double
    assert_close(ours, theirs, rtol=1e-12, atol=0)
    for scale in (1.0, -0.37):
        got = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels) * scale, [hidden, weight])
        wanted = torch.autograd.grad(
            cross_entropy(hidden @ weight.T, labels, reduction="sum") * scale, [hidden, weight]
        )
        for one, other in zip(got, wanted, strict=True):
            assert_close(one, other, rtol=1e-11, atol=1e-12)
        assert not got[0][17].any()


def test_all_labels_ignored():
    hidden, weight, labels = inputs()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    assert loss.item() == 0
    assert not any(grad.any() for grad in torch.autograd.grad(loss, [hidden, weight]))


@pytest.mark.parametrize("at_once", [TOKENS * WORDS, 30 * WORDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch):
    """One rounding of the logits and one of the result; the sum itself is fp32."""
    monkeypatch.setattr("deconattn.ops.cross_entropy.LOGITS_AT_ONCE", at_once)
    hidden, weight, labels = inputs(dtype)
    loss = linear_cross_entropy(hidden, weight, labels)
    assert loss.dtype == torch.float32
    got = torch.autograd.grad(loss, [hidden, weight])
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = cross_entropy(exact[0] @ exact[1].T, labels, reduction="sum")
    wanted = torch.autograd.grad(expected, exact)
    epsilon = torch.finfo(dtype).eps
    assert abs(loss.item() - expected.item()) <= epsilon * expected.item()
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).norm() <= 4 * epsilon * theirs.norm()


def test_large_logits_do_not_overflow():
    hidden = torch.tensor([[1e4, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 2e4
    assert hidden.grad.isfinite().all()
    assert hidden.grad.tolist() == [[2.0, 0.0]]


def test_without_gradients_nothing_is_kept():
    hidden, weight, labels = inputs()
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad
    assert_close(loss, cross_entropy(hidden @ weight.T, labels, reduction="sum"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_never_holds_all_logits(dtype: torch.dtype, largest_tensor, monkeypatch: pytest.MonkeyPatch):
    at_once = 20 * WORDS
    monkeypatch.setattr("deconattn.ops.cross_entropy.LOGITS_AT_ONCE", at_once)
    hidden, weight, labels = inputs(dtype)
    with largest_tensor:
        linear_cross_entropy(hidden, weight, labels).backward()
    assert largest_tensor.operations > 20
    assert largest_tensor.elements <= max(at_once, TOKENS * DIM, WORDS * DIM) < TOKENS * WORDS
