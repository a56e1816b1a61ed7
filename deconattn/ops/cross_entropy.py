"""Cross-entropy of a linear head without ever holding all logits: a slice of tokens at a time."""

import warnings
from functools import cache
from math import log2
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deconattn.ops.matmul import ignores_out, matmul
from deconattn.ops.precision import outside_autocast

LOGITS_AT_ONCE = 2**24
"""Logits held at a time on a CPU (64 MiB in fp32), and at least on a GPU."""
SHARE_OF_GPU = 1 / 32
"""Part of a GPU's memory that logits may take: each slice goes over the whole gradient of the head once more."""
BYTES_OF_LOGIT = 6
"""Bytes of a logit in fp32 and, beside it, in bf16."""
IGNORED = -100
"""The label that the loss leaves out."""


class VocabularyRanks(Protocol):
    """The ranks among which the head's rows are shared out."""

    @property
    def first_id(self) -> int:
        """The token id of this rank's first row."""

    @property
    def most_rows(self) -> int:
        """Largest number of head rows on any rank."""

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers; a collective call."""

    def log_normaliser(self, local: Tensor) -> Tensor:
        """log sum exp over the whole vocabulary from each rank's, [n] each; a collective call."""

    def total(self, local: Tensor) -> Tensor:
        """The sum over ranks; a collective call."""


def logits_at_once(gpu_bytes: int | None) -> int:
    """Number of logits to hold at a time, a power of two, so that GPUs of a kind hold alike.

    It follows from the GPU's whole memory: what is free at the moment would give a run and its resume other sums.

    Args:
        gpu_bytes: memory of the GPU; None is a CPU.
    """
    if gpu_bytes is None:
        return LOGITS_AT_ONCE
    return max(LOGITS_AT_ONCE, 2 ** int(log2(gpu_bytes * SHARE_OF_GPU / BYTES_OF_LOGIT)))


@outside_autocast("hidden", "weight")
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
        work = _workspace(hidden, weight, ranks, precise, with_gradients)
        rows = work.rows
        total = torch.zeros((), dtype=precise, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradients else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if with_gradients else None
        for start in range(0, hidden.shape[0], rows):
            here = slice(start, start + rows)
            loss, part = _slice(hidden[here], weight, labels[here], ranks, work, grad_weight)
            total += loss
            if grad_hidden is not None and part is not None:
                grad_hidden[here] = part
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


class _Workspace(NamedTuple):
    """Buffers that every slice works in: fresh ones of this size would each be paid for in page faults.

    Attributes:
        rows: tokens of a slice.
        logits: [rows, V] in at least fp32, or None where the product comes in a tensor of its own.
        low: [rows, V] logits in the inputs' dtype where that is narrower, else None.
        product: [V, d] of the weight's gradient, in the inputs' dtype where that is narrower, else None.
    """

    rows: int
    logits: Tensor | None
    low: Tensor | None
    product: Tensor | None

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, rows: int, precise: torch.dtype, with_gradients: bool) -> "_Workspace":
        narrow = precise != hidden.dtype
        shape = rows, weight.shape[0]
        return cls(
            rows=rows,
            logits=hidden.new_empty(shape, dtype=precise) if narrow or not ignores_out(hidden) else None,
            low=hidden.new_empty(shape) if narrow else None,
            product=torch.empty_like(weight) if narrow and with_gradients else None,
        )


def _workspace(
    hidden: Tensor, weight: Tensor, ranks: VocabularyRanks | None, precise: torch.dtype, with_gradients: bool
) -> _Workspace:
    """Buffers of the largest slice that the device is to hold, or that its free memory lets it hold.

    Ranks that share a head must cut alike, so they take what the smallest device is to hold and no less.
    """
    gpu = torch.cuda.get_device_properties(hidden.device).total_memory if hidden.device.type == "cuda" else None
    at_once, words = logits_at_once(gpu), weight.shape[0]
    if ranks:
        at_once, words = ranks.least(at_once), ranks.most_rows
    while True:
        rows = min(hidden.shape[0], max(1, at_once // words))
        try:
            return _Workspace.of(hidden, weight, rows, precise, with_gradients)
        except torch.OutOfMemoryError:
            if ranks or at_once <= LOGITS_AT_ONCE:
                raise
        at_once //= 2
        _tell_of_slices(rows)


@cache
def _tell_of_slices(rows: int) -> None:
    warnings.warn(f"no memory for the logits of {rows} tokens at once: fewer are taken, which is slower", stacklevel=2)


def _slice(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ranks: VocabularyRanks | None,
    work: _Workspace,
    grad_weight: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Loss and the hidden states' gradient of some tokens; the weight's is added to `grad_weight`, if there is one."""
    into = work.logits if work.low is None else work.low
    low_logits = matmul(hidden, weight.T, out=None if into is None else into[: len(hidden)])
    logits = low_logits
    if work.low is not None:
        assert work.logits is not None
        logits = work.logits[: len(hidden)].copy_(low_logits)
    kept = labels != IGNORED
    targets, mine = labels, kept
    if ranks:
        targets = targets - ranks.first_id
        mine = kept & (targets >= 0) & (targets < weight.shape[0])
    targets = targets.where(mine, 0)[:, None]
    first_logits = logits[:, 0].clone()
    log_probabilities = torch.log_softmax(logits, dim=-1, out=logits)
    if ranks:
        local = first_logits - log_probabilities[:, 0]
        log_probabilities += (local - ranks.log_normaliser(local))[:, None]
    loss = -log_probabilities.gather(1, targets).squeeze(1).where(mine, 0).sum()
    if grad_weight is None:
        return loss, None
    grad_logits = log_probabilities.exp_()
    grad_logits.scatter_add_(1, targets, mine[:, None].to(grad_logits.dtype).neg_())
    if work.low is not None:
        grad_logits = low_logits.copy_(grad_logits)
    seen = hidden * kept[:, None]  # ignored tokens are left out here, where rows are short
    if work.product is None:
        grad_weight.addmm_(grad_logits.T, seen)
    else:
        grad_weight += torch.mm(grad_logits.T, seen, out=work.product)
    return loss, matmul(grad_logits, weight).mul_(kept[:, None])
