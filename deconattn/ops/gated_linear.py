"""Linear attention whose state decays, in chunks: linear in L.

Of a row and head, with log decays a_t <= 0, for all of the state or for each of the keys' channels:
    S_t = diag(exp(a_t)) S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t
With g_t the sum of a over the tokens of a chunk up to t, and S the state that the chunk inherits,
    o_i = sum_{j <= i} sum_c q_ic k_jc exp(g_ic - g_jc) v_j + S^T (q_i exp(g_i))
All exponents are sums over the tokens between two others, which are never positive: nothing overflows, however fast
the state decays. Everything is at least fp32.

A document's tokens are consecutive, and the state begins anew with each.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from deconattn.ops.precision import at_least_fp32, outside_autocast

CHUNK = 64
"""Tokens that mix by a map: longer ones cost more multiplications, shorter ones more states. A power of two."""


@outside_autocast()
def gated_linear(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor | None = None,
    document_ids: Tensor | None = None,
    state: Tensor | None = None,
    real: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Read the state after each token, and return the last.

    Args:
        queries, keys: [R, heads, L, x], or [R, 1, L, x] where all heads share them and there are decays.
        values: [R, heads, L, y].
        log_decay: [R, heads, L], or [R, heads, L, x] with one for each of the keys' channels; None: no decay.
        document_ids: int64 [R, L] or None; the state restarts with each document.
        state: [R, heads, x, y], before the first token, whose document it is of; None: nothing came before.
        real: bool [R, L], false for tokens that leave the state as it is; they come after the others.

    Returns:
        What is read, [R, heads, L, y], and the state after the last token, [R, heads, x, y], both at least fp32.
    """
    length = queries.shape[2]
    if log_decay is not None and log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    if real is not None:
        keys = keys * real[:, None, :, None]
        log_decay = None if log_decay is None else log_decay * real[:, None, :, None]
    q, k, v = in_chunks(queries), in_chunks(keys), in_chunks(values)
    sums = None if log_decay is None else in_chunks(log_decay).cumsum(dim=3)

    scores = decayed_scores(q, k, sums)
    added_keys, reading, kept = k, q, None
    if sums is not None:
        added_keys, reading = k * (sums[..., -1:, :] - sums).exp(), q * sums.exp()
        kept = sums[..., -1, :, None].exp()
    if document_ids is not None:
        borders = Borders(document_ids)
        scores = scores.masked_fill(borders.apart, 0)
        added_keys, reading = added_keys * borders.passes_on, reading * borders.inherits
        kept = borders.continues if kept is None else kept * borders.continues
    added = added_keys.transpose(-1, -2) @ v
    entering, last = carried(added, kept, state)
    mixed = scores @ v + reading @ entering
    return mixed.flatten(2, 3)[:, :, :length], last


def chunk_size(length: int) -> int:
    """Return the length of the chunks of a sequence: short ones are one, up to a power of two."""
    return min(CHUNK, 1 << (length - 1).bit_length())


def in_chunks(tokens: Tensor) -> Tensor:
    """Cut tokens into chunks, at least fp32, the last filled with zeros: [R, n, L, x] -> [R, n, chunks, size, x]."""
    size, length = chunk_size(tokens.shape[2]), tokens.shape[2]
    tokens = at_least_fp32(tokens)
    # In one piece, which each product would make of it again.
    tokens = pad(tokens, (0, 0, 0, -length % size)) if length % size else tokens.contiguous()
    return tokens.unflatten(2, (-1, size))


class Borders:
    """What of a chunk belongs to which document, as factors 0 and 1 (fp32).

    Attributes:
        apart: bool [R, 1, chunks, size, size], tokens of two documents.
        inherits: [R, 1, chunks, size, 1], tokens whose document began before the chunk.
        passes_on: [R, 1, chunks, size, 1], tokens of the chunk's last document.
        continues: [R, 1, chunks, 1, 1], chunks whose last document began before them.
    """

    def __init__(self, document_ids: Tensor) -> None:
        size = chunk_size(document_ids.shape[1])
        filling = document_ids[:, -1:].expand(-1, -document_ids.shape[1] % size)
        ids = torch.cat([document_ids, filling], dim=1).unflatten(1, (-1, size))[:, None]
        last = ids[..., -1:]
        before = torch.cat([ids[:, :, :1, :1], last[:, :, :-1]], dim=2)
        self.apart = ids[..., :, None] != ids[..., None, :]
        self.inherits = (ids == before)[..., None].float()
        self.passes_on = (ids == last)[..., None].float()
        self.continues = (last == before)[..., None].float()


def decayed_scores(queries: Tensor, keys: Tensor, sums: Tensor | None) -> Tensor:
    """Return sum_c q_ic k_jc exp(g_ic - g_jc) for j <= i and 0 for others, [.., C, C].

    Args:
        queries, keys: [.., C, x], C a power of two.
        sums: [.., C, 1] or [.., C, x], sums g of log decays over the tokens up to each; None: no decay.
    """
    if sums is not None and sums.shape[-1] > 1:
        return _scores_by_channel(queries, keys, sums)
    scores = queries @ keys.transpose(-1, -2)
    if sums is None:
        return scores.tril()
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores * (sums - sums.transpose(-1, -2)).masked_fill(later, -torch.inf).exp()


def _scores_by_channel(queries: Tensor, keys: Tensor, sums: Tensor) -> Tensor:
    """Scores of ever longer blocks: the later half of a block meets the earlier one at the token between them.

    What has decayed from a key to that token and from there to a query are two factors, neither of which can overflow.
    """
    scores = (queries * keys).sum(dim=-1)[..., None, None]
    width = 1
    while width < queries.shape[-2]:
        q, k, g = (one.unflatten(-2, (-1, 2, width)) for one in (queries, keys, sums))
        between = g[..., 0, -1:, :]
        later = q[..., 1, :, :] * (g[..., 1, :, :] - between).exp()
        earlier = k[..., 0, :, :] * (between - g[..., 0, :, :]).exp()
        off_diagonal = later @ earlier.transpose(-1, -2)
        upper = pad(scores[..., 0::2, :, :], (0, width))
        lower = torch.cat([off_diagonal, scores[..., 1::2, :, :]], dim=-1)
        scores = torch.cat([upper, lower], dim=-2)
        width *= 2
    return scores[..., 0, :, :]


def carried(added: Tensor, kept: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the state before each chunk and after the last.

    Args:
        added: [R, heads, chunks, x, y], what each chunk adds.
        kept: [R, heads or 1, chunks, x or 1, 1], the factor by which it multiplies what it inherits; None: 1.
        state: [R, heads, x, y] before the first; None: zeros.
    """
    state = added.new_zeros(added[:, :, 0].shape) if state is None else state
    factors = [None] * added.shape[2] if kept is None else kept.unbind(2)
    entering = []
    for factor, new in zip(factors, added.unbind(2), strict=True):
        entering.append(state)
        state = new + (state if factor is None else state * factor)
    return torch.stack(entering, dim=2), state
