"""Attention with a map of its own for each row and head, a tile at a time: softmax's or the Taylor series'."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deconattn.ops.blockwise import softmax, taylor
from deconattn.ops.blockwise.by_hand import Context, Passes
from deconattn.ops.blockwise.heads import (
    accumulate,
    empty_gradient,
    head_groups,
    inner_products,
    row_groups,
)
from deconattn.ops.blockwise.tiles import Visibility
from deconattn.ops.compiling import outside_graphs
from deconattn.ops.precision import at_least_fp32


class Map(Protocol):
    """The two passes of one kind of map, on N heads at once."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, visible: Visibility, /) -> tuple[Tensor, Tensor]:
        """Mixed values [N, L, x], and normalisers [N, L]: softmax's log-sum-exps, or sums of Taylor weights."""

    def backward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        grad: Tensor,
        delta: Tensor,
        normaliser: Tensor,
        visible: Visibility,
        /,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values; `delta` is grad . mixed, [N, L]."""


@outside_graphs
def softmax_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """:func:`deconattn.ops.softmax_attention.causal_attention`."""
    return _Attention.apply(softmax, queries, keys, values, document_ids)


@outside_graphs
def taylor_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """:func:`deconattn.ops.taylor_attention.taylor_attention`, quadratic in L."""
    return _Attention.apply(taylor, queries, keys, values, document_ids)


def taylor_passes(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Passes:
    """:func:`taylor_attention` where autograd records nothing."""
    context = Context()
    output = _Attention.forward(context, taylor, queries, keys, values, document_ids)
    return Passes(output, lambda grad: _Attention.backward(context, grad)[1:4])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, map_: Map, queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None
    ) -> Tensor:
        ctx.map, ctx.visible = map_, Visibility.of(queries.shape[2], document_ids)
        mixed, normaliser = forward(map_, queries, keys, values, ctx.visible)
        ctx.save_for_backward(queries, keys, values, mixed, normaliser)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor, None]:
        queries, keys, values, mixed, normaliser = ctx.saved_tensors
        return None, *backward(ctx.map, queries, keys, values, mixed, normaliser, grad, ctx.visible), None


def forward(map_: Map, queries: Tensor, keys: Tensor, values: Tensor, visible: Visibility) -> tuple[Tensor, Tensor]:
    """Mixed values [R, heads, L, x], and normalisers [R, heads, L] as the map has them."""
    mixed = values.new_empty(len(queries), queries.shape[2], queries.shape[1], values.shape[3]).transpose(1, 2)
    normaliser = at_least_fp32(queries).new_empty(queries.shape[:-1])
    for rows in row_groups(queries):
        for heads, shared, _ in head_groups(queries.shape[1], keys.shape[1], queries):
            one, served = (rows, heads), (rows, shared)
            shape = queries[one].shape[:2]
            q, k, v = (tensor.flatten(0, 1) for tensor in (queries[one], keys[served], values[served]))
            found = map_.forward(q, k, v, visible.rows(rows, shape[1]))
            mixed[one], normaliser[one] = (tensor.unflatten(0, shape) for tensor in found)
    return mixed, normaliser


def backward(
    map_: Map,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    normaliser: Tensor,
    grad: Tensor,
    visible: Visibility,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values from that of the mixed values."""
    grad_queries = torch.empty_like(queries)
    grad_keys, grad_values = empty_gradient(keys, queries.shape[1]), empty_gradient(values, queries.shape[1])
    for rows in row_groups(queries):
        for heads, shared, first in head_groups(queries.shape[1], keys.shape[1], queries):
            one, served = (rows, heads), (rows, shared)
            shape = queries[one].shape[:2]
            delta = inner_products(grad[one], mixed[one])
            inputs = (queries[one], keys[served], values[served], grad[one], delta, normaliser[one])
            q, k, v, upstream, delta, total = (tensor.flatten(0, 1) for tensor in inputs)
            found = map_.backward(q, k, v, upstream, delta, total, visible.rows(rows, shape[1]))
            of_queries, of_keys, of_values = (tensor.unflatten(0, shape) for tensor in found)
            grad_queries[one] = of_queries
            accumulate(grad_keys[served], of_keys, first)
            accumulate(grad_values[served], of_values, first)
    return grad_queries, grad_keys.to(keys.dtype), grad_values.to(values.dtype)
