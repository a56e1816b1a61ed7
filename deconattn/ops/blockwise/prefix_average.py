"""Running softmax average over a sequence, one score a token (nonapproximate), linear in L.

o_i = sum_{j<=i} exp(s_j) v_j / sum_{j<=i} exp(s_j). A (log-weight, mean) pair summarises any span and two
spans merge by their log-weights, so the sequence is cut into chunks: each chunk mixes within itself by a
[CHUNK, CHUNK] softmax, the chunks' summaries are scanned by the same function, and the two are merged.
No exponent is ever positive, so scores of any size are safe; scores and log-weights are fp32 (fp64 for fp64 inputs). A
log-weight is one number, so tied scores are normalised to its rounding: 4e-5 relative at |s| = 1e3, 8e-4 at 1e4.

The backward pass keeps s, v, o and the running log-sum-exp n_i only. With A_ij = exp(s_j - n_i):
    dv_j = sum_{i>=j} A_ij do_i,    ds_j = v_j . dv_j - sum_{i>=j} A_ij (do_i . o_i),
again a [CHUNK, CHUNK] product within a chunk, and from later chunks exp(s_j - n_f) R_f, f the first token of the
next chunk and R_f = sum_{i>=f} exp(n_f - n_i) x_i, a reverse scan whose decays are at most one because n never
falls within a document.

Tokens that follow others, of whose average M and log-weight N they know, count them in o_i and n_i. Then the same
formulas are the gradients of s and v, and with B_i = exp(N - n_i)
    dM = sum_i B_i do_i,    dN = M . dM - sum_i B_i (do_i . o_i),    both over the first token's document.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, silu

from deconattn.ops.blockwise.by_hand import Context, Passes
from deconattn.ops.blockwise.heads import empty_heads, row_groups, summed_per_key_head
from deconattn.ops.compiling import outside_graphs
from deconattn.ops.precision import at_least_fp32
from deconattn.ops.reference import per_query_head

CHUNK = 32


@outside_graphs
def prefix_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """:func:`deconattn.ops.prefix_average.prefix_attention`."""
    return prefix_average(_TokenScores.apply(queries, keys), values, document_ids)


def passes(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Passes:
    """:func:`prefix_attention` where autograd records nothing."""
    of_scores, of_average = Context(), Context()
    scores = _TokenScores.forward(of_scores, queries, keys)
    output = _PrefixAverage.forward(of_average, scores, values, document_ids, None, None)

    def gradients(grad: Tensor) -> tuple[Tensor, ...]:
        grad_scores, grad_values, *_ = _PrefixAverage.backward(of_average, grad)
        return *_TokenScores.backward(of_scores, grad_scores), grad_values

    return Passes(output, gradients)


@outside_graphs
def prefix_average(scores: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """:func:`deconattn.ops.prefix_average.prefix_average`."""
    return _PrefixAverage.apply(scores, values, document_ids, None, None)


@outside_graphs
def token_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """:func:`deconattn.ops.prefix_scan.token_scores`."""
    return _TokenScores.apply(queries, keys)


@outside_graphs
def following_average(
    scores: Tensor, values: Tensor, average: Tensor, log_sum: Tensor, document_ids: Tensor | None = None
) -> Tensor:
    """:func:`deconattn.ops.prefix_scan.following_average`."""
    return _PrefixAverage.apply(scores, values, document_ids, average, log_sum)


class _TokenScores(torch.autograd.Function):
    """s = sum(silu(q) * k) / sqrt(head_dim) in at least fp32, keeping q and k only."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor) -> Tensor:
        ctx.save_for_backward(queries, keys)
        scores = at_least_fp32(queries).new_empty(queries.shape[:-1])
        for rows in row_groups(queries):
            products = silu(at_least_fp32(queries[rows])).mul_(per_query_head(keys[rows], queries.shape[1]))
            torch.sum(products, dim=-1, out=scores[rows])
        return scores.mul_(1 / math.sqrt(queries.shape[-1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = ctx.saved_tensors
        grad = (grad / math.sqrt(queries.shape[-1]))[..., None]
        grad_queries, grad_keys = torch.empty_like(queries), torch.empty_like(keys)
        for rows in row_groups(queries):
            precise, shared = at_least_fp32(queries[rows]), per_query_head(at_least_fp32(keys[rows]), queries.shape[1])
            grad_keys[rows] = summed_per_key_head(silu(precise).mul_(grad[rows]), keys.shape[1])
            grad_queries[rows] = torch.ops.aten.silu_backward(shared * grad[rows], precise)
        return grad_queries, grad_keys


class _PrefixAverage(torch.autograd.Function):
    """s [R, heads, L], v [R, key_value_heads, L, x], documents [R, L]; M [R, heads, x] and N [R, heads] or None."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        values: Tensor,
        document_ids: Tensor | None,
        average: Tensor | None,
        log_sum: Tensor | None,
    ) -> Tensor:
        mixed = empty_heads(values, scores.shape[1])
        lse = torch.empty_like(at_least_fp32(scores))
        for rows in row_groups(values):
            documents = None if document_ids is None else document_ids[rows, None]
            total, mean = _scan(
                at_least_fp32(scores[rows]), per_query_head(at_least_fp32(values[rows]), scores.shape[1]), documents
            )
            if average is not None and log_sum is not None:
                total, mean = _after(average[rows], log_sum[rows], total, mean, documents)
            lse[rows], mixed[rows] = total, mean
        ctx.save_for_backward(scores, values, mixed, lse, document_ids, average, log_sum)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, Tensor | None, Tensor | None]:
        scores, values, mixed, lse, document_ids, average, log_sum = ctx.saved_tensors
        grad_scores, grad_values = torch.empty_like(scores), torch.empty_like(values)
        grad_average, grad_log_sum = (None if one is None else torch.empty_like(one) for one in (average, log_sum))
        for rows in row_groups(values):
            documents = None if document_ids is None else document_ids[rows, None]
            upstream, own = at_least_fp32(grad[rows]), per_query_head(at_least_fp32(values[rows]), scores.shape[1])
            delta = torch.linalg.vecdot(upstream, at_least_fp32(mixed[rows]))[..., None]
            weighted, weighted_delta = _weighted_sums(
                at_least_fp32(scores[rows]), lse[rows], upstream, delta, documents
            )
            grad_scores[rows] = torch.linalg.vecdot(weighted, own).sub_(weighted_delta.squeeze(-1))
            grad_values[rows] = summed_per_key_head(weighted, values.shape[1])
            if grad_average is not None and grad_log_sum is not None:
                shares = _beyond(log_sum[rows], lse[rows], documents).sub_(lse[rows]).exp_()[..., None, :]
                grad_average[rows] = (shares @ upstream).squeeze(-2)
                counted = torch.linalg.vecdot(average[rows], grad_average[rows])
                grad_log_sum[rows] = counted.sub_((shares @ delta).flatten(-2).squeeze(-1))
        return grad_scores, grad_values, None, grad_average, grad_log_sum


def _after(
    average: Tensor, log_sum: Tensor, log_weight: Tensor, mean: Tensor, documents: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Count earlier tokens in what :func:`_scan` returned."""
    before = _beyond(log_sum, log_weight, documents)
    total = torch.logaddexp(log_weight, before)
    mean = mean.mul_((log_weight - total).exp_()[..., None])
    return total, mean.addcmul_(average[..., None, :], before.sub_(total).exp_()[..., None])


def _beyond(log_sum: Tensor, like: Tensor, documents: Tensor | None) -> Tensor:
    """The log-weight of earlier tokens for each of [.., L], which counts for the first one's document."""
    before = log_sum[..., None].expand_as(like)
    return before.clone() if documents is None else before.masked_fill(documents != documents[..., :1], -math.inf)


def _scan(scores: Tensor, values: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
    """Inclusive scan: log-sum-exp [.., L] and mean [.., L, x] of each prefix within its document."""
    length = scores.shape[-1]
    if length <= CHUNK:
        return _scan_chunk(scores, values, documents)
    scores, documents = _pad(scores, documents)
    log_weight, mean = _scan_chunk(*_chunked(scores, _pad_values(values), documents))
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
    weights = rows.softmax(dim=-1)
    # The largest weight of a row is exp(largest score - log-sum-exp); torch.logsumexp takes ten times longer.
    log_weight = rows.amax(dim=-1).sub_(weights.amax(dim=-1).log_())
    return log_weight, weights @ values


def _weighted_sums(
    scores: Tensor, lse: Tensor, grad: Tensor, delta: Tensor, documents: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A^T grad [.., L, x] and A^T delta [.., L, 1]."""
    length = scores.shape[-1]
    scores, documents = _pad(scores, documents)
    lse, _ = _pad(lse, None)
    scores, grad, documents = _chunked(scores, _pad_values(grad), documents)
    lse, delta, _ = _chunked(lse, _pad_values(delta), None)
    size = scores.shape[-1]
    exponents = (scores[..., None, :] - lse[..., None]).clamp_(max=0)
    weights = exponents.exp_().masked_fill_(_hidden(size, scores, documents), 0).transpose(-1, -2)
    sums, delta_sums = weights @ grad, weights @ delta
    if scores.shape[-2] > 1:
        first = lse[..., :1]
        decay = (first - lse).exp_()
        starts = None
        if documents is not None:
            starts = documents[..., 0]
            decay.masked_fill_(documents != starts[..., None], 0)
        decay = decay[..., None, :]
        summary = torch.cat([decay @ grad, decay @ delta], dim=-1).squeeze(-2)
        carried = _reverse_scan(first.squeeze(-1), summary, starts)[..., 1:, None, :]
        share = (scores[..., :-1, :] - first[..., 1:, :]).clamp_(max=0).exp_()
        if documents is not None:
            assert starts is not None
            share.masked_fill_(documents[..., :-1, :] != starts[..., 1:, None], 0)
        share = share[..., None]
        sums[..., :-1, :, :].addcmul_(share, carried[..., :-1])
        delta_sums[..., :-1, :, :].addcmul_(share, carried[..., -1:])
    return sums.flatten(-3, -2)[..., :length, :], delta_sums.flatten(-3, -2)[..., :length, :]


def _reverse_scan(lse: Tensor, values: Tensor, documents: Tensor | None) -> Tensor:
    """R_j = sum over i >= j of the same document of exp(n_j - n_i) x_i, [.., L, x]."""
    length = lse.shape[-1]
    if length <= CHUNK:
        return _reverse_chunk(lse, values, documents)
    lse, documents = _pad(lse, documents)
    chunked, values, chunked_documents = _chunked(lse, _pad_values(values), documents)
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


def _reverse_chunk(lse: Tensor, values: Tensor, documents: Tensor | None) -> Tensor:
    length = lse.shape[-1]
    decay = lse[..., :, None] - lse[..., None, :]  # [i, j] = n_i - n_j
    decay = decay.neg_().masked_fill_(_hidden(length, lse, documents), -math.inf).exp_()
    return decay.transpose(-1, -2) @ values


def _hidden(length: int, like: Tensor, documents: Tensor | None) -> Tensor:
    hidden = torch.ones(length, length, dtype=torch.bool, device=like.device).triu(1)
    if documents is None:
        return hidden
    return hidden | (documents[..., :, None] != documents[..., None, :])


def _pad(numbers: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Pad to whole chunks, after every real token: causal mixing never reads padding, in reverse it weighs zero."""
    missing = -numbers.shape[-1] % CHUNK
    if not missing:
        return numbers, documents
    numbers = torch.cat([numbers, numbers[..., -1:].expand(*numbers.shape[:-1], missing)], dim=-1)
    if documents is not None:
        documents = torch.cat([documents, documents[..., -1:].expand(*documents.shape[:-1], missing)], dim=-1)
    return numbers, documents


def _pad_values(values: Tensor) -> Tensor:
    missing = -values.shape[-2] % CHUNK
    return pad(values, (0, 0, 0, missing)) if missing else values


def _chunked(numbers: Tensor, values: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    chunks = (-1, CHUNK)
    return (
        numbers.unflatten(-1, chunks),
        values.unflatten(-2, chunks),
        None if documents is None else documents.unflatten(-1, chunks),
    )
