"""Cross-entropy of a linear head without ever holding all logits: a slice of tokens at a time."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 2**24
"""Logits held at a time (64 MiB in fp32)."""
IGNORED = -100
"""The label that the loss leaves out."""


class VocabularyRanks(Protocol):
    """The ranks among which the head's rows are shared out."""

    @property
    def first_id(self) -> int:
        """The token id of this rank's first row."""

    @property
    def most_rows(self) -> int:
        """Of any rank."""

    def log_normaliser(self, local: Tensor) -> Tensor:
        """log sum exp over the whole vocabulary from each rank's, [n] each; a collective call."""

    def total(self, local: Tensor) -> Tensor:
        """The sum over ranks; a collective call."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, ranks: VocabularyRanks | None = None
) -> Tensor:
    """Sum over tokens of the cross-entropy of softmax(hidden @ weight^T), a scalar in at least fp32.

    Args:
        hidden: [N, d].
        weight: [V, d], the head.
        labels: int64 [N]; -100 is ignored.
        ranks: where `weight` is this rank's rows of the head: every rank gets the loss, and of the hidden states'
            gradient its share.

    The gradients are computed slice by slice in the forward pass, while the logits are at hand.
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels, ranks, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, ranks: VocabularyRanks | None, with_gradients: bool
    ) -> Tensor:
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        rows = min(hidden.shape[0], max(1, LOGITS_AT_ONCE // (ranks.most_rows if ranks else weight.shape[0])))
        # Every slice works in the same few buffers: fresh ones of this size would each be paid for in page faults.
        buffer = hidden.new_empty(rows, weight.shape[0], dtype=precise)
        low = buffer if precise == hidden.dtype else buffer.to(hidden.dtype)
        total = torch.zeros((), dtype=precise, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradients else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if with_gradients else None
        product = torch.empty_like(weight) if with_gradients and low is not buffer else None
        for start in range(0, hidden.shape[0], rows):
            part = hidden[start : start + rows]
            logits, low_logits = buffer[: len(part)], low[: len(part)]
            torch.mm(part, weight.T, out=low_logits)
            if low is not buffer:
                logits.copy_(low_logits)
            kept = labels[start : start + rows] != IGNORED
            targets, mine = labels[start : start + rows], kept
            if ranks:
                targets = targets - ranks.first_id
                mine = kept & (targets >= 0) & (targets < weight.shape[0])
            targets = targets.where(mine, 0)[:, None]
            first_logits = logits[:, 0].clone()
            log_probabilities = torch.log_softmax(logits, dim=-1, out=logits)
            if ranks:
                local = first_logits - log_probabilities[:, 0]
                log_probabilities += (local - ranks.log_normaliser(local))[:, None]
            total -= log_probabilities.gather(1, targets).squeeze(1).where(mine, 0).sum()
            if grad_hidden is not None and grad_weight is not None:
                grad_logits = log_probabilities.exp_()
                grad_logits.scatter_add_(1, targets, mine[:, None].to(precise).neg_())
                if low is not buffer:
                    grad_logits = low_logits.copy_(grad_logits)
                torch.mm(grad_logits, weight, out=grad_hidden[start : start + rows])
                grad_hidden[start : start + rows] *= kept[:, None]
                part = part * kept[:, None]  # ignored tokens are left out here, where rows are short
                if product is None:
                    grad_weight.addmm_(grad_logits.T, part)
                else:
                    grad_weight += torch.mm(grad_logits.T, part, out=product)
        ctx.gradients = grad_hidden, grad_weight
        return ranks.total(total) if ranks else total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy keeps its gradients for one backward pass only")
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None
        return grad_hidden.mul_(grad), grad_weight.mul_(grad).to(grad_hidden.dtype), None, None, None
