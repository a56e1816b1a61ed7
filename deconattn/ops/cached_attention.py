"""Attention of a few new tokens over tokens that are held: the steps of text generation.

Slots of a row that lie behind its last token may hold anything finite; `visible` keeps them out. In each function
queries are [R, heads, T, head_dim], keys and values [R, key_value_heads, N, head_dim], `visible` is bool
[R or 1, T, N] or None where every new token sees every slot, and the result is [R, heads, T, head_dim] in the values'
dtype.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, threshold

from deconattn.ops.precision import at_least_fp32, outside_autocast

CHUNK = 64
"""New tokens whose rows of a fixed map are held at once."""
FEW = 8
"""Queries of a key head up to which the fused kernels of a CPU gain nothing from having several."""

NOTHING = 2.0**-64
"""A weight that counts for none."""


@outside_autocast("queries", "keys", "values")
def softmax_attention(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V (standard, staticemb)."""
    grouped = by_key_head(queries, keys.shape[1])
    mask = _for_groups(visible, grouped.shape[2])
    shape = *queries.shape[:3], values.shape[3]
    if grouped.shape[2] <= FEW and _beyond_fused(keys):
        return _mix(_softmax(_scores(grouped, keys), mask), values).reshape(shape)
    return scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(shape)


@outside_autocast("queries", "keys", "values")
def taylor_attention(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """w V / sum(w) with w = 1 + s + s^2/2, s = q.k / sqrt(head_dim) (approximate; paper, equation 6)."""
    grouped = by_key_head(queries, keys.shape[1])
    mask = _for_groups(visible, grouped.shape[2])
    s = _scores(grouped, keys)
    weights = 1 + s + s.square() / 2
    if mask is not None:
        weights *= mask
    return _mix(weights / weights.sum(dim=-1, keepdim=True), values).reshape(queries.shape)


@outside_autocast("queries", "keys", "values")
def biased_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, sigmoid: bool = False) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim) + bias) V, or with a sigmoid in its place.

    Args:
        bias: [R or 1, heads or 1, T, N], -inf where a slot is hidden (:func:`pair_bias`).
    """
    grouped = by_key_head(queries, keys.shape[1])
    s = _scores(grouped, keys)
    group = queries.shape[1] // keys.shape[1]
    per_key_head = bias.repeat(1, 1, group, 1) if bias.shape[1] == 1 else by_key_head(bias, keys.shape[1])
    s = s + per_key_head.to(s.dtype)
    # A bias may leave next to nothing of many weights: a CPU takes long over denormal numbers.
    weights = s.sigmoid() if sigmoid else threshold(s.softmax(dim=-1), NOTHING, 0.0)
    return _mix(weights, values).reshape(*queries.shape[:3], values.shape[3])


def pair_bias(
    slots: Tensor,
    visible: Tensor,
    levels: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """levels_j - levels_i + offsets_i, -inf where hidden: [R or 1, heads or 1, T, N], in fp32, or what they are.

    Args:
        slots: int64 [R or 1, T], where the new tokens i lie.
        visible: bool [R or 1, T, N].
        levels: [R or 1, heads, N] or None.
        offsets: [R or 1, T] or None.
    """
    bias = torch.zeros(1, 1, 1, 1, device=slots.device)
    if levels is not None:
        rows = max(len(levels), len(slots))
        here = slots[:, None].expand(rows, levels.shape[1], -1)
        bias = levels[:, :, None] - levels.expand(rows, -1, -1).gather(2, here)[..., None]
    if offsets is not None:
        bias = bias + offsets[:, None, :, None]
    return bias.masked_fill(~visible[:, None], -math.inf)


def within_window(slots: Tensor, starts: Tensor, length: int, window: int, sinks: int) -> Tensor:
    """Whether a token is one of the `window` last or the first `sinks` of its document: bool [R or 1, T, N].

    Args:
        slots: int64 [R or 1, T], where the queries lie.
        starts: int64 [R or 1, T], where their documents begin.
    """
    keys = torch.arange(length, device=slots.device)
    return (keys > slots[..., None] - window) | (keys < starts[..., None] + sinks)


@outside_autocast("queries", "keys", "values")
def fixed_map_attention(
    queries: Tensor, keys: Tensor, values: Tensor, first: int, tokens: int, visible: Tensor | None
) -> Tensor:
    """Rows `first` to `first` + `tokens` - 1 of one map, applied to every row's values (rndemb, fixedseq).

    Args:
        queries: [heads, L, head_dim], of the fixed stream.
        keys: [key_value_heads, L, head_dim], L at least N.
        visible: bool [1, T, N] or None.
    """
    if not torch.compiler.is_compiling() and tokens > CHUNK:
        parts = []
        for start in range(first, first + tokens, CHUNK):
            stop = min(start + CHUNK, first + tokens)
            seen = None if visible is None else visible[:, start - first : stop - first, :stop]
            parts.append(fixed_map_attention(queries, keys, values[:, :, :stop], start, stop - start, seen))
        return torch.cat(parts, dim=2)
    grouped = by_key_head(queries[None, :, first : first + tokens], len(keys))
    s = _scores(grouped, keys[None, :, : values.shape[2]])
    weights = _softmax(s, _for_groups(visible, grouped.shape[2]))
    return _mix(weights, values).reshape(-1, len(queries), tokens, values.shape[3])


@outside_autocast("queries", "keys", "values")
def fixed_map_attention_by_row(
    queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor, visible: Tensor
) -> Tensor:
    """Apply a fixed map where the rows' new tokens are at different `positions`, int64 [R, T]."""
    if positions.shape[1] > CHUNK:
        parts = zip(positions.split(CHUNK, dim=1), visible.split(CHUNK, dim=1), strict=True)
        return torch.cat([fixed_map_attention_by_row(queries, keys, values, *part) for part in parts], dim=2)
    new = by_key_head(queries[:, positions].transpose(0, 1), len(keys))
    # The keys are read once for all rows.
    s = _scores(new.transpose(0, 1).flatten(1, 2)[None], keys[None, :, : values.shape[2]])[0]
    s = s.unflatten(1, (len(new), -1)).transpose(0, 1)
    weights = _softmax(s, _for_groups(visible, new.shape[2]))
    return _mix(weights, values).reshape(len(new), len(queries), -1, values.shape[3])


def by_key_head(queries: Tensor, key_value_heads: int) -> Tensor:
    """[R, heads, T, x] -> [R, key_value_heads, group T, x]: the queries that share a key, one behind another."""
    return queries.unflatten(1, (key_value_heads, -1)).flatten(2, 3)


def _beyond_fused(keys: Tensor) -> bool:
    """Whether two products and a softmax are faster than PyTorch's fused kernel: on a CPU, from some size on."""
    return keys.device.type == "cpu" and keys.numel() >= (2**17 if keys.dtype == torch.bfloat16 else 2**22)


def _for_groups(visible: Tensor | None, queries: int) -> Tensor | None:
    """[R, T, N] -> [R, 1, group T, N], as the queries of :func:`by_key_head` lie."""
    return None if visible is None else visible.repeat(1, queries // visible.shape[1], 1)[:, None]


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """q.k / sqrt(head_dim) in at least fp32: [R, k, n, x], [R, k, N, x] -> [R, k, n, N]."""
    if queries.device.type == "cpu":  # bf16: four times faster with the many keys on the left
        products = _batched(keys, queries.transpose(-1, -2)).transpose(-1, -2)
    else:
        products = queries @ keys.transpose(-1, -2)
    return at_least_fp32(products) / math.sqrt(queries.shape[-1])


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(dim=-1)


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """[R or 1, k, n, N] @ [R, k, N, x] -> [R, k, n, x]."""
    return _batched(weights.to(values.dtype), values)


def _batched(left: Tensor, right: Tensor) -> Tensor:
    """left @ right. On a CPU PyTorch copies a bf16 batch that is a slice of a longer one; a row of it, it need not."""
    rows = max(len(left), len(right))
    if rows == 1 or left.dtype != torch.bfloat16 or left.device.type != "cpu":
        return left @ right
    return torch.stack([left[row % len(left)] @ right[row % len(right)] for row in range(rows)])
