"""KL divergence between the predictions of two linear heads, without ever holding all logits of either.

Of each slice of tokens both models' logits are held, in at least fp32, and the student's become their gradient where
they stand. The teacher has none.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deconattn.ops.cross_entropy import IGNORED, logits_at_once
from deconattn.ops.head_slices import VocabularyRanks
from deconattn.ops.precision import at_least_fp32, outside_autocast


class Taught(NamedTuple):
    """What a teacher's head predicts from, and how sharply predictions are compared.

    Attributes:
        hidden: [.., d'], the teacher's normed hidden states.
        weight: [V, d'], its head, or this rank's rows of it.
        temperature: both models' logits are divided by it.
    """

    hidden: Tensor
    weight: Tensor
    temperature: float = 1.0


@outside_autocast("hidden", "weight")
def linear_divergence(
    hidden: Tensor, weight: Tensor, labels: Tensor, taught: Taught, ranks: VocabularyRanks | None = None
) -> Tensor:
    """Sum over tokens of T^2 KL(teacher || student), a scalar in at least fp32.

    Both distributions are softmax(logits / T); by the factor T^2 gradients keep their size at any temperature (Hinton
    et al. 2015, "Distilling the knowledge in a neural network", section 2).

    Args:
        hidden: [N, d], the student's.
        weight: [V, d], its head.
        labels: int64 [N]; tokens of -100 are left out. Other labels are not read.
        taught: the teacher's, hidden states [N, d'].
        ranks: where both heads are this rank's rows: every rank gets the sum, and of the hidden states' gradient its
            share.

    The gradients are computed slice by slice in the forward pass, while the logits are at hand.
    """
    return _LinearDivergence.apply(hidden, weight, labels, taught, ranks, torch.is_grad_enabled())


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        taught: Taught,
        ranks: VocabularyRanks | None,
        with_gradients: bool,
    ) -> Tensor:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=precise, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradients else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if with_gradients else None
        kept = labels != IGNORED
        rows = _rows(hidden, weight, ranks)
        for start in range(0, hidden.shape[0], rows):
            here = slice(start, start + rows)
            theirs = taught._replace(hidden=taught.hidden[here])
            sums, grad_logits = _of_slice(hidden[here], weight, theirs, ranks, with_gradients)
            total += sums.where(kept[here], 0).sum()
            if grad_hidden is None or grad_weight is None or grad_logits is None:
                continue
            grad_logits = grad_logits.mul_(kept[here, None]).to(hidden.dtype)
            grad_weight += grad_logits.T @ hidden[here]
            torch.mm(grad_logits, weight, out=grad_hidden[here])
        ctx.gradients = grad_hidden, grad_weight
        return ranks.total(total) if ranks else total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("linear_divergence keeps its gradients for one backward pass only")
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None
        return grad_hidden.mul_(grad), grad_weight.mul_(grad).to(grad_hidden.dtype), None, None, None, None


def _rows(hidden: Tensor, weight: Tensor, ranks: VocabularyRanks | None) -> int:
    """Tokens in a slice: two models' logits take twice the room. Ranks that share a head must cut alike."""
    gpu = torch.cuda.get_device_properties(hidden.device).total_memory if hidden.device.type == "cuda" else None
    at_once, words = logits_at_once(gpu, 4) // 2, weight.shape[0]
    if ranks:
        at_once, words = ranks.least(at_once), ranks.most_rows
    return max(1, min(hidden.shape[0], at_once // words))


def _of_slice(
    hidden: Tensor, weight: Tensor, taught: Taught, ranks: VocabularyRanks | None, with_gradients: bool
) -> tuple[Tensor, Tensor | None]:
    """Return this rank's share of each token's divergence, [n], and the gradient of the logits, [n, V]."""
    temperature = taught.temperature
    ours = _log_probabilities(hidden, weight, temperature, ranks)
    theirs = _log_probabilities(taught.hidden, taught.weight, temperature, ranks)
    weights = theirs.exp()
    divergence = temperature**2 * (theirs.sub_(ours).mul_(weights)).sum(1)
    if not with_gradients:
        return divergence, None
    return divergence, ours.exp_().sub_(weights).mul_(temperature)


def _log_probabilities(hidden: Tensor, weight: Tensor, temperature: float, ranks: VocabularyRanks | None) -> Tensor:
    """Logarithms of softmax(logits / T), [n, V], in at least fp32."""
    logits = at_least_fp32(hidden @ weight.T).div_(temperature)
    normalisers = logits.logsumexp(1)
    if ranks:
        normalisers = ranks.log_normaliser(normalisers)
    return logits.sub_(normalisers[:, None])
