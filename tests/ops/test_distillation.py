"""The sliced divergence of two heads against its formula in float64."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.ops.distillation import Taught, linear_divergence
from tests.ops.test_cross_entropy import inputs

TOKENS, WORDS, DIM = 100, 50, 16


def teacher(dtype: torch.dtype = torch.double, temperature: float = 1.0, dim: int = 24) -> Taught:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, dim, generator=generator, dtype=torch.double).to(dtype)
    return Taught(hidden, torch.randn(WORDS, dim, generator=generator, dtype=torch.double).to(dtype), temperature)


def exact(hidden: Tensor, weight: Tensor, labels: Tensor, taught: Taught) -> Tensor:
    """The definition: sum over words of p_teacher (log p_teacher - log p_student), times T^2, of tokens that count."""
    temperature = taught.temperature
    ours = torch.log_softmax(hidden.double() @ weight.double().T / temperature, 1)
    theirs = torch.log_softmax(taught.hidden.double() @ taught.weight.double().T / temperature, 1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(1)[labels != -100].sum()


# All at once; slices of 30, 30, 30 and 10 tokens; one token at a time.
@pytest.mark.parametrize("at_once", [4 * TOKENS * WORDS, 60 * WORDS + 7, 1])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_value_and_gradients(at_once: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deconattn.ops.cross_entropy.LOGITS_AT_ONCE", at_once)
    hidden, weight, labels = inputs()
    taught = teacher(temperature=temperature)
    ours, wanted = linear_divergence(hidden, weight, labels, taught), exact(hidden, weight, labels, taught)
    assert ours.dtype == torch.double
    assert_close(ours, wanted, rtol=1e-12, atol=0)
    for scale in (1.0, -0.37):
        got = torch.autograd.grad(linear_divergence(hidden, weight, labels, taught) * scale, [hidden, weight])
        expected = torch.autograd.grad(exact(hidden, weight, labels, taught) * scale, [hidden, weight])
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other, rtol=1e-11, atol=1e-12)
        assert not got[0][17].any()


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    hidden, weight, labels = inputs()
    total = linear_divergence(hidden, weight, labels, Taught(hidden.detach(), weight.detach(), 2.0))
    assert total.item() == 0
    assert not any(grad.any() for grad in torch.autograd.grad(total, [hidden, weight]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    """Logits and their gradients are rounded once; the sums are fp32."""
    hidden, weight, labels = inputs(dtype)
    taught = teacher(dtype, 2.0)
    total = linear_divergence(hidden, weight, labels, taught)
    got = torch.autograd.grad(total, [hidden, weight])
    doubles = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    wanted = exact(*doubles, labels, taught)
    epsilon = torch.finfo(dtype).eps
    assert total.dtype == torch.float32
    assert abs(total.item() - wanted.item()) <= epsilon * wanted.item()
    for ours, theirs in zip(got, torch.autograd.grad(wanted, doubles), strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).norm() <= 4 * epsilon * theirs.norm()


def test_without_gradients() -> None:
    hidden, weight, labels = inputs()
    with torch.no_grad():
        total = linear_divergence(hidden, weight, labels, teacher())
    assert not total.requires_grad
    assert_close(total, exact(hidden, weight, labels, teacher()).detach(), rtol=1e-12, atol=0)


class OneOfRanks:
    """The ranks of two heads, seen by one of them: they know the whole vocabulary's log-sum-exps, ours first."""

    first_id, most_rows = 0, 31

    def __init__(self, *normalisers: Tensor) -> None:
        self._normalisers = list(normalisers)

    def least(self, number: int) -> int:
        return number

    def log_normaliser(self, local: Tensor) -> Tensor:
        return self._normalisers.pop(0)

    def total(self, local: Tensor) -> Tensor:
        return local


def test_a_vocabulary_that_ranks_share() -> None:
    """Shares of the sum and of the hidden states' gradient add up."""
    hidden, weight, labels = inputs()
    taught = teacher(temperature=2.0)
    whole = [(h @ w.T / 2.0).logsumexp(1).detach() for h, w in ((hidden, weight), (taught.hidden, taught.weight))]
    expected = exact(hidden, weight, labels, taught)
    of_hidden, of_weight = torch.autograd.grad(expected, [hidden, weight])
    found = []
    for first, last in ((0, 31), (31, WORDS)):
        own = weight.detach()[first:last].requires_grad_()
        part = taught._replace(weight=taught.weight[first:last])
        total = linear_divergence(hidden, own, labels, part, OneOfRanks(*whole))
        found.append((total.detach(), *torch.autograd.grad(total, [hidden, own])))
    (one, hidden_1, rows_1), (other, hidden_2, rows_2) = found
    assert_close(one + other, expected.detach(), rtol=1e-12, atol=0)
    assert_close(hidden_1 + hidden_2, of_hidden, rtol=1e-11, atol=1e-12)
    assert_close(torch.cat([rows_1, rows_2]), of_weight, rtol=1e-11, atol=1e-12)
