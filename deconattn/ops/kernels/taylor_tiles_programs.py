"""The programs of :mod:`deconattn.ops.kernels.taylor_tiles`, which says what they compute and why so.

A program owns a block of queries (or of keys) of one head and visits the tiles of the map that its documents leave.
Tensors [R, heads, L, head_dim] come as a pointer and their strides, the last of which is 1; head_dim is padded with
zeros to WIDTH columns. Positions are 32-bit, offsets of rows, heads and blocks 64-bit.
"""

# mypy: disable-error-code="no-untyped-def"

import math

import triton
import triton.language as tl

from deconattn.ops.kernels.products import dot

SQRT_HALF = tl.constexpr(math.sqrt(0.5))
SQRT_TWO = tl.constexpr(math.sqrt(2.0))
# The forward pass carries weights times 2^-12, t times 2^-6: the same digits, and in fp16 the least weight, 1/2, is
# no subnormal and none overflows before scores of 2e4. The factor cancels in the average.
DOWN = tl.constexpr(2.0**-12)
ROOT_DOWN = tl.constexpr(2.0**-6)


@triton.jit
def _head(pointer, row, head, strides):
    """The first token of a head. In 64 bits, because a tensor may have more than 2^31 elements."""
    return pointer + tl.cast(row, tl.int64) * strides[0] + tl.cast(head, tl.int64) * strides[1]


@triton.jit
def _tile(head, first, length, strides, COUNT: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Pointers [COUNT, WIDTH] to the tokens from `first`, and which of them exist."""
    tokens = tl.arange(0, COUNT)
    columns = tl.arange(0, WIDTH)
    offsets = tokens[:, None] * strides[2] + columns[None, :]  # the same for every tile
    exists = (tokens < length - first)[:, None] & (columns < HEAD_DIM)[None, :]
    return (head + tl.cast(first, tl.int64) * strides[2]) + offsets, exists


@triton.jit
def _load(
    head, first, length, strides, COUNT: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr, EDGE: tl.constexpr
):
    """[COUNT, WIDTH] of the tokens from `first`, zero outside; without EDGE all of the tokens exist."""
    pointers, exists = _tile(head, first, length, strides, COUNT, WIDTH, HEAD_DIM)
    if EDGE:
        return tl.load(pointers, mask=exists, other=0.0)
    if WIDTH != HEAD_DIM:
        return tl.load(pointers, mask=(tl.arange(0, WIDTH) < HEAD_DIM)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def _store(head, first, length, strides, tile, COUNT: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    pointers, exists = _tile(head, first, length, strides, COUNT, WIDTH, HEAD_DIM)
    tl.store(pointers, tile.to(head.dtype.element_ty), mask=exists)


@triton.jit
def _own_head(heads, blocks):
    """(row, head, block) of this program: neighbours share a head, whose tensors they find in the L2 cache."""
    program = tl.program_id(0)
    return program // blocks // heads, program // blocks % heads, program % blocks


@triton.jit
def _visible_keys(starts, row, first, length, QUERIES: tl.constexpr, KEYS: tl.constexpr, DOCUMENTS: tl.constexpr):
    """The keys that the block of queries from `first` sees: (start [QUERIES], left, full_start, full_stop, stop).

    Query i sees keys start[i] .. i. Tiles in [full_start, full_stop) are seen by the whole block; tiles in
    [left, full_start) and [full_stop, stop) in part.
    """
    queries = first + tl.arange(0, QUERIES)
    full_stop = first // KEYS * KEYS
    stop = tl.minimum(first + QUERIES, length)
    if DOCUMENTS:
        starts += row.to(tl.int64) * length
        start = tl.load(starts + queries, mask=queries < length, other=0)
        left = tl.load(starts + first) // KEYS * KEYS
        full_start = tl.minimum(tl.cdiv(tl.load(starts + stop - 1), KEYS) * KEYS, full_stop)
    else:
        start = tl.zeros([QUERIES], tl.int32)
        left = 0
        full_start = 0
    return start, left, full_start, full_stop, stop


@triton.jit
def _seeing_queries(ends, row, first, length, QUERIES: tl.constexpr, KEYS: tl.constexpr, DOCUMENTS: tl.constexpr):
    """The queries that see the block of keys from `first`: (end [KEYS], left, full_start, full_stop, stop).

    Key j is seen by queries j .. end[j] - 1; tiles as in `_visible_keys`.
    """
    keys = first + tl.arange(0, KEYS)
    left = first // QUERIES * QUERIES
    full_start = tl.cdiv(first + KEYS - 1, QUERIES) * QUERIES
    if DOCUMENTS:
        ends += row.to(tl.int64) * length
        end = tl.load(ends + keys, mask=keys < length, other=0)
        nearest = tl.load(ends + first)
        stop = tl.load(ends + tl.minimum(first + KEYS, length) - 1)
    else:
        end = tl.zeros([KEYS], tl.int32) + length
        nearest = length
        stop = length
    return end, left, full_start, tl.maximum(nearest // QUERIES * QUERIES, full_start), stop


@triton.jit
def _skipping(first, full_start, full_stop):
    """Position of a loop over the partly seen tiles: to the right of the full tiles once it has reached them."""
    return first + tl.where(first >= full_start, full_stop - full_start, 0)


@triton.jit
def _mix(
    sums,
    total,
    queries,
    keys,
    values,
    first,
    query,
    start,
    slope,
    length,
    key_strides,
    value_strides,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """Adds one tile's weighted values to `sums` [QUERIES, WIDTH] and its weights to `total` [QUERIES]."""
    tile = _load(keys, first, length, key_strides, KEYS, WIDTH, HEAD_DIM, PARTIAL)
    t = dot(queries, tl.trans(tile), None) * slope + SQRT_HALF * ROOT_DOWN
    weights = t * t + 0.5 * DOWN
    if PARTIAL:
        key = tl.arange(0, KEYS)[None, :]
        weights = tl.where((key <= (query - first)[:, None]) & (key >= (start - first)[:, None]), weights, 0.0)
    total += tl.sum(weights, 1)
    tile = _load(values, first, length, value_strides, KEYS, WIDTH, HEAD_DIM, PARTIAL)
    return dot(weights.to(tile.dtype), tile, sums), total


@triton.jit
def forward_kernel(
    queries,
    keys,
    values,
    starts,
    mixed,
    shares,
    query_strides,
    key_strides,
    value_strides,
    mixed_strides,
    heads,
    group,
    length,
    scale,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    blocks = tl.cdiv(length, QUERIES)
    row, head, block = _own_head(heads, blocks)
    first = (blocks - 1 - block) * QUERIES  # the longest loops first
    queries = _head(queries, row, head, query_strides)
    keys = _head(keys, row, head // group, key_strides)
    values = _head(values, row, head // group, value_strides)

    query = first + tl.arange(0, QUERIES)
    start, left, full_start, full_stop, stop = _visible_keys(starts, row, first, length, QUERIES, KEYS, DOCUMENTS)
    tile = _load(queries, first, length, query_strides, QUERIES, WIDTH, HEAD_DIM, True)
    slope = scale * SQRT_HALF * ROOT_DOWN
    sums = tl.zeros([QUERIES, WIDTH], tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for at in range(full_start, full_stop, KEYS):
        sums, total = _mix(
            sums, total, tile, keys, values, at, query, start, slope,
            length, key_strides, value_strides, HEAD_DIM, WIDTH, KEYS, False,
        )  # fmt: skip
    for at in range(left, stop - (full_stop - full_start), max(KEYS // 2, 16)):
        sums, total = _mix(
            sums, total, tile, keys, values, _skipping(at, full_start, full_stop), query, start, slope,
            length, key_strides, value_strides, HEAD_DIM, WIDTH, max(KEYS // 2, 16), True,
        )  # fmt: skip

    share = 1.0 / total
    mixed = _head(mixed, row, head, mixed_strides)
    _store(mixed, first, length, mixed_strides, sums * share[:, None], QUERIES, WIDTH, HEAD_DIM)
    shares += (row.to(tl.int64) * heads + head) * length
    tl.store(shares + query, share * DOWN, mask=query < length)


@triton.jit
def _differentiate_queries(
    sums,
    queries,
    grad,
    delta,
    keys,
    values,
    first,
    query,
    start,
    slope,
    length,
    key_strides,
    value_strides,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """Adds one tile's z_i ds_ij k_j, but for a constant, to `sums` [QUERIES, WIDTH]."""
    tile = _load(keys, first, length, key_strides, KEYS, WIDTH, HEAD_DIM, PARTIAL)
    value_tile = _load(values, first, length, value_strides, KEYS, WIDTH, HEAD_DIM, PARTIAL)
    t = dot(queries, tl.trans(tile), None) * slope + SQRT_HALF
    grad_scores = (dot(grad, tl.trans(value_tile), None) - delta[:, None]) * t
    if PARTIAL:
        key = tl.arange(0, KEYS)[None, :]
        visible = (key <= (query - first)[:, None]) & (key >= (start - first)[:, None])
        grad_scores = tl.where(visible, grad_scores, 0.0)
    return dot(grad_scores.to(tile.dtype), tile, sums)


@triton.jit
def by_queries_kernel(
    queries,
    keys,
    values,
    starts,
    grad,
    mixed,
    shares,
    deltas,
    grad_queries,
    query_strides,
    key_strides,
    value_strides,
    grad_strides,
    mixed_strides,
    grad_query_strides,
    heads,
    group,
    length,
    scale,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    """dq of a block of queries, and c for the kernel by keys."""
    blocks = tl.cdiv(length, QUERIES)
    row, head, block = _own_head(heads, blocks)
    first = (blocks - 1 - block) * QUERIES
    queries = _head(queries, row, head, query_strides)
    keys = _head(keys, row, head // group, key_strides)
    values = _head(values, row, head // group, value_strides)
    grad = _head(grad, row, head, grad_strides)
    mixed = _head(mixed, row, head, mixed_strides)

    query = first + tl.arange(0, QUERIES)
    grad_tile = _load(grad, first, length, grad_strides, QUERIES, WIDTH, HEAD_DIM, True)
    tile = _load(mixed, first, length, mixed_strides, QUERIES, WIDTH, HEAD_DIM, True)
    delta = tl.sum(grad_tile.to(tl.float32) * tile.to(tl.float32), 1)
    before = (row.to(tl.int64) * heads + head) * length
    share = tl.load(shares + before + query, mask=query < length, other=0.0)
    tl.store(deltas + before + query, delta * share, mask=query < length)

    start, left, full_start, full_stop, stop = _visible_keys(starts, row, first, length, QUERIES, KEYS, DOCUMENTS)
    tile = _load(queries, first, length, query_strides, QUERIES, WIDTH, HEAD_DIM, True)
    slope = scale * SQRT_HALF
    sums = tl.zeros([QUERIES, WIDTH], tl.float32)
    for at in range(full_start, full_stop, KEYS):
        sums = _differentiate_queries(
            sums, tile, grad_tile, delta, keys, values, at, query, start, slope,
            length, key_strides, value_strides, HEAD_DIM, WIDTH, KEYS, False,
        )  # fmt: skip
    for at in range(left, stop - (full_stop - full_start), max(KEYS // 2, 16)):
        sums = _differentiate_queries(
            sums, tile, grad_tile, delta, keys, values, _skipping(at, full_start, full_stop), query, start, slope,
            length, key_strides, value_strides, HEAD_DIM, WIDTH, max(KEYS // 2, 16), True,
        )  # fmt: skip

    grad_queries = _head(grad_queries, row, head, grad_query_strides)
    sums *= (share * (scale * SQRT_TWO))[:, None]
    _store(grad_queries, first, length, grad_query_strides, sums, QUERIES, WIDTH, HEAD_DIM)


@triton.jit
def _differentiate_keys(
    grad_keys,
    grad_values,
    keys,
    values,
    queries,
    grad,
    shares,
    deltas,
    first,
    key,
    end,
    slope,
    length,
    query_strides,
    grad_strides,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """Adds one tile, transposed, to dk, but for a constant, and to dv, both [KEYS, WIDTH]."""
    query = tl.arange(0, QUERIES)
    tile = _load(queries, first, length, query_strides, QUERIES, WIDTH, HEAD_DIM, PARTIAL)
    grad_tile = _load(grad, first, length, grad_strides, QUERIES, WIDTH, HEAD_DIM, PARTIAL)
    if PARTIAL:
        share = tl.load(shares + first + query, mask=query < length - first, other=0.0)[None, :]
        delta = tl.load(deltas + first + query, mask=query < length - first, other=0.0)[None, :]
    else:
        share = tl.load(shares + first + query)[None, :]
        delta = tl.load(deltas + first + query)[None, :]
    t = dot(keys, tl.trans(tile), None) * slope + SQRT_HALF
    weights = (t * t + 0.5) * share
    grad_scores = (dot(values, tl.trans(grad_tile), None) * share - delta) * t
    if PARTIAL:
        visible = (query[None, :] >= (key - first)[:, None]) & (query[None, :] < (end - first)[:, None])
        weights = tl.where(visible, weights, 0.0)
        grad_scores = tl.where(visible, grad_scores, 0.0)
    grad_values = dot(weights.to(grad_tile.dtype), grad_tile, grad_values)
    return dot(grad_scores.to(tile.dtype), tile, grad_keys), grad_values


@triton.jit
def by_keys_kernel(
    queries,
    keys,
    values,
    ends,
    grad,
    shares,
    deltas,
    grad_keys,
    grad_values,
    query_strides,
    key_strides,
    value_strides,
    grad_strides,
    grad_key_strides,
    grad_value_strides,
    key_value_heads,
    group,
    length,
    scale,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    """dk and dv of a block of keys, from all the query heads that read it."""
    row, head, block = _own_head(key_value_heads, tl.cdiv(length, KEYS))
    first = block * KEYS
    keys = _head(keys, row, head, key_strides)
    values = _head(values, row, head, value_strides)

    key = first + tl.arange(0, KEYS)
    tile = _load(keys, first, length, key_strides, KEYS, WIDTH, HEAD_DIM, True)
    value_tile = _load(values, first, length, value_strides, KEYS, WIDTH, HEAD_DIM, True)
    end, left, full_start, full_stop, stop = _seeing_queries(ends, row, first, length, QUERIES, KEYS, DOCUMENTS)
    slope = scale * SQRT_HALF
    key_sums = tl.zeros([KEYS, WIDTH], tl.float32)
    value_sums = tl.zeros([KEYS, WIDTH], tl.float32)
    queries = _head(queries, row, head * group, query_strides)
    grad = _head(grad, row, head * group, grad_strides)
    before = (row.to(tl.int64) * key_value_heads + head) * group * length
    shares += before
    deltas += before
    for _ in range(group):
        for at in range(left, stop - (full_stop - full_start), max(QUERIES // 2, 16)):
            key_sums, value_sums = _differentiate_keys(
                key_sums, value_sums, tile, value_tile, queries, grad, shares, deltas,
                _skipping(at, full_start, full_stop), key, end, slope,
                length, query_strides, grad_strides, HEAD_DIM, WIDTH, max(QUERIES // 2, 16), True,
            )  # fmt: skip
        for at in range(full_start, full_stop, QUERIES):
            key_sums, value_sums = _differentiate_keys(
                key_sums, value_sums, tile, value_tile, queries, grad, shares, deltas, at, key, end, slope,
                length, query_strides, grad_strides, HEAD_DIM, WIDTH, QUERIES, False,
            )  # fmt: skip
        queries += query_strides[1]
        grad += grad_strides[1]
        shares += length
        deltas += length

    key_sums *= scale * SQRT_TWO
    grad_keys = _head(grad_keys, row, head, grad_key_strides)
    _store(grad_keys, first, length, grad_key_strides, key_sums, KEYS, WIDTH, HEAD_DIM)
    grad_values = _head(grad_values, row, head, grad_value_strides)
    _store(grad_values, first, length, grad_value_strides, value_sums, KEYS, WIDTH, HEAD_DIM)
