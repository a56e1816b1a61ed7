"""Softmax maps a tile at a time, never whole: both passes of softmax(Q K^T / sqrt(head_dim)) V for any width of V.

Forward, a tile of queries meets all its keys, so its softmax is complete; the log-normaliser is kept. Backward, a tile
of keys meets all its queries, from whose scores and log-normalisers the weights come again.
"""

import math

import torch
from torch import Tensor

from deconattn.ops.blockwise.tiles import Visibility, tiles
from deconattn.ops.matmul import matmul
from deconattn.ops.precision import at_least_fp32


def forward(queries: Tensor, keys: Tensor, values: Tensor, visible: Visibility) -> tuple[Tensor, Tensor]:
    """Mixed values [N, L, W] and log-normalisers [N, L] of queries, keys [N, L, x] and values [N, L, W]."""
    scale = 1 / math.sqrt(queries.shape[-1])
    queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
    mixed = torch.empty_like(values)
    log_normaliser = at_least_fp32(queries).new_empty(queries.shape[:-1])
    for start, stop in tiles(queries.shape[1]):
        here, seen = slice(start, stop), slice(visible.first_key(start), stop)
        scores = at_least_fp32(matmul(queries[:, here], keys[:, seen].mT)).mul_(scale)
        visible.hide_(scores, here, seen, -math.inf)
        top = scores.amax(dim=-1)
        weights = torch.softmax(scores, dim=-1, out=scores)
        # The largest weight is exp(largest score - log-normaliser); torch.logsumexp takes ten times longer.
        log_normaliser[:, here] = top.sub_(weights.amax(dim=-1).log_())
        mixed[:, here] = matmul(weights.to(values.dtype), values[:, seen])
    return mixed, log_normaliser


def backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    grad: Tensor,
    centre: Tensor,
    log_normaliser: Tensor,
    visible: Visibility,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries and keys [N, L, x], in at least fp32, and of values [N, L, W].

    Args:
        grad: [N, L, W], of the mixed values.
        centre: [N, L], sum_j A_ij dA_ij of the softmax's backward: grad . mixed, one number a query.
    """
    scale = 1 / math.sqrt(queries.shape[-1])
    queries, keys, values, grad = (tensor.contiguous() for tensor in (queries, keys, values, grad))
    grad_queries = torch.zeros_like(at_least_fp32(queries))
    grad_keys, grad_values = torch.empty_like(grad_queries), torch.empty_like(values)
    for start, stop in tiles(queries.shape[1]):
        here, seeing = slice(start, stop), slice(start, visible.last_query(stop - 1))
        # [keys, queries]: each product but one then reads its left operand along rows.
        weights = at_least_fp32(matmul(keys[:, here], queries[:, seeing].mT)).mul_(scale)
        weights.sub_(log_normaliser[:, None, seeing])
        visible.hide_(weights.mT, seeing, here, -math.inf)
        weights.exp_()
        grad_values[:, here] = matmul(weights.to(grad.dtype), grad[:, seeing])
        grad_weights = at_least_fp32(matmul(values[:, here], grad[:, seeing].mT))
        grad_scores = grad_weights.sub_(centre[:, None, seeing]).mul_(weights).to(queries.dtype)
        grad_keys[:, here] = matmul(grad_scores, queries[:, seeing])
        grad_queries[:, seeing] += matmul(grad_scores.mT, keys[:, here])
    return grad_queries.mul_(scale), grad_keys.mul_(scale), grad_values
