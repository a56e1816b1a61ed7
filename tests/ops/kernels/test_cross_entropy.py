"""The cross-entropy's kernels against PyTorch's in float64: on a GPU, or in Triton's interpreter."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from triton.runtime.errors import OutOfResources

from deconattn.ops import cross_entropy as sliced
from deconattn.ops.cross_entropy import linear_cross_entropy, linear_losses
from deconattn.ops.head_slices import InPlace
from deconattn.ops.kernels import cross_entropy as kernel

pytestmark = pytest.mark.usefixtures("interpreter", "short_blocks")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS, WORDS, DIM = 12, 200, 16


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 256 logits is four blocks, the last of which begins with 8 words."""
    monkeypatch.setattr(kernel, "BLOCK", 64)


def inputs(dtype: torch.dtype, words: int = WORDS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(count, DIM, generator=generator).to(DEVICE, dtype) for count in (TOKENS, words))
    labels = torch.randint(words, (TOKENS,), generator=generator)
    labels[[0, 10, 11]] = sliced.IGNORED
    labels[1], labels[2] = 0, words - 1
    return hidden.requires_grad_(), weight.requires_grad_(), labels.to(DEVICE)


def exact(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    precise = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    loss = cross_entropy(precise[0] @ precise[1].T, labels, reduction="sum")
    return loss, torch.autograd.grad(loss, precise)


def assert_near(ours: Tensor, theirs: Tensor, bound: float) -> None:
    assert (ours.double() - theirs).norm() <= bound * theirs.norm()


# One slice; slices of 5, 5 and 2 tokens.
@pytest.mark.parametrize("at_once", [2**24, 5 * 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradients(dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sliced, "LOGITS_AT_ONCE", at_once)
    hidden, weight, labels = inputs(dtype)
    loss = linear_cross_entropy(hidden, weight, labels)
    found = torch.autograd.grad(loss, [hidden, weight])
    expected, wanted = exact(hidden, weight, labels)
    epsilon = torch.finfo(dtype).eps
    assert loss.dtype == torch.float32
    assert abs(loss.item() - expected.item()) <= 2 * epsilon * expected.item()
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == theirs.shape
        assert_near(ours, theirs, 4 * epsilon)
    assert not found[0][labels == sliced.IGNORED].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_z_loss(dtype: torch.dtype):
    hidden, weight, labels = inputs(dtype)
    total, parts = linear_losses(hidden, weight, labels, z_loss=0.1)
    found = torch.autograd.grad(total, [hidden, weight])
    precise = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    logits = precise[0] @ precise[1].T
    of_z = 0.1 * logits.logsumexp(1).square()[labels != sliced.IGNORED].sum()
    expected = cross_entropy(logits, labels, reduction="sum") + of_z
    epsilon = torch.finfo(dtype).eps
    assert abs(parts[1].item() - of_z.item()) <= 2 * epsilon * of_z.item()
    assert abs(total.item() - expected.item()) <= 2 * epsilon * expected.item()
    for ours, theirs in zip(found, torch.autograd.grad(expected, precise), strict=True):
        assert_near(ours, theirs, 8 * epsilon)
    assert not found[0][labels == sliced.IGNORED].any()


@dataclass
class OtherRank:
    """The ranks of a head, seen by one of them: they know the whole vocabulary's log-sum-exps."""

    first_id: int
    normalisers: Tensor
    most_rows: int = 131

    def least(self, number: int) -> int:
        return number

    def log_normaliser(self, local: Tensor) -> Tensor:
        return self.normalisers

    def total(self, local: Tensor) -> Tensor:
        return local


def test_a_vocabulary_of_two_ranks():
    """Their losses add up, as do their gradients of the hidden states; of the head each has its rows."""
    hidden, weight, labels = inputs(torch.float32)
    expected, (of_hidden, of_weight) = exact(hidden, weight, labels)
    whole = (hidden.double() @ weight.double().T).logsumexp(1).float()
    losses, sums, rows = [], [], []
    for first, last in ((0, 131), (131, WORDS)):
        own = weight.detach()[first:last].requires_grad_()
        losses.append(linear_cross_entropy(hidden, own, labels, OtherRank(first, whole)))
        for found, gradient in zip((sums, rows), torch.autograd.grad(losses[-1], [hidden, own]), strict=True):
            found.append(gradient)
    assert_close(sum(losses).double(), expected, rtol=1e-6, atol=0)
    assert_near(sum(sums), of_hidden, 1e-6)
    assert_near(torch.cat(rows), of_weight, 1e-6)


def test_extreme_logits():
    """Up to 1e4 either way, a row of infinities below, and one with a NaN: as PyTorch's log_softmax."""
    scores = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [3e38, -3e38, 1.0], [float("-inf"), 2.0, 1.0]])
    logits = torch.nn.functional.pad(torch.cat([scores, torch.tensor([[0.0, float("nan"), 0.0]])]), (0, 61)).to(DEVICE)
    targets = torch.tensor([1, 2, 0, 1, 0], device=DEVICE)
    wanted = torch.log_softmax(logits[:, :3].double(), dim=1)
    near = {"rtol": 1e-6, "atol": 1e-3, "equal_nan": True}  # fp32 knows a log-sum-exp of 1e4 to 5e-4
    normalisers, picked = torch.ops.deconattn.log_normalisers(logits, targets, 3)
    index = targets[:, None]
    assert_close((normalisers - picked).double(), -wanted.gather(1, index)[:, 0], **near)
    torch.ops.deconattn.logit_gradients_(logits, targets, normalisers, 3)
    gradients = wanted.exp().scatter_add(1, index, -torch.ones_like(index, dtype=torch.double))
    assert_close(logits[:, :3].double(), gradients, **near)
    assert not logits[:4, 3:].any()


def test_a_label_that_is_no_word_is_not_passed_over():
    hidden, weight, labels = inputs(torch.float32)
    labels[3] = WORDS
    assert linear_cross_entropy(hidden, weight, labels).isnan()


def test_kernels_that_cannot_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The same numbers by PyTorch's operations, and one warning."""
    hidden, weight, labels = inputs(torch.bfloat16)

    def gradients() -> tuple[Tensor, ...]:
        slices = InPlace(hidden, weight, TOKENS, True)
        targets = labels.where(labels != sliced.IGNORED, sliced.NOWHERE)
        of_hidden = torch.empty_like(hidden)
        parts = torch.zeros(2, device=DEVICE)
        slices.add_losses(parts, hidden, targets, labels != sliced.IGNORED, None, of_hidden)
        return parts[0], of_hidden, slices.grad_weight

    with torch.no_grad():
        expected = gradients()

        def broken(*_: object) -> None:
            raise OutOfResources(131072, 101376, "shared memory")

        monkeypatch.setattr(kernel, "logit_gradients_", broken)
        monkeypatch.setattr(kernel._ATTEMPTS, "_closed", set())
        monkeypatch.setattr("deconattn.ops.logits.fused", lambda _: True)
        monkeypatch.delenv("DECONATTN_BACKEND")
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        for _ in range(2):
            for ours, theirs in zip(gradients(), expected, strict=True):
                assert_near(ours, theirs, 1e-2)
    said = capsys.readouterr().err
    assert said.startswith("warning: the Triton kernels of the cross-entropy (torch.bfloat16) cannot run: OutOfRes")
    assert said.count("\n") == 1
