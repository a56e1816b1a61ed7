"""The programs of :mod:`deconattn.ops.kernels.prefix_attention`, which says what they compute and why so.

A program owns one segment of one head and walks its blocks of BLOCK tokens, forward or backward. Tensors [R, heads, L,
head_dim] come as a pointer and their strides, the last of which is 1; all gradients have the same. Scores, log-sum-exps
(lses) and deltas are fp32 [R, heads, L], summaries fp32 [R, heads, segments] and [R, heads, segments, head_dim];
head_dim is padded with zeros to WIDTH channels. Positions are 32-bit, offsets of rows, heads and blocks 64-bit.
`documents` is int64 [R, L] or None. Scores and log-sum-exps are in base 2.

What a block's sums need of its other tokens goes through tensor cores or scans of [BLOCK] vectors, never through
reductions of tiles over tokens: those would cost more than all the rest. So the carried sum of values is held once
in every row of a tile, as a product of matrices leaves it.
"""

# mypy: disable-error-code="no-untyped-def"
import math

import triton
import triton.language as tl

from deconattn.ops.kernels.products import dot

LOG2E = tl.constexpr(math.log2(math.e))
LOWEST = tl.constexpr(-1e38)
"""The largest score of no tokens: below every score, and finite, so that differences with it are."""
NEVER = tl.constexpr(float("-inf"))
"""The exponent of a weight that is zero."""
SUMMARIES = tl.constexpr(16)
"""Segments whose summaries are read at once."""


@triton.jit
def _place(heads, segments):
    """Row (64-bit), head and segment of this program: neighbours in memory run side by side."""
    program = tl.program_id(0)
    return tl.cast(program // heads // segments, tl.int64), program % heads, program // heads % segments


@triton.jit
def _of_head(row, head, strides, index, WIDTH: tl.constexpr):
    """Begin of a head and its stride from token to token, both 64-bit, and offsets within a block of tokens."""
    begin = row * strides[0] + tl.cast(head, tl.int64) * strides[1]
    return begin, tl.cast(strides[2], tl.int64), index[:, None] * strides[2] + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _exists(tokens, end, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """[tokens, WIDTH]: tokens before `end`, channels of the head."""
    exists = (tokens < end)[:, None]
    if HEAD_DIM < WIDTH:
        exists = exists & (tl.arange(0, WIDTH) < HEAD_DIM)[None, :]
    return exists


@triton.jit
def _at(vector, index):
    """One element of a vector."""
    return tl.sum(tl.where(tl.arange(0, vector.shape[0]) == index, vector, 0), axis=0)


@triton.jit
def _every_row(weights, tile):
    """sum_j weights_j tile_j, in every row of a tile; as an operand of `_dot`."""
    return tl.broadcast_to(weights[None, :], [weights.shape[0], weights.shape[0]]).to(tile.dtype)


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)). The reciprocal as a root squared: one instruction and a product, where a division is six."""
    root = tl.rsqrt(1 + tl.exp2(x * -LOG2E))
    return root * root


@triton.jit
def _scores(q, k, scale):
    q = q.to(tl.float32)
    return tl.sum(q * _sigmoid(q) * k.to(tl.float32), axis=1) * (scale * LOG2E)


@triton.jit
def _join(max_score, weight, document, later_max, later_weight, later_document):
    """Peak and weight of two neighbouring spans, of the document in which the later one ends."""
    max_score = tl.where(document == later_document, max_score, LOWEST)
    top = tl.maximum(max_score, later_max)
    return top, weight * tl.exp2(max_score - top) + later_weight * tl.exp2(later_max - top), later_document


@triton.jit
def _join_back(later_lse, later_sum, later_document, lse, total, document):
    """The decaying sum of two neighbouring spans at the first token of the earlier one, which comes second."""
    decay = tl.where(document == later_document, tl.minimum(lse - later_lse, 0), NEVER)
    return lse, total + tl.exp2(decay) * later_sum, document


@triton.jit
def summary_kernel(
    queries, keys, values, documents, scores, max_scores, weights, sums,
    q_strides, k_strides, v_strides, heads, group, length, segments, segment_length, scale,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Scores of a segment, and the largest score, weight and sum of values of the document that it ends in."""
    row, head, segment = _place(heads, segments)
    line = row * heads + head
    index = tl.arange(0, BLOCK)
    q_begin, q_step, q_offsets = _of_head(row, head, q_strides, index, WIDTH)
    k_begin, k_step, k_offsets = _of_head(row, head // group, k_strides, index, WIDTH)
    v_begin, v_step, v_offsets = _of_head(row, head // group, v_strides, index, WIDTH)
    first = segment * segment_length
    end = tl.minimum(first + segment_length, length)
    if documents is not None:
        documents += row * length
        document = tl.load(documents + end - 1)
    # Nobody comes after the last segment: its values are not read.
    v_end = tl.where(segment < segments - 1, end, first)

    max_score = tl.full([], LOWEST, tl.float32)
    weight = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK, WIDTH], tl.float32)
    # From the end, so that the values that `forward_kernel` reads first are the last that the L2 cache has seen.
    blocks = tl.cdiv(end - first, BLOCK)
    for block in tl.range(0, blocks, num_stages=STAGES):
        start = first + (blocks - 1 - block) * BLOCK
        tokens = start + index
        exists = _exists(tokens, end, HEAD_DIM, WIDTH)
        q = tl.load(queries + q_begin + start * q_step + q_offsets, mask=exists, other=0.0)
        k = tl.load(keys + k_begin + start * k_step + k_offsets, mask=exists, other=0.0)
        v = tl.load(
            values + v_begin + start * v_step + v_offsets, mask=_exists(tokens, v_end, HEAD_DIM, WIDTH), other=0.0
        )
        s = _scores(q, k, scale)
        tl.store(scores + line * length + tokens, s, mask=tokens < end)
        counts = tokens < end
        if documents is not None:
            counts = counts & (tl.load(documents + tokens, mask=counts, other=0) == document)
        top = tl.maximum(max_score, tl.max(tl.where(counts, s, LOWEST), axis=0))
        decay = tl.exp2(max_score - top)
        w = tl.exp2(tl.where(counts, s - top, NEVER))
        weight = weight * decay + w
        total = total * decay + w[:, None] * v.to(tl.float32)
        max_score = top

    slot = line * segments + segment
    channels = tl.arange(0, WIDTH)
    tl.store(max_scores + slot, max_score)
    tl.store(weights + slot, tl.sum(weight, axis=0))
    tl.store(sums + slot * HEAD_DIM + channels, tl.sum(total, axis=0), mask=channels < HEAD_DIM)


@triton.jit
def _inherit(
    documents, document, max_scores, weights, sums, segment, segment_length,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Peak, weight and sum of values of `document` in all segments before this one."""
    channels = tl.arange(0, WIDTH)
    max_score = tl.full([], LOWEST, tl.float32)
    weight = tl.zeros([], tl.float32)
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(0, segment, SUMMARIES):
        earlier = start + tl.arange(0, SUMMARIES)
        counts = earlier < segment
        if documents is not None:
            ends = tl.load(documents + (earlier + 1) * segment_length - 1, mask=counts, other=0)
            counts = counts & (ends == document)
        their_max = tl.load(max_scores + earlier, mask=counts, other=LOWEST)
        their_weight = tl.load(weights + earlier, mask=counts, other=0.0)
        exists = counts[:, None] & (channels < HEAD_DIM)[None, :]
        their_sum = tl.load(sums + earlier[:, None] * HEAD_DIM + channels[None, :], mask=exists, other=0.0)
        top = tl.maximum(max_score, tl.max(their_max, axis=0))
        decay, w = tl.exp2(max_score - top), tl.exp2(their_max - top)
        weight = weight * decay + tl.sum(w * their_weight, axis=0)
        total = total * decay + tl.sum(w[:, None] * their_sum, axis=0)
        max_score = top
    return max_score, weight, total


@triton.jit
def forward_kernel(
    queries, keys, values, documents, scores, lses, output, max_scores, weights, sums,
    q_strides, k_strides, v_strides, o_strides, heads, group, length, segments, segment_length, scale,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exps of a segment; scores too, unless there are summaries and with them scores."""
    row, head, segment = _place(heads, segments)
    line = row * heads + head
    index = tl.arange(0, BLOCK)
    q_begin, q_step, q_offsets = _of_head(row, head, q_strides, index, WIDTH)
    k_begin, k_step, k_offsets = _of_head(row, head // group, k_strides, index, WIDTH)
    v_begin, v_step, v_offsets = _of_head(row, head // group, v_strides, index, WIDTH)
    o_begin, o_step, o_offsets = _of_head(row, head, o_strides, index, WIDTH)
    first = segment * segment_length
    end = tl.minimum(first + segment_length, length)

    document = tl.zeros([], tl.int64)
    if documents is not None:
        documents += row * length
        document = tl.load(documents + tl.maximum(first - 1, 0))
    max_score = tl.full([], LOWEST, tl.float32)
    weight = tl.zeros([], tl.float32)
    total = tl.zeros([BLOCK, WIDTH], tl.float32)
    if max_scores is not None:
        slots = line * segments
        max_score, weight, inherited = _inherit(
            documents, document, max_scores + slots, weights + slots, sums + slots * HEAD_DIM, segment, segment_length,
            HEAD_DIM, WIDTH,
        )  # fmt: skip
        total += inherited[None, :]

    for start in tl.range(first, end, BLOCK, num_stages=STAGES):
        tokens = start + index
        exists = _exists(tokens, end, HEAD_DIM, WIDTH)
        v = tl.load(values + v_begin + start * v_step + v_offsets, mask=exists, other=0.0)
        if max_scores is not None:
            s = tl.load(scores + line * length + tokens, mask=tokens < end, other=0.0)
        else:
            q = tl.load(queries + q_begin + start * q_step + q_offsets, mask=exists, other=0.0)
            k = tl.load(keys + k_begin + start * k_step + k_offsets, mask=exists, other=0.0)
            s = _scores(q, k, scale)
            tl.store(scores + line * length + tokens, s, mask=tokens < end)
        ids = tl.zeros([BLOCK], tl.int64)
        visible = index[:, None] >= index[None, :]
        if documents is not None:
            ids = tl.load(documents + tokens, mask=tokens < end, other=0)
            visible = visible & (ids[:, None] == ids[None, :])

        before = tl.where(ids == document, max_score, LOWEST)
        m, z, _ = tl.associative_scan((s, tl.full([BLOCK], 1.0, tl.float32), ids), 0, _join)
        m, z, _ = _join(max_score, weight, document, m, z, ids)
        alpha = tl.exp2(before - m)
        p = tl.exp2(tl.where(visible, s[None, :] - m[:, None], NEVER))
        mixed = dot(p.to(v.dtype), v, total * alpha[:, None]) * (1 / z)[:, None]
        tl.store(lses + line * length + tokens, m + tl.log2(z), mask=tokens < end)
        tl.store(output + o_begin + start * o_step + o_offsets, mixed, mask=exists)

        # The last token's sums are the next block's inheritance.
        max_score, weight, document = _at(m, BLOCK - 1), _at(z, BLOCK - 1), _at(ids, BLOCK - 1)
        w = tl.exp2(tl.where(ids == document, s - max_score, NEVER))
        total = dot(_every_row(w, v), v, total * _at(alpha, BLOCK - 1))


@triton.jit
def summary_back_kernel(
    grads, output, documents, lses, deltas, sums, delta_sums,
    g_strides, o_strides, heads, length, segments, segment_length,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Deltas do_i . o_i of a segment, and the sums R of do and of deltas at its first token."""
    row, head, segment = _place(heads, segments)
    line = row * heads + head
    index = tl.arange(0, BLOCK)
    g_begin, g_step, g_offsets = _of_head(row, head, g_strides, index, WIDTH)
    o_begin, o_step, o_offsets = _of_head(row, head, o_strides, index, WIDTH)
    first = segment * segment_length
    end = tl.minimum(first + segment_length, length)
    lse = tl.load(lses + line * length + first)
    if documents is not None:
        documents += row * length
        document = tl.load(documents + first)

    total = tl.zeros([BLOCK, WIDTH], tl.float32)
    delta = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(first, end, BLOCK, num_stages=STAGES):
        tokens = start + index
        exists = _exists(tokens, end, HEAD_DIM, WIDTH)
        g = tl.load(grads + g_begin + start * g_step + g_offsets, mask=exists, other=0.0).to(tl.float32)
        o = tl.load(output + o_begin + start * o_step + o_offsets, mask=exists, other=0.0).to(tl.float32)
        n = tl.load(lses + line * length + tokens, mask=tokens < end, other=0.0)
        c = tl.sum(g * o, axis=1)
        tl.store(deltas + line * length + tokens, c, mask=tokens < end)
        counts = tokens < end
        if documents is not None:
            counts = counts & (tl.load(documents + tokens, mask=counts, other=0) == document)
        w = tl.exp2(tl.where(counts, tl.minimum(lse - n, 0), NEVER))
        total += w[:, None] * g
        delta += w * c

    slot = line * segments + segment
    channels = tl.arange(0, WIDTH)
    tl.store(delta_sums + slot, tl.sum(delta, axis=0))
    tl.store(sums + slot * HEAD_DIM + channels, tl.sum(total, axis=0), mask=channels < HEAD_DIM)


@triton.jit
def _inherit_back(
    documents, document, lses, lse, sums, delta_sums, segment, segments, segment_length,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """R of do and of deltas at the first token after this segment, which has `document` and `lse`."""
    channels = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.float32)
    delta = tl.zeros([], tl.float32)
    for start in range(segment + 1, segments, SUMMARIES):
        later = start + tl.arange(0, SUMMARIES)
        counts = later < segments
        if documents is not None:
            counts = counts & (tl.load(documents + later * segment_length, mask=counts, other=0) == document)
        n = tl.load(lses + later * segment_length, mask=counts, other=0.0)
        w = tl.exp2(tl.where(counts, tl.minimum(lse - n, 0), NEVER))
        exists = counts[:, None] & (channels < HEAD_DIM)[None, :]
        their_sum = tl.load(sums + later[:, None] * HEAD_DIM + channels[None, :], mask=exists, other=0.0)
        total += tl.sum(w[:, None] * their_sum, axis=0)
        delta += tl.sum(w * tl.load(delta_sums + later, mask=counts, other=0.0), axis=0)
    return total, delta


@triton.jit
def backward_kernel(
    grads, queries, keys, values, output, documents, scores, lses, deltas, sums, delta_sums,
    grad_queries, grad_keys, grad_values, g_strides, q_strides, k_strides, v_strides, o_strides, d_strides,
    heads, group, length, segments, segment_length, scale,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of a segment, of keys and values for this query head alone; deltas are read where there are any."""
    row, head, segment = _place(heads, segments)
    line = row * heads + head
    index = BLOCK - 1 - tl.arange(0, BLOCK)  # the last token comes first, as in the walk over blocks
    g_begin, g_step, g_offsets = _of_head(row, head, g_strides, index, WIDTH)
    q_begin, q_step, q_offsets = _of_head(row, head, q_strides, index, WIDTH)
    k_begin, k_step, k_offsets = _of_head(row, head // group, k_strides, index, WIDTH)
    v_begin, v_step, v_offsets = _of_head(row, head // group, v_strides, index, WIDTH)
    o_begin, o_step, o_offsets = _of_head(row, head, o_strides, index, WIDTH)
    d_begin, d_step, d_offsets = _of_head(row, head, d_strides, index, WIDTH)
    scores += line * length
    lses += line * length
    first = segment * segment_length
    end = tl.minimum(first + segment_length, length)
    blocks = tl.cdiv(end - first, BLOCK)

    # Document, log-sum-exp and sums of the first token after the segment.
    document = tl.zeros([], tl.int64)
    lse = tl.load(lses + tl.minimum(end, length - 1))
    if documents is not None:
        documents += row * length
        document = tl.load(documents + tl.minimum(end, length - 1))
    total = tl.zeros([BLOCK, WIDTH], tl.float32)
    delta = tl.zeros([], tl.float32)
    if deltas is not None:
        slots = line * segments
        inherited, delta = _inherit_back(
            documents, document, lses, lse, sums + slots * HEAD_DIM, delta_sums + slots,
            segment, segments, segment_length, HEAD_DIM, WIDTH,
        )  # fmt: skip
        total += inherited[None, :]

    for block in tl.range(0, blocks, num_stages=STAGES):
        start = first + (blocks - 1 - block) * BLOCK
        tokens = start + index
        exists = _exists(tokens, end, HEAD_DIM, WIDTH)
        g = tl.load(grads + g_begin + start * g_step + g_offsets, mask=exists, other=0.0)
        q = tl.load(queries + q_begin + start * q_step + q_offsets, mask=exists, other=0.0).to(tl.float32)
        k = tl.load(keys + k_begin + start * k_step + k_offsets, mask=exists, other=0.0).to(tl.float32)
        v = tl.load(values + v_begin + start * v_step + v_offsets, mask=exists, other=0.0).to(tl.float32)
        s = tl.load(scores + tokens, mask=tokens < end, other=0.0)
        n = tl.load(lses + tokens, mask=tokens < end, other=0.0)
        if deltas is not None:
            c = tl.load(deltas + line * length + tokens, mask=tokens < end, other=0.0)
        else:
            o = tl.load(output + o_begin + start * o_step + o_offsets, mask=exists, other=0.0).to(tl.float32)
            c = tl.sum(g.to(tl.float32) * o, axis=1)
        ids = tl.zeros([BLOCK], tl.int64)
        visible = index[:, None] <= index[None, :]
        if documents is not None:
            ids = tl.load(documents + tokens, mask=tokens < end, other=0)
            visible = visible & (ids[:, None] == ids[None, :])

        decay = tl.exp2(tl.where(ids == document, tl.minimum(n - lse, 0), NEVER))
        p = tl.exp2(tl.where(visible, tl.minimum(n[:, None] - n[None, :], 0), NEVER))
        _, c, _ = tl.associative_scan((n, c, ids), 0, _join_back)
        c += decay * delta
        a = tl.exp2(tl.minimum(s - n, 0))
        gv = dot(p.to(g.dtype), g, total * decay[:, None]) * a[:, None]
        gs = (tl.sum(gv * v, axis=1) - a * c) * scale
        sigmoid = _sigmoid(q)
        silu = q * sigmoid
        gk = gs[:, None] * silu
        gq = gs[:, None] * k * (sigmoid + silu - silu * sigmoid)
        d_block = d_begin + start * d_step + d_offsets
        tl.store(grad_queries + d_block, gq, mask=exists)
        tl.store(grad_keys + d_block, gk, mask=exists)
        tl.store(grad_values + d_block, gv, mask=exists)

        # The first token's sums are what the block before inherits.
        lse, document, delta = _at(n, BLOCK - 1), _at(ids, BLOCK - 1), _at(c, BLOCK - 1)
        w = tl.exp2(tl.where(ids == document, tl.minimum(lse - n, 0), NEVER))
        total = dot(_every_row(w, g), g, total * _at(decay, BLOCK - 1))
