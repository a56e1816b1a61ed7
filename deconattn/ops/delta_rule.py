"""Linear attention whose state is corrected by the delta rule, with or without decay, in chunks: linear in L.

Of a row and head, with log decays a_t <= 0, for all of the state or for each of the keys' channels:
    S_t = (I - b_t k_t k_t^T) diag(exp(a_t)) S_{t-1} + b_t k_t v_t^T,    o_t = S_t^T q_t
A token adds k_t u_t^T to what has decayed, u_t = b_t (v_t - its state's answer to k_t). With g_t the sum of a over the
tokens of a chunk up to t, and S the state that the chunk inherits, the answers are the solution of a triangular system:
    u_i + b_i sum_{j < i} (sum_c k_ic k_jc exp(g_ic - g_jc)) u_j = b_i v_i - S^T (b_i k_i exp(g_i))
that is U = U' - W S, where U' and W are solved for in all chunks at once. The state after the chunk is linear in S too,
so that a chunk is one product in the only loop there is. What is read is :mod:`.gated_linear`'s, with u for v.
"""

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from deconattn.ops.gated_linear import Borders, decayed_scores, in_chunks
from deconattn.ops.precision import outside_autocast


@outside_autocast()
def delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    strengths: Tensor,
    log_decay: Tensor | None = None,
    document_ids: Tensor | None = None,
    state: Tensor | None = None,
    real: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Read the state after each token, and return the last.

    Args:
        queries, keys: [R, heads, L, x].
        values: [R, heads, L, y].
        strengths: [R, heads, L], b; where keys have length one, from 0 to 1 (to 2, and nothing grows).
        log_decay: [R, heads, L], or [R, heads, L, x] with one for each of the keys' channels; None: no decay.
        document_ids: int64 [R, L] or None; the state restarts with each document.
        state: [R, heads, x, y], before the first token, whose document it is of; None: nothing came before.
        real: bool [R, L], false for tokens that leave the state as it is; they come after the others.

    Returns:
        What is read, [R, heads, L, y], and the state after the last token, [R, heads, x, y], both at least fp32.
    """
    length = queries.shape[2]
    strengths = strengths[..., None]
    if log_decay is not None and log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    if real is not None:
        strengths = strengths * real[:, None, :, None]
        log_decay = None if log_decay is None else log_decay * real[:, None, :, None]
    q, k, v, b = in_chunks(queries), in_chunks(keys), in_chunks(values), in_chunks(strengths)
    sums = None if log_decay is None else in_chunks(log_decay).cumsum(dim=3)

    asking = torch.stack([q, k * b])
    scores, added_keys, kept = decayed_scores(asking, k, sums), k, k.new_ones(1)
    if sums is not None:
        asking, added_keys = asking * sums.exp(), k * (sums[..., -1:, :] - sums).exp()
        kept = sums[..., -1, :].exp()
    if document_ids is not None:
        borders = Borders(document_ids)
        scores = scores.masked_fill(borders.apart, 0)
        added_keys, asking = added_keys * borders.passes_on, asking * borders.inherits
        kept = kept * borders.continues[..., 0]
    (scores, overlaps), (reading, answering) = scores.unbind(), asking.unbind()
    right = torch.cat([v * b, answering], dim=-1)
    solved = solve_triangular(overlaps, right, upper=False, unitriangular=True)
    added, removed = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    both = added_keys.transpose(-1, -2) @ solved
    offsets, transitions = both.split([v.shape[-1], k.shape[-1]], dim=-1)
    transitions = torch.diag_embed(kept.expand(*k.shape[:3], k.shape[-1])) - transitions

    state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
    entering = []
    for offset, transition in zip(offsets.unbind(2), transitions.unbind(2), strict=True):
        entering.append(state)
        state = offset + transition @ state
    inherited = torch.stack(entering, dim=2)
    mixed = scores @ (added - removed @ inherited) + reading @ inherited
    return mixed.flatten(2, 3)[:, :, :length], state
