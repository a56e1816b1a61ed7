"""Exchange of states under context parallelism: where earlier tokens are known by a few sums, these alone cross ranks.

Each rank sums up the tokens of the document that its part ends in, and all get the sums of all. A part's first document
goes on from those of the ranks before it that end in the same document; other documents begin within the part.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from deconattn.mixers.costs import Workload
from deconattn.mixers.exchange import SharedContext
from deconattn.ops import prefix_scan, taylor_scan
from deconattn.ops.precision import at_least_fp32


def earlier_ranks(context: SharedContext, device: torch.device) -> Tensor:
    """Return whether a rank's state is of the document that goes on in this part: bool [cp_size, R or 1].

    No rank is left out of what is computed with it, so that the backward passes of all ranks meet.
    """
    ranks = context.ranks
    before = (torch.arange(ranks.size, device=device) < ranks.rank)[:, None]
    if context.whole_documents is None:
        return before
    ids = context.whole_documents.ids.unflatten(1, (ranks.size, -1))
    return before & (ids[:, :, -1] == ids[:, ranks.rank, :1]).T


def shared_average(scores: Tensor, values: Tensor, context: SharedContext) -> Tensor:
    """Compute :func:`deconattn.ops.prefix_average.prefix_average` of whole rows, for this rank's part of them.

    Args:
        scores: [R, heads, L / cp_size].
        values: [R, key_value_heads, L / cp_size, head_dim].
    """
    ranks = context.ranks
    states = ranks.whole(prefix_scan.last_state(scores, values, context.document_ids)[None], dim=0)
    state = prefix_scan.merged(states, earlier_ranks(context, states.device))
    return prefix_scan.following_average(scores, values, state, context.document_ids)


def shared_attention(queries: Tensor, keys: Tensor, values: Tensor, context: SharedContext) -> Tensor:
    """Compute :func:`deconattn.ops.taylor_attention.taylor_attention` of whole rows, for this rank's part of them.

    Args:
        queries: [R, heads, L / cp_size, head_dim].
        keys, values: [R, key_value_heads, L / cp_size, head_dim].
    """
    ranks = context.ranks
    sums = ranks.whole(taylor_scan.last_sums(keys, values, context.document_ids)[None], dim=0)
    counts = earlier_ranks(context, sums.device)[..., None, None, None]
    sums = sums.masked_fill(~counts, 0).sum(dim=0)
    return taylor_scan.following_attention(queries, keys, values, sums, context.document_ids)


def last_inputs_before(inputs: Sequence[Tensor], count: int, context: SharedContext) -> list[Tensor]:
    """Return the last `count` inputs of the rank before, zeros on the first, at least fp32.

    Args:
        inputs: [R, L / cp_size, n] each, at least `count` tokens.

    Returns:
        [R, count, n] each.
    """
    if not inputs:
        return []
    ranks = context.ranks
    last = torch.cat([one[:, one.shape[1] - count :] for one in inputs], dim=-1)
    shifted = pad(ranks.whole(last[None], dim=0), (0, 0, 0, 0, 0, 0, 1, 0))
    return list(at_least_fp32(shifted[ranks.rank]).split([one.shape[2] for one in inputs], dim=-1))


def sent_states(elements: int, work: Workload, cp_size: int) -> int:
    """Return the elements, of the activations' bytes, that a rank sends of states of so many numbers a row.

    Numbers of a state are at least fp32: each counts as two elements of half precision.
    """
    return (cp_size - 1) * work.rows * elements * max(4, work.bytes_per_element) // work.bytes_per_element
