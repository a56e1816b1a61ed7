"""The sliced cross-entropy against PyTorch's."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from deconattn.ops import cross_entropy as sliced
from deconattn.ops import logits as passes
from deconattn.ops.cross_entropy import linear_cross_entropy, linear_losses, logits_at_once
from deconattn.ops.head_slices import InFp32

TOKENS, WORDS, DIM = 100, 50, 16


@pytest.fixture(params=["a CPU's way", "a GPU's way"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits in fp32, or in place by PyTorch's operations; the kernels have a test of their own."""
    if request.param == "a GPU's way":
        monkeypatch.setattr(sliced, "fused", lambda _: True)
        monkeypatch.setattr(passes, "PLAIN_AT_ONCE", 7 * passes.padded(WORDS))


def inputs(dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, DIM, generator=generator, dtype=torch.double).to(dtype).requires_grad_()
    weight = torch.randn(WORDS, DIM, generator=generator, dtype=torch.double).to(dtype).requires_grad_()
    labels = torch.randint(WORDS, (TOKENS,), generator=generator)
    labels[[0, 17, 18, 99]] = -100
    return hidden, weight, labels


# All at once; slices of 30, 30, 30 and 10 tokens; one token at a time, even where not one fits.
@pytest.mark.parametrize("at_once", [2 * TOKENS * WORDS, 30 * WORDS + 7, 1])
@pytest.mark.usefixtures("way")
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


def exact_z(hidden: Tensor, weight: Tensor, labels: Tensor, coefficient: float) -> Tensor:
    logits = hidden.double() @ weight.double().T
    return coefficient * logits.logsumexp(1).square()[labels != sliced.IGNORED].sum()


@pytest.mark.parametrize("at_once", [2 * TOKENS * WORDS, 30 * WORDS + 7])
@pytest.mark.usefixtures("way")
def test_z_loss(at_once: int, monkeypatch: pytest.MonkeyPatch):
    """The sum's gradient is that of cross-entropy and z-loss, which are told apart; ignored tokens have neither."""
    monkeypatch.setattr("deconattn.ops.cross_entropy.LOGITS_AT_ONCE", at_once)
    hidden, weight, labels = inputs()
    total, parts = linear_losses(hidden, weight, labels, z_loss=0.03)
    wanted_parts = [
        cross_entropy(hidden @ weight.T, labels, reduction="sum"),
        exact_z(hidden, weight, labels, 0.03),
    ]
    assert_close(parts, torch.stack(wanted_parts).detach(), rtol=1e-12, atol=0)
    assert_close(total, sum(wanted_parts), rtol=1e-12, atol=0)
    assert not parts.requires_grad
    got = torch.autograd.grad(total * -0.37, [hidden, weight])
    wanted = torch.autograd.grad(sum(wanted_parts) * -0.37, [hidden, weight])
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other, rtol=1e-11, atol=1e-12)
    assert not got[0][17].any()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_z_loss_in_low_precision(dtype: torch.dtype):
    hidden, weight, labels = inputs(dtype)
    total, parts = linear_losses(hidden, weight, labels, z_loss=0.1)
    got = torch.autograd.grad(total, [hidden, weight])
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = cross_entropy(exact[0] @ exact[1].T, labels, reduction="sum") + exact_z(*exact, labels, 0.1)
    epsilon = torch.finfo(dtype).eps
    assert parts.dtype == torch.float32
    assert abs(total.item() - expected.item()) <= epsilon * expected.item()
    for ours, theirs in zip(got, torch.autograd.grad(expected, exact), strict=True):
        assert (ours.double() - theirs).norm() <= 4 * epsilon * theirs.norm()


@dataclass
class OneOfRanks:
    """The ranks of a head, seen by one of them: they know the whole vocabulary's log-sum-exps."""

    first_id: int
    normalisers: Tensor
    most_rows: int = 31

    def least(self, number: int) -> int:
        return number

    def log_normaliser(self, local: Tensor) -> Tensor:
        return self.normalisers

    def total(self, local: Tensor) -> Tensor:
        return local


@pytest.mark.usefixtures("way")
def test_z_loss_of_a_vocabulary_that_ranks_share():
    """Each token's is one rank's, and gradients of hidden states add up."""
    hidden, weight, labels = inputs()
    expected, parts = linear_losses(hidden, weight, labels, z_loss=0.03)
    of_hidden, of_weight = torch.autograd.grad(expected, [hidden, weight])
    whole = (hidden @ weight.T).logsumexp(1).detach()
    found = []
    for first, last in ((0, 31), (31, WORDS)):
        own = weight.detach()[first:last].requires_grad_()
        total, its = linear_losses(hidden, own, labels, OneOfRanks(first, whole), 0.03)
        found.append((its, *torch.autograd.grad(total, [hidden, own])))
    (its, hidden_1, rows_1), (others, hidden_2, rows_2) = found
    assert_close(its + others, parts, rtol=1e-12, atol=0)
    assert_close(hidden_1 + hidden_2, of_hidden, rtol=1e-11, atol=1e-12)
    assert_close(torch.cat([rows_1, rows_2]), of_weight, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("way")
def test_all_labels_ignored():
    hidden, weight, labels = inputs()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    assert loss.item() == 0
    assert not any(grad.any() for grad in torch.autograd.grad(loss, [hidden, weight]))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("at_once", [2 * TOKENS * WORDS, 30 * WORDS])
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


@pytest.mark.usefixtures("way")
def test_large_logits_do_not_overflow():
    hidden = torch.tensor([[1e4, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 2e4
    assert hidden.grad.isfinite().all()
    assert hidden.grad.tolist() == [[2.0, 0.0]]


@pytest.mark.usefixtures("way")
def test_without_gradients_nothing_is_kept():
    hidden, weight, labels = inputs()
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad
    assert_close(loss, cross_entropy(hidden @ weight.T, labels, reduction="sum"), rtol=1e-12, atol=0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_never_holds_all_logits(dtype: torch.dtype, largest_tensor, monkeypatch: pytest.MonkeyPatch):
    at_once = 20 * WORDS
    monkeypatch.setattr("deconattn.ops.cross_entropy.LOGITS_AT_ONCE", at_once)
    hidden, weight, labels = inputs(dtype)
    with largest_tensor:
        linear_cross_entropy(hidden, weight, labels).backward()
    assert largest_tensor.operations > 20
    assert largest_tensor.elements <= max(at_once, TOKENS * DIM, passes.padded(WORDS) * DIM) < TOKENS * WORDS


@pytest.mark.parametrize(
    ("gib", "size", "logits"),
    [
        (None, 2, 2**24),
        (1, 2, 2**24),
        (16, 4, 2**27),
        (79.1, 4, 2**29),
        (79.1, 2, 2**30),
        (80, 2, 2**30),
        (141, 2, 2**31),
    ],
)
def test_a_gpu_holds_logits_by_its_memory(gib: float | None, size: int, logits: int):
    assert logits_at_once(None if gib is None else int(gib * 2**30), size) == logits


def test_a_label_that_is_no_word_is_not_passed_over(monkeypatch: pytest.MonkeyPatch):
    hidden, weight, labels = inputs()
    for wrong in (WORDS, -1):
        labels[3] = wrong
        with pytest.raises((RuntimeError, IndexError)):
            linear_cross_entropy(hidden, weight, labels)
    monkeypatch.setattr(sliced, "fused", lambda _: True)
    assert linear_cross_entropy(hidden, weight, labels).isnan()


def test_slices_are_smaller_where_memory_is_short(monkeypatch: pytest.MonkeyPatch):
    """A device that has room for 20 tokens' logits, asked for all 100; it is told once."""
    asked = []

    class Scarce(InFp32):
        def __init__(self, hidden: Tensor, weight: Tensor, rows: int, with_gradients: bool, z_loss: float) -> None:
            asked.append(rows)
            if rows > 20:
                raise torch.OutOfMemoryError
            super().__init__(hidden, weight, rows, with_gradients, z_loss)

    monkeypatch.setattr(sliced, "InFp32", Scarce)
    monkeypatch.setattr(sliced, "LOGITS_AT_ONCE", WORDS)
    monkeypatch.setattr(sliced, "logits_at_once", lambda *_: 64 * WORDS)
    sliced._tell_of_slices.cache_clear()
    hidden, weight, labels = inputs()
    with pytest.warns(UserWarning, match="64 tokens at once") as told:
        losses = [linear_cross_entropy(hidden, weight, labels) for _ in range(2)]
    assert asked == [64, 32, 16] * 2
    assert len(told) == 2  # one for each size that did not fit
    assert_close(losses[1], cross_entropy(hidden @ weight.T, labels, reduction="sum"), rtol=1e-12, atol=0)


def test_too_little_memory_for_the_least_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def none(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(InFp32, "__init__", none)
    with pytest.raises(torch.OutOfMemoryError):
        linear_cross_entropy(*inputs())
