"""Attention with the exponential's second-order Taylor series in its place (approximate; paper, equation 6)."""

from torch import Tensor

from deconattn.ops import reference
from deconattn.ops.backend import choose, kernels
from deconattn.ops.blockwise import attention as blockwise


def taylor_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """o_i = sum_{j<=i} w_ij v_j / sum_{j<=i} w_ij with w = 1 + s + s^2/2, s = q.k / sqrt(head_dim).

    Args:
        queries: [R, heads, L, head_dim].
        keys, values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L] or None; mixing stays within a document.

    Returns:
        [R, heads, L, head_dim].
    """
    backend = choose(values).backend
    if backend == "triton":
        return kernels("taylor_tiles").taylor_tiles_attention(queries, keys, values, document_ids)
    if backend == "reference":
        return reference.taylor_attention(queries, keys, values, document_ids)
    return blockwise.taylor_attention(queries, keys, values, document_ids)
