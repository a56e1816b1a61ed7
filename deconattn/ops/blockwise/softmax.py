"""Softmax maps a tile at a time, never whole: both passes of softmax(Q K^T / sqrt(head_dim)) V for any width of V.

Forward, a tile of queries meets all its keys, so its softmax is complete; the log-sum-exp (lse) is kept. Backward, a
tile of keys meets all its queries, from whose scores and log-sum-exps the weights come again. Scores are in base 2: a
CPU computes torch.exp2 four times as fast as torch.exp.
"""

import math

import torch
from torch import Tensor

from deconattn.ops.blockwise.tiles import TILE, Orientation, Scratch, Visibility, scaled, tiles
from deconattn.ops.matmul import matmul, scaled_matmul
from deconattn.ops.precision import at_least_fp32


def forward(queries: Tensor, keys: Tensor, values: Tensor, visible: Visibility) -> tuple[Tensor, Tensor]:
    """Mixed values [N, L, W], base-2 log-sum-exps [N, L] of queries and keys [N, L, x] and values [N, L, W]."""
    queries, scale = scaled(queries, _factor(queries))
    columns, values = Orientation.of(queries).transposed(keys.contiguous()), values.contiguous()
    mixed = values.new_empty(*queries.shape[:2], values.shape[2])
    lse = at_least_fp32(queries).new_empty(queries.shape[:-1])
    scratch = Scratch(queries, queries.shape[0] * TILE * keys.shape[1])
    for start, stop in tiles(queries.shape[1]):
        here, seen = slice(start, stop), visible.seen(start, stop)
        out = scratch.product(0, (len(queries), stop - start, seen.stop - seen.start))
        scores = scratch.precise(0, scaled_matmul(queries[:, here], columns[..., seen], scale, out))
        visible.hide_(scores, here, seen, -math.inf)
        top = scores.amax(dim=-1, keepdim=True)
        weights = scores.sub_(top).exp2_()
        total = weights.sum(dim=-1, keepdim=True)
        torch.div(matmul(scratch.narrow(0, weights), values[:, seen]), total, out=mixed[:, here])
        lse[:, here] = top.add_(total.log2_()).squeeze(-1)
    return mixed, lse


def backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    grad: Tensor,
    delta: Tensor,
    lse: Tensor,
    visible: Visibility,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries and keys [N, L, x], in at least fp32, and of values [N, L, W].

    Args:
        grad: [N, L, W], of the mixed values.
        delta: [N, L], sum_j A_ij dA_ij of the softmax's backward: grad . mixed, one number a query.
    """
    factor = _factor(queries)
    queries, scale = scaled(queries, factor)
    keys, values, grad = keys.contiguous(), values.contiguous(), grad.contiguous()
    grad_queries = torch.zeros_like(at_least_fp32(queries))
    grad_keys, grad_values = grad_queries.new_empty(keys.shape), torch.empty_like(values)
    scratch = Scratch(queries, queries.shape[0] * TILE * queries.shape[1])
    way = Orientation.of(queries)
    for start, stop in tiles(keys.shape[1]):
        here, seeing = slice(start, stop), visible.seeing(start, stop)
        shape = way.shape(len(queries), stop - start, seeing.stop - seeing.start)
        scores = way.pairs(keys[:, here], queries[:, seeing], scale, scratch.product(0, shape))
        weights = scratch.precise(0, scores).sub_(way.per_query(lse[:, seeing]))
        way.hide_(weights, visible, seeing, here, -math.inf).exp2_()
        grad_values[:, here] = way.sum_queries(scratch.narrow(0, weights), grad[:, seeing])
        products = way.pairs(values[:, here], grad[:, seeing], 1, scratch.product(1, shape))
        grad_weights = scratch.precise(1, products).sub_(way.per_query(delta[:, seeing]))
        grad_scores = scratch.narrow(1, grad_weights.mul_(weights))
        grad_keys[:, here] = way.sum_queries(grad_scores, queries[:, seeing])
        grad_queries[:, seeing] += way.sum_keys(grad_scores, keys[:, here])
    return grad_queries.mul_(factor * math.log(2)), grad_keys.mul_(scale * math.log(2)), grad_values


def _factor(queries: Tensor) -> float:
    """From products of queries and keys to scores in base 2."""
    return 1 / math.sqrt(queries.shape[-1]) / math.log(2)
