"""The paper's attention maps, as it writes them (section 3): plainly right, exact in float64, quadratic.

The operations below the maps are the `reference` backend (:mod:`deconattn.ops.backend`).

Every map A is [.., L, L], causal, rows summing to one; the mixed output is A @ V. Queries and keys are
[.., L, head_dim], already rotated. `documents` (int64 [.., L], broadcastable) restricts a row to its document.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import silu

from deconattn.ops.precision import at_least_fp32


def allowed(length: int, documents: Tensor | None = None, device: torch.device | None = None) -> Tensor:
    """bool [.., L, L]: key j is visible to query i when j <= i and both lie in one document."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if documents is None:
        return causal
    return causal & (documents[..., :, None] == documents[..., None, :])


def scores(queries: Tensor, keys: Tensor) -> Tensor:
    """s_ij = q_i . k_j / sqrt(head_dim), [.., L, L] (equation 1)."""
    return queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])


def softmax_map(queries: Tensor, keys: Tensor, documents: Tensor | None = None) -> Tensor:
    """A = softmax(Q K^T / sqrt(head_dim)): standard, staticemb, and on the fixed stream rndemb and fixedseq."""
    mask = allowed(queries.shape[-2], documents, queries.device)
    return scores(queries, keys).masked_fill(~mask, -math.inf).softmax(dim=-1)


def taylor_map(queries: Tensor, keys: Tensor, documents: Tensor | None = None) -> Tensor:
    """A_ij = w_ij / sum_{m<=i} w_im with w = 1 + s + s^2/2 (equation 6): approximate.

    One joint normaliser, always positive: 1 + s + s^2/2 >= 1/2.
    """
    s = scores(queries, keys)
    mask = allowed(queries.shape[-2], documents, queries.device)
    weights = (1 + s + s.square() / 2) * mask
    return weights / weights.sum(dim=-1, keepdim=True)


def prefix_map(token_scores: Tensor, documents: Tensor | None = None) -> Tensor:
    """A_ij = exp(s_j) / sum_{m<=i} exp(s_m), one score a token, [.., L] -> [.., L, L]: nonapproximate."""
    length = token_scores.shape[-1]
    mask = allowed(length, documents, token_scores.device)
    rows = token_scores[..., None, :].expand(*token_scores.shape, length)
    return rows.masked_fill(~mask, -math.inf).softmax(dim=-1)


def token_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """s_j = sum(q_j * k_j) / sqrt(head_dim), [.., L]: nonapproximate (queries already through SiLU)."""
    return (queries * keys).sum(dim=-1) / math.sqrt(queries.shape[-1])


def taylor_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """:func:`deconattn.ops.taylor_attention.taylor_attention` with its whole map."""
    heads = queries.shape[-3]
    return _mix(taylor_map(_precise(queries), _precise(keys, heads), _per_head(document_ids)), values)


def prefix_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """:func:`deconattn.ops.prefix_average.prefix_attention` with its whole map."""
    scored = token_scores(silu(_precise(queries)), _precise(keys, queries.shape[-3]))
    return _mix(prefix_map(scored, _per_head(document_ids)), values)


def prefix_average(scores: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """:func:`deconattn.ops.prefix_average.prefix_average` with its whole map."""
    return _mix(prefix_map(at_least_fp32(scores), _per_head(document_ids)), values)


def softmax_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """:func:`deconattn.ops.softmax_attention.causal_attention` with its whole map."""
    heads = queries.shape[-3]
    return _mix(softmax_map(_precise(queries), _precise(keys, heads), _per_head(document_ids)), values)


def fixed_map_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """:func:`deconattn.ops.fixed_map.fixed_map_attention` with its whole map."""
    return _mix(softmax_map(_precise(queries), _precise(keys, queries.shape[-3])), values)


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """[.., heads, L, L] @ [R, key_value_heads, L, x] in at least fp32 -> [R, heads, L, x] in the values' dtype."""
    return (weights @ _precise(values, weights.shape[-3])).to(values.dtype)


def _precise(tensor: Tensor, heads: int = 0) -> Tensor:
    """Cast to at least fp32, and repeat fewer heads to `heads`, each beside the queries that it serves."""
    return per_query_head(at_least_fp32(tensor), heads or tensor.shape[-3])


def per_query_head(shared: Tensor, heads: int) -> Tensor:
    """[.., key_value_heads, L, x] -> [.., heads, L, x]: each key or value head beside the queries that it serves."""
    group = heads // shared.shape[-3]
    if group == 1:
        return shared
    if torch.compiler.is_compiling():  # after repeat_interleave torch 2.11 guards on the length
        return shared.index_select(-3, torch.arange(heads, device=shared.device) // group)
    return shared.repeat_interleave(group, dim=-3)


def _per_head(document_ids: Tensor | None) -> Tensor | None:
    return None if document_ids is None else document_ids[:, None]


def gated_linear(
    queries: Tensor, keys: Tensor, values: Tensor, log_decay: Tensor | None = None, document_ids: Tensor | None = None
) -> Tensor:
    """S_t = diag(exp(a_t)) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, token by token; a document's first finds S = 0.

    Args:
        queries, keys: [R, heads or 1, L, x].
        values: [R, heads, L, y].
        log_decay: [R, heads, L, x or 1], or None for none.
    """
    state = values.new_zeros(*values.shape[:2], keys.shape[-1], values.shape[-1])
    mixed = []
    for t in range(values.shape[2]):
        if document_ids is not None and t:
            state = state * (document_ids[:, t] == document_ids[:, t - 1])[:, None, None, None]
        if log_decay is not None:
            state = state * log_decay[:, :, t, :, None].exp()
        state = state + keys[:, :, t, :, None] * values[:, :, t, None, :]
        mixed.append((queries[:, :, t, :, None] * state).sum(dim=-2))
    return torch.stack(mixed, dim=2)


def delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    strengths: Tensor,
    log_decay: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """S_t = (I - b_t k_t k_t^T) diag(exp(a_t)) S_{t-1} + b_t k_t v_t^T, o_t = S_t^T q_t, token by token.

    A document's first token finds S = 0.

    Args:
        queries, keys: [R, heads, L, x].
        values: [R, heads, L, y].
        strengths: [R, heads, L], b.
        log_decay: [R, heads, L, x or 1], a, or None for none.
    """
    state = values.new_zeros(*values.shape[:2], keys.shape[-1], values.shape[-1])
    mixed = []
    for t in range(values.shape[2]):
        if document_ids is not None and t:
            state = state * (document_ids[:, t] == document_ids[:, t - 1])[:, None, None, None]
        if log_decay is not None:
            state = state * log_decay[:, :, t, :, None].exp()
        k, v, b = keys[:, :, t, :, None], values[:, :, t, None, :], strengths[:, :, t, None, None]
        state = state + b * k * (v - (k * state).sum(dim=-2, keepdim=True))
        mixed.append((queries[:, :, t, :, None] * state).sum(dim=-2))
    return torch.stack(mixed, dim=2)
