"""The running average of `nonapproximate` over rows in parts: what a part needs of those before it (section 3.1).

Of a row and head a state is the average of values weighted by exp(score) and the logarithm of the weights' sum, side by
side: [R, heads, head_dim + 1], at least fp32. By blocks of PyTorch operations on every device.
"""

from functools import partial

import torch
from torch import Tensor

from deconattn.ops.blockwise import prefix_average as blockwise
from deconattn.ops.precision import at_least_fp32, outside_autocast
from deconattn.ops.prefix_state import NOTHING, summarise
from deconattn.ops.recompute import recomputed
from deconattn.ops.reference import per_query_head


@outside_autocast("queries", "keys")
def token_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """s_j = sum(silu(q_j) * k_j) / sqrt(head_dim), [R, heads, L], at least fp32.

    Args:
        queries: [R, heads, L, head_dim], before SiLU.
        keys: [R, key_value_heads, L, head_dim].
    """
    return blockwise.token_scores(queries, keys)


@outside_autocast("values")
def last_state(scores: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """The state after the tokens of a part's last document, and nothing before them.

    Args:
        scores: [R, heads, L].
        values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L]; None: all are of one document.
    """
    real = None if document_ids is None else document_ids == document_ids[:, -1:]
    return recomputed(partial(_summary, real=real), scores, values)


@outside_autocast()
def merged(states: Tensor, counts: Tensor) -> Tensor:
    """The state of several stretches of tokens: [n, R, heads, head_dim + 1] -> [R, heads, head_dim + 1].

    Args:
        counts: bool [n, R or 1], those that count. Of none the log-sum is that of no tokens, and the average any.
    """
    log_sums = states[..., -1].masked_fill(~counts[..., None], NOTHING)
    average = (log_sums.softmax(dim=0)[..., None] * states[..., :-1]).sum(dim=0)
    return torch.cat([average, log_sums.logsumexp(dim=0)[..., None]], dim=-1)


@outside_autocast("values")
def following_average(scores: Tensor, values: Tensor, state: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Average of the values so far, weighted by exp(score), of tokens that follow a state.

    Args:
        scores: [R, heads, L].
        values: [R, key_value_heads, L, head_dim].
        state: of earlier tokens of the first one's document.
        document_ids: int64 [R, L] or None; the average restarts with each document.

    Returns:
        [R, heads, L, head_dim] in the values' dtype.
    """
    return blockwise.following_average(scores, values, state[..., :-1], state[..., -1], document_ids)


def _summary(scores: Tensor, values: Tensor, real: Tensor | None) -> Tensor:
    average, log_sum = summarise(scores, per_query_head(at_least_fp32(values), scores.shape[1]), real)
    return torch.cat([average, log_sum[..., None]], dim=-1)
