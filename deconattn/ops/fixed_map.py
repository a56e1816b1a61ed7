"""One softmax map applied to every row of the batch (rndemb, fixedseq)."""

import torch
from torch import Tensor

from deconattn.ops import reference
from deconattn.ops.backend import backend_for
from deconattn.ops.blockwise import fixed_map as blockwise
from deconattn.ops.precision import outside_autocast


@outside_autocast("queries", "keys", "values")
def fixed_map_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V, the map shared by all rows.

    A block of the map is computed once for all rows, and the gradients of Q and K cost one row, not R.

    Args:
        queries: [heads, L, head_dim], of the fixed stream.
        keys: [key_value_heads, L, head_dim], of the fixed stream.
        values: [R, key_value_heads, L, head_dim], of every row.

    Returns:
        [R, heads, L, head_dim].
    """
    backend = backend_for(values)
    if backend == "triton":
        return torch.ops.deconattn.fixed_map(queries, keys, values)[0]
    if backend == "reference":
        return reference.fixed_map_attention(queries, keys, values)
    return blockwise.fixed_map_attention(queries, keys, values)
