"""Attention with the exponential's second-order Taylor series in its place (approximate; paper, equation 6).

Two forms give the same numbers: tiles of the map, quadratic in L, and a running state of second-order features,
linear in L but with head_dim^2 / 2 of them. Which is faster depends on length and head_dim alone.
"""

import torch
from torch import Tensor

from deconattn.ops import reference
from deconattn.ops.backend import backend_for
from deconattn.ops.blockwise import attention, taylor_states
from deconattn.ops.precision import outside_autocast


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
    inputs = queries, keys, values, document_ids
    backend = backend_for(values)
    if backend == "reference":
        return reference.taylor_attention(*inputs)
    states = queries.shape[-2] >= crossover(queries.shape[-1], values.dtype, backend)
    if backend == "triton":
        operators = torch.ops.deconattn
        return (operators.taylor_states if states else operators.taylor_tiles)(*inputs)[0]
    return (taylor_states.taylor_states_attention if states else attention.taylor_attention)(*inputs)


def crossover(head_dim: int, dtype: torch.dtype, backend: str) -> int:
    """The length from which states are faster than tiles, both passes.

    Tiles take 4.5 L head_dim multiply-adds a token, states 7 head_dim^2: as much at L = 1.56 head_dim^2. `torch` was
    measured on a CPU (benchmarks/LOG.md), where tiles are computed in bf16 twice as fast as in fp32, and states always
    in fp32. `triton` is arithmetic: by its instructions (100 for 4 wgmma, two programs a multiprocessor) a product with
    a state runs at 2/3 of a tile's rate or less, on heads padded to a power of two.
    """
    if backend == "triton":
        width = max(16, 1 << (head_dim - 1).bit_length())
        return 5 * width**2 // 2
    return (3 if dtype in (torch.float32, torch.float64) else 4) * head_dim**2
