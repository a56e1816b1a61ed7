"""Causal attention by another rule: scores with a bias by place, a window, or sigmoids in the softmax's place."""

from torch import Tensor

from deconattn.ops import plain
from deconattn.ops.backend import backend_for
from deconattn.ops.blockwise import scored
from deconattn.ops.precision import outside_autocast


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
    """sum_j w_ij v_j of the scores s_ij = q_i.k_j / sqrt(head_dim) + levels_j - levels_i + offsets_i; linear memory.

    Args:
        queries: [R, heads, L, head_dim].
        keys, values: [R, key_value_heads, L, head_dim]; each serves heads / key_value_heads query heads.
        document_ids: int64 [R, L] or None; mixing stays within a document.
        levels: [R or 1, heads, L], such as the distance from the start by a slope, or None. For softmax alone; fp64
            where they grow with the length, for it is differences that count.
        offsets: [R or 1, L] or None, without a gradient.
        sigmoid: w = sigmoid(s), not softmax(s).
        window: how many tokens a query sees, itself the last; 0: all.
        sinks: first tokens of a document that its queries see beside the window.

    Returns:
        [R, heads, L, head_dim].
    """
    if backend_for(values) == "reference":
        return plain.scored_attention(queries, keys, values, document_ids, levels, offsets, sigmoid, window, sinks)
    rule = scored.Rule(sigmoid, window, sinks)
    return scored.scored_attention(queries, keys, values, document_ids, levels, offsets, rule)
