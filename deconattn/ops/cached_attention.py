"""Attention of a few new tokens over tokens that are held: the steps of text generation.

Slots of a row that lie behind its last token may hold anything finite; `visible` keeps them out. In each function
queries are [R, heads, T, head_dim], keys and values [R, key_value_heads, N, head_dim], `visible` is bool
[R or 1, T, N] or None where every new token sees every slot, and the result is [R, heads, T, head_dim].
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from deconattn.ops.precision import at_least_fp32


def softmax_attention(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V (standard, staticemb)."""
    heads, tokens = queries.shape[1:3]
    grouped = by_key_head(queries, keys.shape[1])
    mask = None if visible is None else visible.repeat(1, heads // keys.shape[1], 1)[:, None]
    return scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(-1, heads, tokens, keys.shape[3])


def taylor_attention(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """w V / sum(w) with w = 1 + s + s^2/2, s = q.k / sqrt(head_dim) (approximate; paper, equation 6)."""
    heads, tokens = queries.shape[1:3]
    grouped = by_key_head(queries, keys.shape[1])
    s = at_least_fp32(grouped @ keys.transpose(-1, -2)) / math.sqrt(queries.shape[-1])
    weights = 1 + s + s.square() / 2
    if visible is not None:
        weights *= visible.repeat(1, heads // keys.shape[1], 1)[:, None]
    weights /= weights.sum(dim=-1, keepdim=True)
    return (weights.to(values.dtype) @ values).reshape(-1, heads, tokens, values.shape[3])


def fixed_map_attention(
    queries: Tensor, keys: Tensor, values: Tensor, first: int, tokens: int, visible: Tensor | None
) -> Tensor:
    """Rows `first` to `first` + `tokens` - 1 of one map, applied to every row's values (rndemb, fixedseq).

    Args:
        queries: [heads, L, head_dim], of the fixed stream.
        keys: [key_value_heads, L, head_dim], L at least N.
        visible: bool [1, T, N] or None.
    """
    window = values.shape[2]
    new = queries[:, first : first + tokens]
    weights = _map_rows(by_key_head(new[None], len(keys))[0], keys[:, :window], visible, values.dtype)
    return (weights @ values).reshape(-1, len(queries), tokens, values.shape[3])


def fixed_map_attention_by_row(
    queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor, visible: Tensor
) -> Tensor:
    """The same where the rows' new tokens are at different `positions`, int64 [R, T]."""
    heads, (rows, tokens) = len(queries), positions.shape
    grouped = by_key_head(queries[:, positions].transpose(0, 1), len(keys))
    weights = _map_rows(grouped, keys[:, : values.shape[2]], visible, values.dtype)
    return (weights @ values).reshape(rows, heads, tokens, values.shape[3])


def by_key_head(queries: Tensor, key_value_heads: int) -> Tensor:
    """[R, heads, T, x] -> [R, key_value_heads, group T, x]: the queries that share a key, one behind another."""
    return queries.unflatten(1, (key_value_heads, -1)).flatten(2, 3)


def _map_rows(queries: Tensor, keys: Tensor, visible: Tensor | None, dtype: torch.dtype) -> Tensor:
    """softmax over the keys [key_value_heads, N, x] of queries [.., key_value_heads, group T, x]."""
    s = at_least_fp32(queries @ keys.transpose(-1, -2)) / math.sqrt(queries.shape[-1])
    if visible is not None:
        group = s.shape[-2] // visible.shape[1]
        s = s.masked_fill(~visible.repeat(1, group, 1)[:, None], -math.inf)
    return s.softmax(dim=-1).to(dtype)
