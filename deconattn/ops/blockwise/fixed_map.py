"""One softmax map applied to every row of the batch (rndemb, fixedseq).

Queries and keys come from one row, so a tile of the map is computed once and multiplies all rows' values
laid side by side; in the backward pass the gradients of Q and K cost one row, not R.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deconattn.ops.blockwise import softmax
from deconattn.ops.blockwise.by_hand import Context, Passes
from deconattn.ops.blockwise.heads import accumulate, empty_gradient, empty_heads, head_groups, inner_products
from deconattn.ops.blockwise.tiles import Visibility
from deconattn.ops.compiling import outside_graphs
from deconattn.ops.precision import at_least_fp32


@outside_graphs
def fixed_map_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """:func:`deconattn.ops.fixed_map.fixed_map_attention`."""
    return _FixedMap.apply(queries, keys, values)


def passes(queries: Tensor, keys: Tensor, values: Tensor) -> Passes:
    """:func:`fixed_map_attention` where autograd records nothing."""
    context = Context()
    return Passes(_FixedMap.forward(context, queries, keys, values), partial(_FixedMap.backward, context))


class _FixedMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        mixed = empty_heads(values, len(queries))
        lse = at_least_fp32(queries).new_empty(queries.shape[:-1])
        visible = Visibility(queries.shape[1])
        for heads, shared, _ in head_groups(len(queries), len(keys), queries):
            wide = _side_by_side(values[:, shared])
            wide, lse[heads] = softmax.forward(queries[heads], keys[shared], wide, visible)
            mixed[:, heads] = _apart(wide, len(values))
        ctx.save_for_backward(queries, keys, values, mixed, lse)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values, mixed, lse = ctx.saved_tensors
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = empty_gradient(keys, len(queries)), empty_gradient(values, len(queries))
        visible = Visibility(queries.shape[1])
        for heads, shared, first in head_groups(len(queries), len(keys), queries):
            upstream = grad[:, heads]
            delta = inner_products(upstream, mixed[:, heads]).sum(dim=0)
            grad_queries[heads], of_keys, of_values = softmax.backward(
                queries[heads],
                keys[shared],
                _side_by_side(values[:, shared]),
                _side_by_side(upstream),
                delta,
                lse[heads],
                visible,
            )
            accumulate(grad_keys[shared], of_keys, first)
            accumulate(grad_values[:, shared], _apart(of_values, len(values)), first)
        return grad_queries, grad_keys.to(keys.dtype), grad_values.to(values.dtype)


def _side_by_side(rows: Tensor) -> Tensor:
    """[R, N, L, x] -> [N, L, R * x]."""
    return rows.permute(1, 2, 0, 3).flatten(-2)


def _apart(wide: Tensor, rows: int) -> Tensor:
    """[N, L, R * x] -> [R, N, L, x]."""
    return wide.unflatten(-1, (rows, -1)).permute(2, 0, 1, 3)
