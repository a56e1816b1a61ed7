"""Attention with the exponential's second-order Taylor series in its place (approximate; paper, equation 6).

Tiles of w = 1 + s + s^2/2 are computed in both passes and never kept, so memory is linear in L.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deconattn.ops.precision import at_least_fp32
from deconattn.ops.tiles import fold_groups, grouped_matmul, hidden_pairs, summed_matmul, tiles


def taylor_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """o_i = sum_{j<=i} w_ij v_j / sum_{j<=i} w_ij with w = 1 + s + s^2/2, s = q.k / sqrt(head_dim).

    Args:
        queries: [R, heads, L, head_dim].
        keys, values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L] or None; mixing stays within a document.

    Returns:
        [R, heads, L, head_dim].
    """
    documents = None if document_ids is None else document_ids[:, None, None]
    mixed = _Taylor.apply(fold_groups(queries, keys.shape[1]), keys, values, documents)
    return mixed.flatten(1, 2)


class _Taylor(torch.autograd.Function):
    """q [R, k, group, L, x], k and v [R, k, L, x], documents [R, 1, 1, L] -> [R, k, group, L, x]."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, documents: Tensor | None) -> Tensor:
        length = queries.shape[-2]
        mixed = torch.empty_like(queries)
        normaliser = at_least_fp32(queries).new_empty(queries.shape[:-1])
        for start, stop in tiles(length):
            rows, columns = slice(start, stop), slice(0, stop)
            s = _scores(queries, keys, rows, columns)
            weights = _weights(s, rows, columns, documents)
            normaliser[..., rows] = total = weights.sum(dim=-1)
            weights = weights.div_(total[..., None]).to(values.dtype)
            mixed[..., rows, :] = grouped_matmul(weights, values[..., columns, :])
        ctx.save_for_backward(queries, keys, values, mixed, normaliser, documents)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, mixed, normaliser, documents = ctx.saved_tensors
        length = queries.shape[-2]
        scale = 1 / math.sqrt(queries.shape[-1])
        grad = grad.contiguous()
        centre = (at_least_fp32(grad) * mixed).sum(dim=-1)
        grad_queries = torch.zeros_like(at_least_fp32(queries))
        grad_keys, grad_values = torch.empty_like(keys), torch.empty_like(values)
        for start, stop in tiles(length):
            later, tile = slice(start, length), slice(start, stop)
            s = _scores(queries, keys, later, tile)
            share = normaliser[..., later, None].reciprocal()
            weights = _weights(s, later, tile, documents).mul_(share)
            grad_values[..., tile, :] = summed_matmul(weights.to(grad.dtype), grad[..., later, :])
            grad_weights = at_least_fp32(grouped_matmul(grad[..., later, :], values[..., tile, :].transpose(-1, -2)))
            grad_scores = grad_weights.sub_(centre[..., later, None]).mul_(share * scale).mul_(s.add_(1))
            grad_scores.masked_fill_(hidden_pairs(later, tile, s.device, documents), 0)
            grad_scores = grad_scores.to(queries.dtype)
            grad_keys[..., tile, :] = summed_matmul(grad_scores, queries[..., later, :])
            grad_queries[..., later, :] += grouped_matmul(grad_scores, keys[..., tile, :])
        return grad_queries.to(queries.dtype), grad_keys, grad_values, None


def _scores(queries: Tensor, keys: Tensor, rows: slice, columns: slice) -> Tensor:
    tile = grouped_matmul(queries[..., rows, :], keys[..., columns, :].transpose(-1, -2))
    return at_least_fp32(tile).mul_(1 / math.sqrt(queries.shape[-1]))


def _weights(s: Tensor, rows: slice, columns: slice, documents: Tensor | None) -> Tensor:
    weights = s.mul(0.5).add_(1).mul_(s).add_(1)
    return weights.masked_fill_(hidden_pairs(rows, columns, s.device, documents), 0)
