"""One softmax map applied to every row of the batch (rndemb, fixedseq).

Queries and keys come from one row, so a tile of the map is computed once and multiplies all rows' values
laid side by side; in the backward pass the gradients of Q and K cost one row, not R. Memory is linear in L:
tiles are computed again from the saved log-normalisers.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deconattn.ops.precision import at_least_fp32
from deconattn.ops.tiles import fold_groups, grouped_matmul, hidden_pairs, summed_matmul, tiles


def fixed_map_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V, the map shared by all rows.

    Args:
        queries: [heads, L, head_dim], of the fixed stream.
        keys: [key_value_heads, L, head_dim], of the fixed stream.
        values: [R, key_value_heads, L, head_dim], of every row.

    Returns:
        [R, heads, L, head_dim].
    """
    rows, key_value_heads, length, head_dim = values.shape
    wide = values.permute(1, 2, 0, 3).reshape(key_value_heads, length, rows * head_dim)
    mixed = _FixedMap.apply(fold_groups(queries, key_value_heads), keys, wide)
    return mixed.flatten(0, 1).unflatten(-1, (rows, head_dim)).permute(2, 0, 1, 3)


class _FixedMap(torch.autograd.Function):
    """q [k, group, L, x], k [k, L, x], v [k, L, W] -> [k, group, L, W]."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        length = queries.shape[-2]
        scale = 1 / math.sqrt(queries.shape[-1])
        mixed = values.new_empty(*queries.shape[:-1], values.shape[-1])
        log_normaliser = at_least_fp32(queries).new_empty(queries.shape[:-1])
        for start, stop in tiles(length):
            tile = _scores(queries, keys, slice(start, stop), slice(0, stop), scale)
            log_normaliser[..., start:stop] = normaliser = tile.logsumexp(dim=-1)
            weights = tile.sub_(normaliser[..., None]).exp_().to(values.dtype)
            mixed[..., start:stop, :] = grouped_matmul(weights, values[:, :stop])
        ctx.save_for_backward(queries, keys, values, mixed, log_normaliser)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values, mixed, log_normaliser = ctx.saved_tensors
        length = queries.shape[-2]
        scale = 1 / math.sqrt(queries.shape[-1])
        grad = grad.contiguous()
        # sum_j A_ij dA_ij of the softmax's backward is grad . output, one number a query
        centre = (at_least_fp32(grad) * mixed).sum(dim=-1)
        grad_queries = torch.zeros_like(at_least_fp32(queries))
        grad_keys, grad_values = torch.empty_like(keys), torch.empty_like(values)
        for start, stop in tiles(length):
            later, tile = slice(start, length), slice(start, stop)
            weights = _scores(queries, keys, later, tile, scale).sub_(log_normaliser[..., later, None]).exp_()
            grad_values[:, tile] = summed_matmul(weights.to(grad.dtype), grad[..., later, :])
            grad_weights = grouped_matmul(grad[..., later, :], values[:, tile].transpose(-1, -2))
            grad_scores = (weights * (grad_weights - centre[..., later, None]) * scale).to(queries.dtype)
            grad_keys[:, tile] = summed_matmul(grad_scores, queries[..., later, :])
            grad_queries[..., later, :] += grouped_matmul(grad_scores, keys[:, tile])
        return grad_queries.to(queries.dtype), grad_keys, grad_values


def _scores(queries: Tensor, keys: Tensor, rows: slice, columns: slice, scale: float) -> Tensor:
    tile = at_least_fp32(grouped_matmul(queries[..., rows, :], keys[:, columns].transpose(-1, -2))).mul_(scale)
    return tile.masked_fill_(hidden_pairs(rows, columns, queries.device), -math.inf)
