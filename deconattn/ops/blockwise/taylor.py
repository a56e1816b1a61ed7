"""Maps of the exponential's second-order Taylor series, a tile at a time (approximate; paper, equation 6).

Tiles of weights are computed in both passes and never kept; a query's are summed as they come, and what is mixed is
divided by the sum. Twice the weight, w = t^2 + 1 with t = 1 + s, takes two operations and mixes alike. With z_i the
sum, g_i = do_i / z_i and c_i = g_i . o_i:
    dv_j = sum_i w_ij g_i,    ds_ij = 2 (g_i . v_j - c_i) t_ij.
"""

import math

import torch
from torch import Tensor

from deconattn.ops.blockwise.tiles import TILE, Orientation, Scratch, Visibility, scaled, tiles
from deconattn.ops.matmul import matmul, scaled_matmul
from deconattn.ops.precision import at_least_fp32


def forward(queries: Tensor, keys: Tensor, values: Tensor, visible: Visibility) -> tuple[Tensor, Tensor]:
    """Mixed values [N, L, x] and sums of weights [N, L] of queries, keys and values [N, L, x]."""
    queries, scale = scaled(queries, 1 / math.sqrt(queries.shape[-1]))
    columns, values = Orientation.of(queries).transposed(keys.contiguous()), values.contiguous()
    mixed = torch.empty_like(values)
    total = at_least_fp32(queries).new_empty(queries.shape[:-1])
    scratch = Scratch(queries, queries.shape[0] * TILE * queries.shape[1])
    for start, stop in tiles(queries.shape[1]):
        here, seen = slice(start, stop), slice(visible.first_key(start), stop)
        out = scratch.product(0, (len(queries), stop - start, stop - seen.start))
        t = scratch.precise(0, scaled_matmul(queries[:, here], columns[..., seen], scale, out)).add_(1)
        weights = visible.hide_(t.mul_(t).add_(1), here, seen, 0)
        total[:, here] = weights.sum(dim=-1)
        sums = matmul(scratch.narrow(0, weights), values[:, seen])
        torch.div(sums, total[:, here, None], out=mixed[:, here])
    return mixed, total


def backward(
    queries: Tensor, keys: Tensor, values: Tensor, grad: Tensor, delta: Tensor, total: Tensor, visible: Visibility
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries and keys [N, L, x], in at least fp32, and of values [N, L, x].

    Args:
        grad: [N, L, x], of the mixed values.
        delta: [N, L], grad . mixed of each query.
    """
    factor = 1 / math.sqrt(queries.shape[-1])
    queries, scale = scaled(queries, factor)
    grad, delta = (at_least_fp32(grad) / total[..., None]).to(grad.dtype), delta / total
    keys, values, grad = keys.contiguous(), values.contiguous(), grad.contiguous()
    grad_queries = torch.zeros_like(at_least_fp32(queries))
    grad_keys, grad_values = torch.empty_like(grad_queries), torch.empty_like(values)
    scratch = Scratch(queries, queries.shape[0] * TILE * queries.shape[1])
    way = Orientation.of(queries)
    for start, stop in tiles(queries.shape[1]):
        here, seeing = slice(start, stop), slice(start, visible.last_query(stop - 1))
        shape = way.shape(len(queries), stop - start, seeing.stop - start)
        scores = way.pairs(keys[:, here], queries[:, seeing], scale, scratch.product(0, shape))
        t = scratch.precise(0, scores).add_(1)
        weights = way.hide_(torch.addcmul(t.new_ones(()), t, t), visible, seeing, here, 0)
        grad_values[:, here] = way.sum_queries(scratch.narrow(0, weights), grad[:, seeing])
        products = way.pairs(values[:, here], grad[:, seeing], 1, scratch.product(1, shape))
        grad_weights = scratch.precise(1, products).sub_(way.per_query(delta[:, seeing]))
        grad_scores = scratch.narrow(1, way.hide_(grad_weights.mul_(t), visible, seeing, here, 0))
        grad_keys[:, here] = way.sum_queries(grad_scores, queries[:, seeing])
        grad_queries[:, seeing] += way.sum_keys(grad_scores, keys[:, here])
    return grad_queries.mul_(2 * factor), grad_keys.mul_(2 * scale), grad_values
