"""Cross-entropy of a linear head, and z-loss, without ever holding all logits: a slice of tokens at a time."""

import warnings
from functools import cache
from math import log2
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deconattn.ops.backend import fused
from deconattn.ops.head_slices import InFp32, InPlace, Slices, VocabularyRanks
from deconattn.ops.logits import NOWHERE
from deconattn.ops.precision import outside_autocast

LOGITS_AT_ONCE = 2**24
"""Logits held at a time on a CPU (64 MiB in fp32), and at least on a GPU."""
SHARE_OF_GPU = 1 / 32
"""Part of a GPU's memory that logits may take: each slice goes over the whole gradient of the head once more."""
IGNORED = -100
"""The label that the loss leaves out."""


def logits_at_once(gpu_bytes: int | None, bytes_per_logit: int) -> int:
    """Number of logits to hold at a time, a power of two, so that GPUs of a kind hold alike.

    It follows from the GPU's whole memory: what is free at the moment would give a run and its resume other sums.

    Args:
        gpu_bytes: memory of the GPU; None is a CPU.
        bytes_per_logit: size in the hidden states' dtype, in which alone a GPU holds them.
    """
    if gpu_bytes is None:
        return LOGITS_AT_ONCE
    return max(LOGITS_AT_ONCE, 2 ** int(log2(gpu_bytes * SHARE_OF_GPU / bytes_per_logit)))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, ranks: VocabularyRanks | None = None
) -> Tensor:
    """Sum over tokens of the cross-entropy of softmax(hidden @ weight^T), a scalar in at least fp32.

    Of :func:`linear_losses`.
    """
    return linear_losses(hidden, weight, labels, ranks)[0]


@outside_autocast("hidden", "weight")
def linear_losses(
    hidden: Tensor, weight: Tensor, labels: Tensor, ranks: VocabularyRanks | None = None, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return cross-entropy plus z-loss, summed over tokens, and the two apart.

    A token's z-loss is `z_loss` times log(Z)^2, Z the sum of its logits' exponentials: it keeps log(Z) near 0 (PaLM,
    Chowdhery et al. 2022, section 5).

    Args:
        hidden: [N, d].
        weight: [V, d], the head.
        labels: int64 [N]; -100 is ignored.
        ranks: where `weight` is this rank's rows of the head: every rank gets the loss, and of the hidden states'
            gradient its share.
        z_loss: coefficient.

    Returns:
        The sum, a scalar in at least fp32, and [2], what it is of, which has no gradient.

    The gradients are computed slice by slice in the forward pass, while the logits are at hand.
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels, ranks, z_loss, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        ranks: VocabularyRanks | None,
        z_loss: float,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        slices = _slices(hidden, weight, ranks, z_loss, with_gradients)
        parts = torch.zeros(2, dtype=slices.precise, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradients else None
        kept = labels != IGNORED
        targets, mine = labels, kept
        if ranks:
            targets = targets - ranks.first_id
            mine = kept & (targets >= 0) & (targets < weight.shape[0])
        targets = targets.where(mine, NOWHERE)
        for start in range(0, hidden.shape[0], slices.rows):
            here = slice(start, start + slices.rows)
            into = None if grad_hidden is None else grad_hidden[here]
            slices.add_losses(parts, hidden[here], targets[here], kept[here], ranks, into)
        ctx.gradients = grad_hidden, slices.grad_weight
        if ranks:
            parts = ranks.total(parts)
        ctx.mark_non_differentiable(parts)
        return parts.sum() if z_loss else parts[0].clone(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, Tensor, None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy keeps its gradients for one backward pass only")
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None
        return grad_hidden.mul_(grad), grad_weight.mul_(grad).to(grad_hidden.dtype), None, None, None, None


def _slices(
    hidden: Tensor, weight: Tensor, ranks: VocabularyRanks | None, z_loss: float, with_gradients: bool
) -> Slices:
    """The largest slices that the device is to hold, or that its free memory lets it hold.

    Ranks that share a head must cut alike, so they take what the smallest device is to hold and no less.
    """
    gpu = torch.cuda.get_device_properties(hidden.device).total_memory if hidden.device.type == "cuda" else None
    way = InPlace if hidden.device.type != "cpu" or fused(hidden) else InFp32
    at_once, words = logits_at_once(gpu, hidden.itemsize), weight.shape[0]
    if ranks:
        at_once, words = ranks.least(at_once), ranks.most_rows
    while True:
        rows = min(hidden.shape[0], max(1, at_once // way.width(words)))
        try:
            return way(hidden, weight, rows, with_gradients, z_loss)
        except torch.OutOfMemoryError:
            if ranks or at_once <= LOGITS_AT_ONCE:
                raise
        at_once //= 2
        _tell_of_slices(rows)


@cache
def _tell_of_slices(rows: int) -> None:
    warnings.warn(f"no memory for the logits of {rows} tokens at once: fewer are taken, which is slower", stacklevel=2)
