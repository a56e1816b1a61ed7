"""Cross-entropy of a linear head without ever holding all logits: a slice of tokens at a time."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 2**24
"""Logits held at a time (64 MiB in fp32)."""
IGNORED = -100


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Sum over tokens of the cross-entropy of softmax(hidden @ weight^T), a scalar in at least fp32.

    Args:
        hidden: [N, d].
        weight: [V, d], the head.
        labels: int64 [N]; -100 is ignored.

    The gradients are computed slice by slice in the forward pass, while the logits are at hand.
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, with_gradients: bool) -> Tensor:
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        rows = max(1, LOGITS_AT_ONCE // weight.shape[0])
        total = torch.zeros((), dtype=precise, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradients else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if with_gradients else None
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            logits = (hidden[part] @ weight.T).to(precise)
            kept = labels[part] != IGNORED
            targets = labels[part].where(kept, 0)[:, None]
            log_normaliser = logits.logsumexp(dim=-1)
            losses = log_normaliser - logits.gather(1, targets).squeeze(1)
            total += losses.where(kept, 0).sum()
            if grad_hidden is not None and grad_weight is not None:
                grad_logits = logits.sub_(log_normaliser[:, None]).exp_()
                grad_logits.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=precise))
                grad_logits = grad_logits.mul_(kept[:, None]).to(hidden.dtype)
                torch.mm(grad_logits, weight, out=grad_hidden[part])
                if precise == hidden.dtype:
                    grad_weight.addmm_(grad_logits.T, hidden[part])
                else:
                    grad_weight += grad_logits.T @ hidden[part]
        ctx.gradients = grad_hidden, grad_weight
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy keeps its gradients for one backward pass only")
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None
        return grad_hidden.mul_(grad), grad_weight.mul_(grad).to(grad_hidden.dtype), None, None
