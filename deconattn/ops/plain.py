"""The layers' operations in plain PyTorch, without a backward pass of their own: what an exported model carries.

Any device, any dtype, torch.compile and torch.export; the formulas are those of text generation
(:mod:`deconattn.ops.cached_attention`), applied to some rows of the map at a time. In training a block of rows is made
again for its gradients, so that memory is linear in the length. Time is quadratic, for `nonapproximate`, too.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from deconattn.ops import cached_attention, reference
from deconattn.ops.documents import Documents
from deconattn.ops.precision import at_least_fp32, outside_autocast

ROWS = 256
"""Rows of a map that are held at once."""


@outside_autocast("queries", "keys", "values")
def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V with a causal (and document) mask, by PyTorch's fused kernels.

    Args:
        queries: [R, heads, L, head_dim].
        keys: [R, key_value_heads, L, head_dim]; each serves heads / key_value_heads query heads.
        values: [R, key_value_heads, L, x].

    Returns:
        [R, heads, L, x].
    """
    if values.shape[3] != queries.shape[3]:
        return causal_attention(*of_one_width(queries, keys, values), documents)[..., : values.shape[3]]
    group = queries.shape[1] // keys.shape[1]
    if documents is None:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=group > 1)
    if group > 1:  # fused kernels take a mask or groups, not both
        keys, values = (reference.per_query_head(shared, queries.shape[1]) for shared in (keys, values))
    return scaled_dot_product_attention(queries, keys, values, attn_mask=documents.causal_mask)


def of_one_width(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widen what is narrower by channels of zeros to a multiple of 8, and queries for attention's scale to stay."""
    width = max(queries.shape[3], values.shape[3]) + 7 & ~7
    queries = queries * (width / queries.shape[3]) ** 0.5
    wide_queries, wide_keys, wide_values = (pad(one, (0, width - one.shape[3])) for one in (queries, keys, values))
    return wide_queries, wide_keys, wide_values


@outside_autocast("queries", "keys", "values")
def taylor_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """o_i = sum_{j<=i} w_ij v_j / sum_{j<=i} w_ij with w = 1 + s + s^2/2, s = q.k / sqrt(head_dim).

    Args:
        queries: [R, heads, L, head_dim].
        keys, values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L] or None; mixing stays within a document.

    Returns:
        [R, heads, L, head_dim].
    """
    keys, values = (_in_a_graph_per_query_head(shared, queries.shape[1]) for shared in (keys, values))

    def rows(start: int, stop: int) -> Tensor:
        visible = _visible(start, stop, queries.device, document_ids)
        return cached_attention.taylor_attention(
            queries[:, :, start:stop], keys[:, :, :stop], values[:, :, :stop], visible
        )

    return _some_rows_at_a_time(rows, queries.shape[2])


@outside_autocast("queries", "keys", "values")
def scored_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    document_ids: Tensor | None = None,
    levels: Tensor | None = None,
    offsets: Tensor | None = None,
    sigmoid: bool = False,
    window: int = 0,
    sinks: int = 0,
) -> Tensor:
    """sum_j w_ij v_j, w of the scores s_ij = q_i.k_j / sqrt(head_dim) + levels_j - levels_i + offsets_i.

    Args:
        queries: [R, heads, L, head_dim].
        keys, values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L] or None; mixing stays within a document.
        levels: [R or 1, heads, L] or None.
        offsets: [R or 1, L] or None.
        sigmoid: w = sigmoid(s), not softmax(s).
        window: how many tokens a query sees, itself the last; 0: all.
        sinks: first tokens of a document that its queries see beside the window.

    Returns:
        [R, heads, L, head_dim].
    """

    def rows(start: int, stop: int) -> Tensor:
        visible = _visible(start, stop, queries.device, document_ids)
        slots = torch.arange(start, stop, device=queries.device)[None]
        if window:
            starts = torch.zeros_like(slots)
            if document_ids is not None:
                starts = torch.searchsorted(document_ids.contiguous(), document_ids[:, start:stop].contiguous())
            visible = visible & cached_attention.within_window(slots, starts, stop, window, sinks)
        of_keys = None if levels is None else levels[..., :stop]
        of_queries = None if offsets is None else offsets[:, start:stop]
        bias = cached_attention.pair_bias(slots, visible, of_keys, of_queries)
        return cached_attention.biased_attention(
            queries[:, :, start:stop], keys[:, :, :stop], values[:, :, :stop], bias, sigmoid
        )

    return _some_rows_at_a_time(rows, queries.shape[2])


@outside_autocast("queries", "keys", "values")
def fixed_map_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V, the map shared by all rows of the batch.

    Args:
        queries: [heads, L, head_dim], of the fixed stream.
        keys: [key_value_heads, L, head_dim], of the fixed stream.
        values: [R, key_value_heads, L, head_dim], of every row.

    Returns:
        [R, heads, L, head_dim].
    """
    keys, values = (_in_a_graph_per_query_head(shared, len(queries)) for shared in (keys, values))

    def rows(start: int, stop: int) -> Tensor:
        visible = _visible(start, stop, queries.device)
        return cached_attention.fixed_map_attention(queries, keys, values[:, :, :stop], start, stop - start, visible)

    return _some_rows_at_a_time(rows, queries.shape[1])


@outside_autocast("queries", "keys", "values")
def prefix_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """o_i = sum_{j<=i} exp(s_j) v_j / sum_{j<=i} exp(s_j) with s_j = sum(silu(q_j) * k_j) / sqrt(head_dim).

    Args:
        queries: [R, heads, L, head_dim], before SiLU.
        keys, values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L] or None; the average restarts with each document.

    Returns:
        [R, heads, L, head_dim] in the values' dtype. Scores and log-sum-exps are at least fp32.
    """
    keys = at_least_fp32(reference.per_query_head(keys, queries.shape[1]))
    return prefix_average(reference.token_scores(silu(at_least_fp32(queries)), keys), values, document_ids)


@outside_autocast("values")
def prefix_average(scores: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Average of the values so far, weighted by exp(score).

    Args:
        scores: [R, heads, L].
        values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L] or None; the average restarts with each document.

    Returns:
        [R, heads, L, head_dim] in the values' dtype.
    """
    values = _in_a_graph_per_query_head(values, scores.shape[1])

    def rows(start: int, stop: int) -> Tensor:
        hidden = ~_visible(start, stop, scores.device, document_ids)[:, None]
        weights = at_least_fp32(scores[:, :, None, :stop]).masked_fill(hidden, -torch.inf).softmax(dim=-1)
        served = cached_attention.by_key_head(weights, values.shape[1])
        mixed = served @ at_least_fp32(values[:, :, :stop])
        return mixed.to(values.dtype).reshape(*weights.shape[:3], values.shape[3])

    return _some_rows_at_a_time(rows, scores.shape[2])


class PartedLinear(nn.Linear):
    """Linear layer of several parts, each of which asks for its own outputs: `which`, (start, stop), all by default."""

    def forward(self, inputs: Tensor, which: tuple[int, int] | None = None) -> Tensor:
        rows = slice(None) if which is None else slice(*which)
        return linear(inputs, self.weight[rows], None if self.bias is None else self.bias[rows])


def project(inputs: Tensor, *groups: tuple[Callable[[Tensor], Tensor], ...]) -> tuple[Tensor, ...]:
    """Apply linear layers to one input, [.., k] -> [.., n] each."""
    return tuple(layer(inputs) for group in groups for layer in group)


def rotate(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate channels i and i + head_dim / 2 of every head by an angle: x cos + (-second half, first half) sin.

    Args:
        queries, keys: [R, heads, L, head_dim] each.
        cos, sin: [R or 1, 1, L, head_dim].
    """

    def rotated(heads: Tensor) -> Tensor:
        first, second = heads.chunk(2, dim=-1)
        return heads * cos + torch.cat([-second, first], dim=-1) * sin

    return rotated(queries), rotated(keys)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, [.., w] each."""
    return silu(gate) * up


def _some_rows_at_a_time(rows: Callable[[int, int], Tensor], length: int) -> Tensor:
    """[R, heads, L, x] from `rows`(start, stop), its part [R, heads, stop - start, x]."""
    if torch.compiler.is_compiling() or length <= ROWS:  # one graph for all lengths
        return rows(0, length)
    parts = []
    for start in range(0, length, ROWS):
        stop = min(start + ROWS, length)
        if torch.is_grad_enabled():
            parts.append(checkpoint(rows, start, stop, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(rows(start, stop))
    return torch.cat(parts, dim=2)


def _in_a_graph_per_query_head(shared: Tensor, heads: int) -> Tensor:
    """Keys or values [.., key_value_heads, L, x], in a graph beside the queries they serve: [.., heads, L, x].

    How queries that share a key can be put behind one another depends on the length; a graph is for all lengths.
    """
    return reference.per_query_head(shared, heads) if torch.compiler.is_compiling() else shared


def _visible(start: int, stop: int, device: torch.device, document_ids: Tensor | None = None) -> Tensor:
    """bool [R or 1, stop - start, stop]: the tokens up to `stop` that each from `start` on sees."""
    tokens = torch.arange(stop, device=device)
    causal = (tokens <= tokens[start:, None])[None]
    if document_ids is None:
        return causal
    return causal & (document_ids[:, start:stop, None] == document_ids[:, None, :stop])
