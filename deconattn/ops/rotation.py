"""Rotation of queries and keys by their positions, in Hugging Face's half-rotated layout."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deconattn.ops import plain
from deconattn.ops.backend import fused


def rotate(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate channels i and i + head_dim / 2 of every head by an angle: x cos + (-second half, first half) sin.

    On a GPU in training each pass is one kernel, and the gradients come side by side, for one product
    (:mod:`deconattn.ops.linears`). Elsewhere, and under torch.compile, it is the formula.

    Args:
        queries: [R, heads, L, head_dim].
        keys: [R, key_value_heads, L, head_dim].
        cos, sin: [R or 1, 1, L, head_dim], the two halves of the channels alike, without gradients.

    Returns:
        Rotated queries and keys.
    """
    whole = queries.shape[0] == keys.shape[0] and queries.shape[2] == keys.shape[2] and queries.dtype == keys.dtype
    if not whole or torch.compiler.is_compiling() or not torch.is_grad_enabled() or not fused(queries):
        return plain.rotate(queries, keys, cos, sin)
    return _Rotation.apply(queries, keys, cos, sin)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rotated(queries, keys, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_queries: Tensor, grad_keys: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return *_rotated(grad_queries, grad_keys, cos, sin, back=True), None, None


def _rotated(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    joined = torch.ops.deconattn.rotation(queries, keys, cos, sin, back).transpose(1, 2)
    of_queries, of_keys = joined.split([queries.shape[1], keys.shape[1]], dim=1)
    return of_queries, of_keys
