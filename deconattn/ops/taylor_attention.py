"""Attention with the exponential's second-order Taylor series in its place (approximate; paper, equation 6).

Two forms give the same numbers: tiles of the map, quadratic in L, and a running state of second-order features,
linear in L but with head_dim^2 / 2 of them. Which is faster depends on length and head_dim alone.
"""

from torch import Tensor

from deconattn.ops import reference
from deconattn.ops.backend import choose, kernels
from deconattn.ops.blockwise import attention, taylor_states


def taylor_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """o_i = sum_{j<=i} w_ij v_j / sum_{j<=i} w_ij with w = 1 + s + s^2/2, s = q.k / sqrt(head_dim).

    Args:
        queries: [R, heads, L, head_dim].
        keys, values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L] or None; mixing stays within a document.

    Returns:
        [R, heads, L, head_dim].
    """
    inputs = queries, keys, values, document_ids
    length, head_dim = queries.shape[-2:]
    backend = choose(values).backend
    if backend == "reference":
        return reference.taylor_attention(*inputs)
    if backend == "triton":
        states = kernels("taylor_states")
        if length >= states.crossover(head_dim):
            return states.taylor_states_attention(*inputs)
        return kernels("taylor_tiles").taylor_tiles_attention(*inputs)
    if length >= taylor_states.crossover(head_dim, values.dtype):
        return taylor_states.taylor_states_attention(*inputs)
    return attention.taylor_attention(*inputs)
