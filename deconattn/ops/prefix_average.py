"""Running softmax average over a sequence, one score a token (nonapproximate), linear in L.

o_i = sum_{j<=i} exp(s_j) v_j / sum_{j<=i} exp(s_j). A (log-weight, mean) pair summarises any span and two
spans merge by their log-weights, so the sequence is cut into chunks: each chunk mixes within itself by a
[CHUNK, CHUNK] softmax, the chunks' summaries are scanned by the same function, and the two are merged.
No exponent is ever positive, so scores of any size are safe; statistics are fp32 (fp64 for fp64 inputs). A
log-weight is one number, so tied scores are normalised to its rounding: 4e-5 relative at |s| = 1e3, 8e-4 at 1e4.

The backward pass keeps s, v, o and the running log-normaliser n_i only. With A_ij = exp(s_j - n_i):
    dv_j = sum_{i>=j} A_ij do_i,    ds_j = v_j . dv_j - sum_{i>=j} A_ij (do_i . o_i),
both of which are exp(s_j - n_j) R_j with R_j = sum_{i>=j} exp(n_j - n_i) x_i, a reverse scan whose decays are
at most one because n never falls within a document.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from deconattn.ops.precision import at_least_fp32

CHUNK = 64


def prefix_average(scores: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Average of the values so far, weighted by exp(score).

    Args:
        scores: [R, heads, L].
        values: [R, heads, L, head_dim].
        document_ids: int64 [R, L] or None; the average restarts with each document.

    Returns:
        [R, heads, L, head_dim] in the values' dtype.
    """
    return _PrefixAverage.apply(scores, values, document_ids)


class _PrefixAverage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, values: Tensor, document_ids: Tensor | None) -> Tensor:
        documents = None if document_ids is None else document_ids[:, None]
        log_normaliser, mixed = _scan(at_least_fp32(scores), at_least_fp32(values), documents)
        mixed = mixed.to(values.dtype)
        ctx.save_for_backward(scores, values, mixed, log_normaliser, documents)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        scores, values, mixed, log_normaliser, documents = ctx.saved_tensors
        grad = at_least_fp32(grad)
        centre = (grad * mixed).sum(dim=-1, keepdim=True)
        reverse = _reverse_scan(log_normaliser, torch.cat([grad, centre], dim=-1), documents)
        reverse = reverse.mul_((at_least_fp32(scores) - log_normaliser).exp_()[..., None])
        grad_values, grad_centre = reverse[..., :-1], reverse[..., -1]
        grad_scores = (grad_values * values).sum(dim=-1) - grad_centre
        return grad_scores.to(scores.dtype), grad_values.to(values.dtype), None


def _scan(scores: Tensor, values: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
    """Inclusive scan: log-normaliser [.., L] and mean [.., L, x] of each prefix within its document."""
    length = scores.shape[-1]
    if length <= CHUNK:
        return _scan_chunk(scores, values, documents)
    scores, values, documents = _pad_to_chunks(scores, values, documents)
    log_weight, mean = _scan_chunk(*_chunked(scores, values, documents))
    ends = None if documents is None else documents[..., CHUNK - 1 :: CHUNK]
    carried_weight, carried_mean = _scan(log_weight[..., -1], mean[..., -1, :], ends)

    # What a chunk inherits is the scan of the chunks before it, for tokens of the document that it ends in.
    inherited_weight = pad(carried_weight[..., :-1], (1, 0), value=-math.inf)[..., None]
    inherited_mean = pad(carried_mean[..., :-1, :], (0, 0, 1, 0))[..., None, :]
    if documents is not None:
        assert ends is not None
        previous = pad(ends[..., :-1], (1, 0), value=-1)[..., None]
        same = documents.unflatten(-1, (-1, CHUNK)) == previous
        inherited_weight = inherited_weight.masked_fill(~same, -math.inf)
    total = torch.logaddexp(log_weight, inherited_weight)
    mean.mul_((log_weight - total).exp_()[..., None])
    mean.addcmul_(inherited_mean, (inherited_weight - total).exp_()[..., None])
    return total.flatten(-2)[..., :length], mean.flatten(-3, -2)[..., :length, :]


def _scan_chunk(scores: Tensor, values: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
    length = scores.shape[-1]
    rows = scores[..., None, :].expand(*scores.shape, length).masked_fill(_hidden(length, scores, documents), -math.inf)
    log_weight = rows.logsumexp(dim=-1)
    return log_weight, rows.sub_(log_weight[..., None]).exp_() @ values


def _reverse_scan(log_normaliser: Tensor, values: Tensor, documents: Tensor | None) -> Tensor:
    """R_j = sum over i >= j of the same document of exp(n_j - n_i) x_i, [.., L, x]."""
    length = log_normaliser.shape[-1]
    if length <= CHUNK:
        return _reverse_chunk(log_normaliser, values, documents)
    log_normaliser, values, documents = _pad_to_chunks(log_normaliser, values, documents)
    chunked, values, chunked_documents = _chunked(log_normaliser, values, documents)
    local = _reverse_chunk(chunked, values, chunked_documents)
    starts = None if documents is None else documents[..., ::CHUNK]
    first = chunked[..., 0]
    carried = _reverse_scan(first, local[..., 0, :], starts)

    # Chunk c inherits R at the first token of chunk c + 1, decayed from there to each of its own tokens.
    decay = (chunked[..., :-1, :] - first[..., 1:, None]).clamp_(max=0).exp_()
    if documents is not None:
        assert starts is not None
        decay = decay * (documents.unflatten(-1, (-1, CHUNK))[..., :-1, :] == starts[..., 1:, None])
    local[..., :-1, :, :].addcmul_(decay[..., None], carried[..., 1:, None, :])
    return local.flatten(-3, -2)[..., :length, :]


def _reverse_chunk(log_normaliser: Tensor, values: Tensor, documents: Tensor | None) -> Tensor:
    length = log_normaliser.shape[-1]
    decay = log_normaliser[..., :, None] - log_normaliser[..., None, :]  # [i, j] = n_i - n_j
    decay = decay.neg_().masked_fill_(_hidden(length, log_normaliser, documents), -math.inf).exp_()
    return decay.transpose(-1, -2) @ values


def _hidden(length: int, like: Tensor, documents: Tensor | None) -> Tensor:
    hidden = torch.ones(length, length, dtype=torch.bool, device=like.device).triu(1)
    if documents is None:
        return hidden
    return hidden | (documents[..., :, None] != documents[..., None, :])


def _pad_to_chunks(scores: Tensor, values: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Padding lies after every real token: causal mixing never reads it, and in reverse its values are zero."""
    missing = -scores.shape[-1] % CHUNK
    if not missing:
        return scores, values, documents
    scores = torch.cat([scores, scores[..., -1:].expand(*scores.shape[:-1], missing)], dim=-1)
    values = pad(values, (0, 0, 0, missing))
    if documents is not None:
        documents = torch.cat([documents, documents[..., -1:].expand(*documents.shape[:-1], missing)], dim=-1)
    return scores, values, documents


def _chunked(scores: Tensor, values: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    chunks = (-1, CHUNK)
    return (
        scores.unflatten(-1, chunks),
        values.unflatten(-2, chunks),
        None if documents is None else documents.unflatten(-1, chunks),
    )
