"""Maps of the exponential's second-order Taylor series, a tile at a time (approximate; paper, equation 6).

Tiles of w = 1 + s + s^2/2 are computed in both passes and never kept; a query's weights are summed as they come, and
what is mixed is divided by the sum. With z_i that sum, g_i = do_i / z_i and c_i = g_i . o_i:
    dv_j = sum_i w_ij g_i,    ds_ij = (g_i . v_j - c_i) (1 + s_ij).
"""

import math

import torch
from torch import Tensor

from deconattn.ops.blockwise.tiles import Visibility, tiles
from deconattn.ops.matmul import matmul
from deconattn.ops.precision import at_least_fp32


def forward(queries: Tensor, keys: Tensor, values: Tensor, visible: Visibility) -> tuple[Tensor, Tensor]:
    """Mixed values [N, L, x] and sums of weights [N, L] of queries, keys and values [N, L, x]."""
    scale = 1 / math.sqrt(queries.shape[-1])
    queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
    mixed = torch.empty_like(values)
    total = at_least_fp32(queries).new_empty(queries.shape[:-1])
    for start, stop in tiles(queries.shape[1]):
        here, seen = slice(start, stop), slice(visible.first_key(start), stop)
        s = at_least_fp32(matmul(queries[:, here], keys[:, seen].mT)).mul_(scale)
        weights = visible.hide_(_weights(s), here, seen, 0)
        total[:, here] = weights.sum(dim=-1)
        mixed[:, here] = matmul(weights.to(values.dtype), values[:, seen]) / total[:, here, None]
    return mixed, total


def backward(
    queries: Tensor, keys: Tensor, values: Tensor, grad: Tensor, centre: Tensor, total: Tensor, visible: Visibility
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries and keys [N, L, x], in at least fp32, and of values [N, L, x].

    Args:
        grad: [N, L, x], of the mixed values.
        centre: [N, L], grad . mixed.
    """
    scale = 1 / math.sqrt(queries.shape[-1])
    grad, centre = (at_least_fp32(grad) / total[..., None]).to(grad.dtype), centre / total
    queries, keys, values, grad = (tensor.contiguous() for tensor in (queries, keys, values, grad))
    grad_queries = torch.zeros_like(at_least_fp32(queries))
    grad_keys, grad_values = torch.empty_like(grad_queries), torch.empty_like(values)
    for start, stop in tiles(queries.shape[1]):
        here, seeing = slice(start, stop), slice(start, visible.last_query(stop - 1))
        # [keys, queries]: each product but one then reads its left operand along rows.
        s = at_least_fp32(matmul(keys[:, here], queries[:, seeing].mT)).mul_(scale)
        weights = _weights(s)
        visible.hide_(weights.mT, seeing, here, 0)
        grad_values[:, here] = matmul(weights.to(grad.dtype), grad[:, seeing])
        grad_weights = at_least_fp32(matmul(values[:, here], grad[:, seeing].mT)).sub_(centre[:, None, seeing])
        grad_scores = grad_weights.mul_(s.add_(1))
        visible.hide_(grad_scores.mT, seeing, here, 0)
        grad_scores = grad_scores.to(queries.dtype)
        grad_keys[:, here] = matmul(grad_scores, queries[:, seeing])
        grad_queries[:, seeing] += matmul(grad_scores.mT, keys[:, here])
    return grad_queries.mul_(scale), grad_keys.mul_(scale), grad_values


def _weights(s: Tensor) -> Tensor:
    return s.mul(0.5).add_(1).mul_(s).add_(1)
