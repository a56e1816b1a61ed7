"""Softmax over the prefix with one score a token, linear in L (nonapproximate; paper, section 3.1)."""

import torch
from torch import Tensor

from deconattn.ops import reference
from deconattn.ops.backend import backend_for
from deconattn.ops.blockwise import prefix_average as blockwise
from deconattn.ops.precision import outside_autocast


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
    backend = backend_for(values)
    if backend == "triton":
        return torch.ops.deconattn.prefix_attention(queries, keys, values, document_ids)[0]
    if backend == "reference":
        return reference.prefix_attention(queries, keys, values, document_ids)
    return blockwise.prefix_attention(queries, keys, values, document_ids)


@outside_autocast("values")
def prefix_average(scores: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Average of the values so far, weighted by exp(score): for variants with scores of their own.

    Args:
        scores: [R, heads, L].
        values: [R, heads, L, head_dim].
        document_ids: int64 [R, L] or None; the average restarts with each document.

    Returns:
        [R, heads, L, head_dim] in the values' dtype.
    """
    if backend_for(values) == "reference":
        return reference.prefix_average(scores, values, document_ids)
    return blockwise.prefix_average(scores, values, document_ids)
