"""The running sums of `approximate` over rows in parts: what a part needs of those before it (equation 6).

Of a row and key head the sums over tokens j of [v_j, 1] times 1, each channel of k_j, and each product of two of its
channels, once: [R, key_value_heads, features, head_dim + 1], at least fp32, with as many features as
:func:`deconattn.ops.taylor_state.num_features` says. Sums of several stretches add up. By blocks of PyTorch operations
on every device.
"""

from torch import Tensor

from deconattn.ops.blockwise import taylor_states
from deconattn.ops.precision import outside_autocast


@outside_autocast("keys", "values")
def last_sums(keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """The sums over the tokens of a part's last document.

    Args:
        keys, values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L]; None: all are of one document.
    """
    return taylor_states.last_sums(keys, values, document_ids)


@outside_autocast("queries", "keys", "values")
def following_attention(
    queries: Tensor, keys: Tensor, values: Tensor, sums: Tensor, document_ids: Tensor | None = None
) -> Tensor:
    """Compute :func:`deconattn.ops.taylor_attention.taylor_attention` of tokens that follow others.

    Args:
        queries: [R, heads, L, head_dim].
        keys, values: [R, key_value_heads, L, head_dim].
        sums: over the earlier tokens of the first one's document.
        document_ids: int64 [R, L] or None; mixing stays within a document.

    Returns:
        [R, heads, L, head_dim] in the values' dtype.
    """
    return taylor_states.following_attention(queries, keys, values, sums, document_ids)
