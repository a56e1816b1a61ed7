"""Triton programs that read the states of :mod:`.taylor_states_programs`, whose shapes and names are theirs too.

A program that reads a state sums up tiles first, in loops that are never empty, then products with the state, and
adds the lower orders last: sums that are set beside a branch or a loop, or changed between products, by something
else than a product make ptxas serialise all products (its note C7515). benchmarks/kernels/compile_matrix.py looks.
"""

# mypy: disable-error-code="no-untyped-def, import-untyped, assignment"

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

from deconattn.ops.kernels.products import dot
from deconattn.ops.kernels.taylor_states_programs import half_of, load_tile, part_of, product, store_tile, tile_of

# An argument a line would double the length of this file.
# fmt: off


@triton.jit
def scaled_products(
        total, left, columns, stride_column, inside, slabs, begin, end, WIDTH: tl.constexpr,
        STAGES: tl.constexpr
):
    """total + sum_a (x_a left) slab_a: features are made in registers, a dimension a at a time.

    `left` must come of loads made for this alone, and of constants: Triton then gives it the layout of the product's
    operand once, before the loop, and not through shared memory for each a.

    The condition, true of every a, has each wgmma end before the next one's operand is made in the same registers:
    ptxas, which may not let them meet, would otherwise make all products of the program wait (its note C7513). For
    sm_100, whose sums have a memory of their own, Triton 3.6 to 3.8 do not compile it.
    """
    WGMMA: tl.constexpr = cuda_capability_geq(9) and not cuda_capability_geq(10)
    for a in tl.range(begin, end, num_stages=STAGES):
        column = tl.load(columns + tl.cast(a, tl.int64) * stride_column, mask=inside, other=0.0)
        slab = tl.load(slabs + a * (WIDTH * WIDTH))
        total = dot(product(left, column[:, None]), slab, total)
        if WGMMA:
            total = tl.where(a < WIDTH, total, 0.0)
    return total


@triton.jit
def read_state(
        total, x, first, stride, columns, stride_column, inside, state, stop, HEAD_DIM: tl.constexpr,
        WIDTH: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr
):
    """total + 1/2 sum_ab x_a x_b state[a, b], [TILE, WIDTH d], of the tokens x of a tile that are `inside`.

    Of a in one half of the dimensions and b in the other, one order is read, and counts twice. That `left` is made of
    two loads, and not of one and weights, keeps it in registers (see `scaled_products`).
    """
    DTYPE: tl.constexpr = state.dtype.element_ty
    HALF: tl.constexpr = half_of(WIDTH)
    PART: tl.constexpr = part_of(WIDTH, DTYPE)
    index, part = tl.arange(0, WIDTH), tl.arange(0, PART)
    for FIRST in tl.static_range(0, WIDTH, PART):
        left = load_tile(x, first, stride, stop, tl.float32, HEAD_DIM, TILE, PART, FIRST)
        if HALF < WIDTH:
            left += load_tile(x, first, stride, stop, tl.float32, HEAD_DIM, TILE, PART, FIRST, HALF)
        left = (left * 0.5).to(DTYPE)
        slabs = state + ((FIRST + part)[:, None] * WIDTH + index[None, :])
        total = scaled_products(
            total, left, columns, stride_column, inside, slabs, 0, min(HALF, HEAD_DIM), WIDTH, STAGES
        )
    if HALF < WIDTH:
        UPPER: tl.constexpr = min(PART, WIDTH - HALF)
        upper = tl.arange(0, UPPER)
        for FIRST in tl.static_range(HALF, WIDTH, UPPER):
            left = load_tile(x, first, stride, stop, tl.float32, HEAD_DIM, TILE, UPPER, FIRST)
            left = (left * 0.5).to(DTYPE)
            slabs = state + ((FIRST + upper)[:, None] * WIDTH + index[None, :])
            total = scaled_products(
                total, left, columns, stride_column, inside, slabs, HALF, HEAD_DIM, WIDTH, STAGES
            )
    return total


@triton.jit
def read_gradient(
        total, y, first, stride, columns, stride_column, inside, state, stop, HEAD_DIM: tl.constexpr,
        WIDTH: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr
):
    """total + sum_ad x_a y_d state[a, b, d], [TILE, WIDTH b]: the gradient of x from that, y, of what it read."""
    PART: tl.constexpr = part_of(WIDTH, state.dtype.element_ty)
    index, part = tl.arange(0, WIDTH), tl.arange(0, PART)
    for FIRST in tl.static_range(0, WIDTH, PART):
        left = load_tile(y, first, stride, stop, state.dtype.element_ty, HEAD_DIM, TILE, PART, FIRST)
        slabs = state + ((FIRST + part)[:, None] + index[None, :] * WIDTH)
        total = scaled_products(total, left, columns, stride_column, inside, slabs, 0, HEAD_DIM, WIDTH, STAGES)
    return total


# ---------------------------------------------------------------------------------------------------------- tiles


@triton.jit
def pairs_product(
        left_tile, right_tile, left, left_first, left_stride, right, right_first, right_stride, stop,
        HEAD_DIM: tl.constexpr
):
    """left_tile @ right_tile^T, by parts that are loaded anew where whole tiles would not fit the registers.

    In a loop: with the parts unrolled, Triton 3.6 compiles the programs of dq and dk for sm_100 to a trap.
    """
    ROWS: tl.constexpr = left_tile.shape[0]
    WIDTH: tl.constexpr = left_tile.shape[1]
    COLUMNS: tl.constexpr = right_tile.shape[0]
    DTYPE: tl.constexpr = left_tile.dtype
    PART: tl.constexpr = part_of(WIDTH, DTYPE)
    if PART == WIDTH:
        return dot(left_tile, tl.trans(right_tile), None)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for dim in tl.range(0, WIDTH, PART, num_stages=2):
        x = load_tile(left, left_first, left_stride, stop, DTYPE, HEAD_DIM, ROWS, PART, dim)
        y = load_tile(right, right_first, right_stride, stop, DTYPE, HEAD_DIM, COLUMNS, PART, dim)
        total = dot(x, tl.trans(y), total)
    return total


@triton.jit
def rows_product(
        total, tile, x, first, stride, stop, matrix, row_stride, column_stride, HEAD_DIM: tl.constexpr
):
    """total + tile @ matrix [WIDTH, WIDTH], by parts like `pairs_product`."""
    ROWS: tl.constexpr = tile.shape[0]
    WIDTH: tl.constexpr = tile.shape[1]
    DTYPE: tl.constexpr = tile.dtype
    PART: tl.constexpr = part_of(WIDTH, DTYPE)
    index, part = tl.arange(0, WIDTH), tl.arange(0, PART)
    if PART == WIDTH:
        return dot(tile, tl.load(matrix + (index[:, None] * row_stride + index[None, :] * column_stride)), total)
    if total is None:
        total = tl.zeros([ROWS, WIDTH], tl.float32)
    for dim in tl.range(0, WIDTH, PART, num_stages=1):
        left = load_tile(x, first, stride, stop, DTYPE, HEAD_DIM, ROWS, PART, dim)
        right = tl.load(matrix + ((dim + part)[:, None] * row_stride + index[None, :] * column_stride))
        total = dot(left, right, total)
    return total


@triton.jit
def visible_pairs(queries, keys, starts, length):
    """Causal and document mask of queries and keys; token indices [Q, 1] and [1, K], or transposed."""
    visible = queries >= keys
    if starts is not None:
        visible = visible & (keys >= tl.load(starts + queries, mask=queries < length, other=0))
    return visible


@triton.jit
def mix_keys(
        total, normaliser, q, queries, keys, values, q_first, q_token, k_token, v_token, starts, tokens, begin, end,
        length, scale, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
        STAGES: tl.constexpr, MASKED: tl.constexpr
):
    tl.assume(begin < end)
    for first in tl.range(begin, end, BLOCK, num_stages=STAGES):
        k = load_tile(keys, first, k_token, length, q.dtype, HEAD_DIM, BLOCK, WIDTH)
        v = load_tile(values, first, v_token, length, q.dtype, HEAD_DIM, BLOCK, WIDTH)
        t = pairs_product(q, k, queries, q_first, q_token, keys, first, k_token, length, HEAD_DIM) * scale + 1
        weights = t * t * 0.5 + 0.5
        if MASKED:
            weights = tl.where(
                visible_pairs(tokens[:, None], first + tl.arange(0, BLOCK)[None, :], starts, length), weights, 0.0
            )
        normaliser += tl.sum(weights, axis=1)
        total = dot(weights.to(q.dtype), v, total)
    return total, normaliser


@triton.jit
def output_program(
        queries, keys, values, columns, states, moments, sums, starts, output, normalisers, q_strides, k_strides,
        v_strides, stride_column, heads, group, length, chunks, scale, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
        CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr
):
    """o and z of a tile of queries."""
    DTYPE: tl.constexpr = states.dtype.element_ty
    line, row, head, first = tile_of(heads, length, TILE)
    queries += row * q_strides[0] + head * q_strides[1]
    keys += row * k_strides[0] + head // group * k_strides[1]
    values += row * v_strides[0] + head // group * v_strides[1]
    index, tokens = tl.arange(0, WIDTH), first + tl.arange(0, TILE)
    inside = tokens < length
    chunk_first = first // CHUNK * CHUNK
    begins, begin = 0, chunk_first
    if starts is not None:
        starts += row * length
        begins = tl.load(starts + first)
        begin = tl.maximum(chunk_first, begins // BLOCK * BLOCK)
    q = load_tile(queries, first, q_strides[2], length, DTYPE, HEAD_DIM, TILE, WIDTH)
    state = line // group * chunks + first // CHUNK
    matrix = moments + state * (2 * WIDTH * WIDTH)
    reading, normaliser = inside, tl.zeros([TILE], tl.float32)
    if begins < chunk_first:
        first_order = tl.load(sums + state * (2 * WIDTH) + WIDTH + index)
        gram = matrix + WIDTH * WIDTH
        second = rows_product(None, q, queries, first, q_strides[2], length, gram, WIDTH, 1, HEAD_DIM)
        normaliser = tl.sum(q.to(tl.float32) * (second * 0.5 + first_order[None, :]), axis=1)
        earlier = tl.zeros([TILE], tl.float32) + chunk_first
        if starts is not None:
            own = tl.load(starts + tokens, mask=inside, other=length)
            reading = own < chunk_first
            earlier = tl.maximum(chunk_first - own, 0).to(tl.float32)
            normaliser = tl.where(reading, normaliser, 0.0)
        # w >= 1/2, which rounding must not break where the terms of all weights cancel
        normaliser = tl.maximum(normaliser + earlier, earlier * 0.5)
    total = tl.zeros([TILE, WIDTH], tl.float32)
    total, normaliser = mix_keys(
        total, normaliser, q, queries, keys, values, first, q_strides[2], k_strides[2], v_strides[2], starts, tokens,
        first, tl.minimum(first + TILE, length), length, scale, HEAD_DIM, WIDTH, BLOCK, STAGES, True
    )
    if begin < first:
        total, normaliser = mix_keys(
            total, normaliser, q, queries, keys, values, first, q_strides[2], k_strides[2], v_strides[2], starts,
            tokens, begin, first, length, scale, HEAD_DIM, WIDTH, BLOCK, STAGES, starts is not None
        )
    if begins < chunk_first:
        total = read_state(
            total, queries, first, q_strides[2], columns + line * HEAD_DIM * stride_column + tokens, stride_column,
            reading, states + state * (WIDTH * WIDTH * WIDTH), length, HEAD_DIM, WIDTH, TILE, STAGES
        )
        mean = rows_product(None, q, queries, first, q_strides[2], length, matrix, WIDTH, 1, HEAD_DIM)
        total += tl.where(reading[:, None], mean, 0.0)
        total += tl.where(reading[:, None], tl.load(sums + state * (2 * WIDTH) + index)[None, :], 0.0)
    tl.store(normalisers + line * length + tokens, normaliser, mask=inside)
    output += (row * length * heads + head) * HEAD_DIM
    store_tile(output, total / normaliser[:, None], first, heads * HEAD_DIM, length, HEAD_DIM, TILE, WIDTH)


@triton.jit
def grad_by_keys(
        total, q, g, c, queries, upstream, keys, values, q_first, q_token, k_token, v_token, starts, tokens, begin, end,
        length, scale, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
        STAGES: tl.constexpr, MASKED: tl.constexpr
):
    tl.assume(begin < end)
    for first in tl.range(begin, end, BLOCK, num_stages=STAGES):
        k = load_tile(keys, first, k_token, length, q.dtype, HEAD_DIM, BLOCK, WIDTH)
        v = load_tile(values, first, v_token, length, q.dtype, HEAD_DIM, BLOCK, WIDTH)
        t = pairs_product(q, k, queries, q_first, q_token, keys, first, k_token, length, HEAD_DIM)
        t = t * (scale * scale) + scale
        grad_scores = pairs_product(g, v, upstream, q_first, HEAD_DIM, values, first, v_token, length, HEAD_DIM)
        grad_scores = (grad_scores - c[:, None]) * t
        if MASKED:
            visible = visible_pairs(tokens[:, None], first + tl.arange(0, BLOCK)[None, :], starts, length)
            grad_scores = tl.where(visible, grad_scores, 0.0)
        total = dot(grad_scores.to(q.dtype), k, total)
    return total


@triton.jit
def grad_queries_program(
        queries, keys, values, upstream, delta, columns, states, moments, sums, starts, grad_queries, q_strides,
        k_strides, v_strides, stride_column, heads, group, length, chunks, scale, HEAD_DIM: tl.constexpr,
        WIDTH: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
        STAGES: tl.constexpr
):
    """dq of a tile of queries."""
    DTYPE: tl.constexpr = states.dtype.element_ty
    line, row, head, first = tile_of(heads, length, TILE)
    queries += row * q_strides[0] + head * q_strides[1]
    keys += row * k_strides[0] + head // group * k_strides[1]
    values += row * v_strides[0] + head // group * v_strides[1]
    index, tokens = tl.arange(0, WIDTH), first + tl.arange(0, TILE)
    inside = tokens < length
    chunk_first = first // CHUNK * CHUNK
    begins, begin = 0, chunk_first
    if starts is not None:
        starts += row * length
        begins = tl.load(starts + first)
        begin = tl.maximum(chunk_first, begins // BLOCK * BLOCK)
    q = load_tile(queries, first, q_strides[2], length, DTYPE, HEAD_DIM, TILE, WIDTH)
    upstream += line * length * HEAD_DIM
    g = load_tile(upstream, first, HEAD_DIM, length, DTYPE, HEAD_DIM, TILE, WIDTH)
    c = tl.load(delta + line * length + tokens, mask=inside, other=0.0)
    total = grad_by_keys(
        tl.zeros([TILE, WIDTH], tl.float32), q, g, c, queries, upstream, keys, values, first, q_strides[2],
        k_strides[2], v_strides[2], starts, tokens, first, tl.minimum(first + TILE, length), length, scale, HEAD_DIM,
        WIDTH, BLOCK, STAGES, True
    )
    if begin < first:
        total = grad_by_keys(
            total, q, g, c, queries, upstream, keys, values, first, q_strides[2], k_strides[2], v_strides[2], starts,
            tokens, begin, first, length, scale, HEAD_DIM, WIDTH, BLOCK, STAGES, starts is not None
        )
    if begins < chunk_first:
        state = line // group * chunks + first // CHUNK
        reading = inside
        if starts is not None:
            reading = tl.load(starts + tokens, mask=inside, other=length) < chunk_first
        total = read_gradient(
            total, upstream, first, HEAD_DIM, columns + line * HEAD_DIM * stride_column + tokens, stride_column,
            reading, states + state * (WIDTH * WIDTH * WIDTH), length, HEAD_DIM, WIDTH, TILE, STAGES
        )
        matrix = moments + state * (2 * WIDTH * WIDTH)
        gram = matrix + WIDTH * WIDTH
        of_normaliser = rows_product(None, q, queries, first, q_strides[2], length, gram, WIDTH, 1, HEAD_DIM)
        of_normaliser += tl.load(sums + state * (2 * WIDTH) + WIDTH + index)[None, :]
        total -= tl.where(reading[:, None], c[:, None] * of_normaliser, 0.0)
        mean = rows_product(None, g, upstream, first, HEAD_DIM, length, matrix, 1, WIDTH, HEAD_DIM)
        total += tl.where(reading[:, None], mean, 0.0)
    grad_queries += (row * length * heads + head) * HEAD_DIM
    store_tile(grad_queries, total, first, heads * HEAD_DIM, length, HEAD_DIM, TILE, WIDTH)


@triton.jit
def grad_values_program(
        queries, keys, upstream, columns, states, moments, sums, starts, grad_values, q_strides, k_strides,
        stride_column, heads, group, length, chunks, scale, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
        CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr
):
    """dv of a tile of keys; `heads` are those of the keys."""
    DTYPE: tl.constexpr = states.dtype.element_ty
    line, row, head, first = tile_of(heads, length, TILE)
    queries += row * q_strides[0] + head * group * q_strides[1]
    keys += row * k_strides[0] + head * k_strides[1]
    upstream += line * group * length * HEAD_DIM
    index, tokens = tl.arange(0, WIDTH), first + tl.arange(0, TILE)
    stop = tl.minimum(first // CHUNK * CHUNK + CHUNK, length)
    begins = 0
    if starts is not None:
        starts += row * length
        begins = tl.load(starts + stop - 1)
    k = load_tile(keys, first, k_strides[2], length, DTYPE, HEAD_DIM, TILE, WIDTH)
    total = tl.zeros([TILE, WIDTH], tl.float32)
    blocks = tl.maximum(tl.cdiv(stop - first, BLOCK), 1)
    for visit in tl.range(0, group * blocks, num_stages=STAGES):
        member, later = visit // blocks, first + visit % blocks * BLOCK
        q_head = queries + tl.cast(member, tl.int64) * q_strides[1]
        g_head = upstream + tl.cast(member, tl.int64) * length * HEAD_DIM
        q = load_tile(q_head, later, q_strides[2], length, DTYPE, HEAD_DIM, BLOCK, WIDTH)
        g = load_tile(g_head, later, HEAD_DIM, length, DTYPE, HEAD_DIM, BLOCK, WIDTH)
        t = pairs_product(k, q, keys, first, k_strides[2], q_head, later, q_strides[2], length, HEAD_DIM) * scale + 1
        visible = visible_pairs(later + tl.arange(0, BLOCK)[None, :], tokens[:, None], starts, length)
        weights = tl.where(visible, t * t * 0.5 + 0.5, 0.0)
        total = dot(weights.to(DTYPE), g, total)
    if (stop < length) & (begins < first + TILE):
        state = line * chunks + first // CHUNK
        read = tokens < length
        if starts is not None:
            read = read & (tokens >= begins)
        total = read_state(
            total, keys, first, k_strides[2], columns + line * HEAD_DIM * stride_column + tokens, stride_column, read,
            states + state * (WIDTH * WIDTH * WIDTH), length, HEAD_DIM, WIDTH, TILE, STAGES
        )
        matrix = moments + state * (2 * WIDTH * WIDTH)
        mean = rows_product(None, k, keys, first, k_strides[2], length, matrix, WIDTH, 1, HEAD_DIM)
        total += tl.where(read[:, None], mean, 0.0)
        total += tl.where(read[:, None], tl.load(sums + state * (2 * WIDTH) + index)[None, :], 0.0)
    grad_values += (row * length * heads + head) * HEAD_DIM
    store_tile(grad_values, total, first, heads * HEAD_DIM, length, HEAD_DIM, TILE, WIDTH)


@triton.jit
def grad_keys_program(
        queries, keys, values, upstream, delta, columns, states, moments, sums, starts, grad_keys, q_strides,
        k_strides, v_strides, stride_column, heads, group, length, chunks, scale, HEAD_DIM: tl.constexpr,
        WIDTH: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
        STAGES: tl.constexpr
):
    """dk of a tile of keys; `heads` are those of the keys."""
    DTYPE: tl.constexpr = states.dtype.element_ty
    line, row, head, first = tile_of(heads, length, TILE)
    queries += row * q_strides[0] + head * group * q_strides[1]
    keys += row * k_strides[0] + head * k_strides[1]
    values += row * v_strides[0] + head * v_strides[1]
    upstream += line * group * length * HEAD_DIM
    delta += line * group * length
    index, tokens = tl.arange(0, WIDTH), first + tl.arange(0, TILE)
    stop = tl.minimum(first // CHUNK * CHUNK + CHUNK, length)
    begins = 0
    if starts is not None:
        starts += row * length
        begins = tl.load(starts + stop - 1)
    k = load_tile(keys, first, k_strides[2], length, DTYPE, HEAD_DIM, TILE, WIDTH)
    v = load_tile(values, first, v_strides[2], length, DTYPE, HEAD_DIM, TILE, WIDTH)
    total = tl.zeros([TILE, WIDTH], tl.float32)
    blocks = tl.maximum(tl.cdiv(stop - first, BLOCK), 1)
    for visit in tl.range(0, group * blocks, num_stages=STAGES):
        member, later = visit // blocks, first + visit % blocks * BLOCK
        q_head = queries + tl.cast(member, tl.int64) * q_strides[1]
        g_head = upstream + tl.cast(member, tl.int64) * length * HEAD_DIM
        others = later + tl.arange(0, BLOCK)
        q = load_tile(q_head, later, q_strides[2], length, DTYPE, HEAD_DIM, BLOCK, WIDTH)
        g = load_tile(g_head, later, HEAD_DIM, length, DTYPE, HEAD_DIM, BLOCK, WIDTH)
        c = tl.load(delta + tl.cast(member, tl.int64) * length + others, mask=others < length, other=0.0)
        t = pairs_product(k, q, keys, first, k_strides[2], q_head, later, q_strides[2], length, HEAD_DIM)
        t = t * (scale * scale) + scale
        grad_scores = pairs_product(v, g, values, first, v_strides[2], g_head, later, HEAD_DIM, length, HEAD_DIM)
        grad_scores = (grad_scores - c[None, :]) * t
        visible = visible_pairs(others[None, :], tokens[:, None], starts, length)
        total = dot(tl.where(visible, grad_scores, 0.0).to(DTYPE), q, total)
    if (stop < length) & (begins < first + TILE):
        state = line * chunks + first // CHUNK
        read = tokens < length
        if starts is not None:
            read = read & (tokens >= begins)
        total = read_gradient(
            total, values, first, v_strides[2], columns + line * HEAD_DIM * stride_column + tokens, stride_column,
            read, states + state * (WIDTH * WIDTH * WIDTH), length, HEAD_DIM, WIDTH, TILE, STAGES
        )
        matrix = moments + state * (2 * WIDTH * WIDTH)
        gram = matrix + WIDTH * WIDTH
        lower = rows_product(None, k, keys, first, k_strides[2], length, gram, WIDTH, 1, HEAD_DIM)
        lower = rows_product(lower, v, values, first, v_strides[2], length, matrix, 1, WIDTH, HEAD_DIM)
        total += tl.where(read[:, None], lower, 0.0)
        total += tl.where(read[:, None], tl.load(sums + state * (2 * WIDTH) + WIDTH + index)[None, :], 0.0)
    grad_keys += (row * length * heads + head) * HEAD_DIM
    store_tile(grad_keys, total, first, heads * HEAD_DIM, length, HEAD_DIM, TILE, WIDTH)
