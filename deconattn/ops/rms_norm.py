"""RMSNorm of a residual stream, with the sum before it, by fused kernels on a GPU."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDEST = 16384
"""Largest row that a kernel holds."""
WORTHWHILE = 10_000_000
"""Elements from which the bytes saved count for more than launches from Python, twice as long as PyTorch's own."""


def add_rms_norm(hidden: Tensor, branch: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(hidden + branch, its RMSNorm times the weight), both differentiable; for :func:`deconattn.ops.backend.fused`.

    The backward pass adds the gradients of both results in the same kernel. So it does for a `branch` of None, where
    the first result is `hidden`, if later layers read that and not the argument.

    Args:
        hidden, branch: [.., width], in one dtype.
        weight: [width], in that dtype.
    """
    if branch is None:
        return _Norm.apply(hidden, weight, epsilon)
    return _SumAndNorm.apply(hidden, branch, weight, epsilon)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        dense = hidden.contiguous()
        normed, reciprocals = torch.ops.deconattn.rms_norm(dense, weight, epsilon)
        ctx.save_for_backward(dense, weight, reciprocals)
        return hidden, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        return *_gradients(ctx, upstream, grad), None


class _SumAndNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, branch: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        summed, normed, reciprocals = torch.ops.deconattn.add_rms_norm(
            hidden.contiguous(), branch.contiguous(), weight, epsilon
        )
        ctx.save_for_backward(summed, weight, reciprocals)
        return summed, normed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, upstream: Tensor | None, grad: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        of_sum, of_weight = _gradients(ctx, upstream, grad)
        return of_sum, of_sum, of_weight, None


def _gradients(ctx: Any, upstream: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Of the sum and of the weight."""
    if grad is None:
        return upstream, None
    summed, weight, reciprocals = ctx.saved_tensors
    dense = None if upstream is None else upstream.contiguous()
    of_sum, of_weight = torch.ops.deconattn.rms_norm_backward(grad.contiguous(), dense, summed, weight, reciprocals)
    return of_sum, of_weight
