"""The Triton programs of :mod:`deconattn.ops.kernels.taylor_states`, which says what they compute and why so.

Shapes. WIDTH is head_dim padded to a power of two, CHUNK a multiple of every tile. `columns` is a transposed copy,
[.., head_dim, stride_column], of queries or keys. Of each key head and chunk,

    states   [WIDTH a, WIDTH b, WIDTH d]   sum_j x_ja x_jb y_jd / head_dim
    moments  [2, WIDTH, WIDTH]             sum_j x_jb y_jd / sqrt(head_dim);  sum_j p_j x_ja x_jb / head_dim
    sums     [2, WIDTH] fp32               sum_j y_jd;  sum_j p_j x_jb / sqrt(head_dim)

hold (x, y, p) = (k, v, 1) of the tokens before the chunk or, in reverse, (q, g, -c) of those after it, within one
document. Products are of the scratch's dtype, bf16 or fp32; sums are fp32. `starts` [R, L] is the index of the first
token of each token's document, or None where a row is one document.

A program that reads a state sums up tiles first, in loops that are never empty, then products with the state, and
adds the lower orders last: sums that are set beside a branch or a loop, or changed between products, by something
else than a product make ptxas serialise all products (its note C7515). benchmarks/kernels/compile_matrix.py looks.
"""

# mypy: disable-error-code="no-untyped-def, import-untyped, assignment"

import triton
import triton.language as tl

from deconattn.ops.kernels.products import INTERPRETED, dot

# An argument a line would double the length of this file.
# fmt: off


@triton.constexpr_function
def half_of(width):
    """Dimensions a below it are multiplied by all b, those above by the upper half."""
    return width // 2 if width >= 64 else width


@triton.constexpr_function
def part_of(width, dtype):
    """Dimensions that a product sums over at once: fp32's halves of both operands would not fit the registers."""
    return min(width, 32) if dtype == tl.float32 else width


@triton.jit
def cast(tile, DTYPE: tl.constexpr):
    if INTERPRETED:
        tile = tile.to(tl.float32)
    return tile.to(DTYPE)


@triton.jit
def product(tile, scales):
    """tile * scales, rounded once."""
    if INTERPRETED:
        return (tile.to(tl.float32) * scales.to(tl.float32)).to(tile.dtype)
    return tile * scales


@triton.jit
def load_tile(
        tokens_ptr, first, stride, stop, DTYPE: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
        COLUMNS: tl.constexpr, first_column=0, ZERO_BELOW: tl.constexpr = 0
):
    """[ROWS, COLUMNS] of tokens first.., zero from `stop` on and in columns below ZERO_BELOW."""
    rows, columns = tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS)
    inside = (first + rows < stop)[:, None] & ((columns >= ZERO_BELOW) & (columns < HEAD_DIM))[None, :]
    tile = tokens_ptr + tl.cast(first, tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    return cast(tl.load(tile, mask=inside, other=0.0), DTYPE)


@triton.jit
def store_tile(tokens_ptr, tile, first, stride, stop, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside = (first + rows < stop)[:, None] & (columns < HEAD_DIM)[None, :]
    address = tokens_ptr + tl.cast(first, tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    tl.store(address, tile.to(tokens_ptr.dtype.element_ty), mask=inside)


# ---------------------------------------------------------------------------------------------------- preparation


@triton.jit
def columns_program(
    x, columns, strides, heads, length, stride_column, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr
):
    """columns [R * heads, head_dim, stride_column] of x [R, heads, L, head_dim]."""
    line, row, head, first = tile_of(heads, length, TILE)
    x += row * strides[0] + head * strides[1]
    columns += line * HEAD_DIM * stride_column
    tile = tl.trans(load_tile(x, first, strides[2], length, columns.dtype.element_ty, HEAD_DIM, TILE, WIDTH))
    dims, tokens = tl.arange(0, WIDTH), first + tl.arange(0, TILE)
    inside = (dims < HEAD_DIM)[:, None] & (tokens < length)[None, :]
    tl.store(columns + (dims[:, None].to(tl.int64) * stride_column + tokens[None, :]), tile, mask=inside)


@triton.jit
def upstream_program(
        grad, mixed, normaliser, upstream, delta, g_strides, m_strides, heads, length, HEAD_DIM: tl.constexpr,
        WIDTH: tl.constexpr, TILE: tl.constexpr
):
    """g_i = do_i / z_i, [R * heads, L, head_dim], and c_i = do_i.o_i / z_i."""
    line, row, head, first = tile_of(heads, length, TILE)
    tokens = first + tl.arange(0, TILE)
    do = load_tile(
        grad + row * g_strides[0] + head * g_strides[1], first, g_strides[2], length, tl.float32, HEAD_DIM, TILE, WIDTH
    )
    o = load_tile(
        mixed + row * m_strides[0] + head * m_strides[1], first, m_strides[2], length, tl.float32, HEAD_DIM, TILE, WIDTH
    )
    share = 1 / tl.load(normaliser + line * length + tokens, mask=tokens < length, other=1.0)
    tl.store(delta + line * length + tokens, tl.sum(do * o, axis=1) * share, mask=tokens < length)
    store_tile(upstream + line * length * HEAD_DIM, do * share[:, None], first, HEAD_DIM, length, HEAD_DIM, TILE, WIDTH)


# --------------------------------------------------------------------------------------------------------- states


@triton.jit
def chunk_visited(step, chunks, length, starts, CHUNK: tl.constexpr, REVERSE: tl.constexpr):
    """The chunk that a state takes in at `step`, whether what it holds is kept, and the span of tokens it takes."""
    chunk = chunks - step if REVERSE else step - 1
    first = chunk * CHUNK
    stop = tl.minimum(first + CHUNK, length)
    keep, begin = 1.0, first
    if starts is not None:
        begins = tl.load(starts + stop - 1)
        keep = tl.where(begins < first, 1.0, 0.0)
        if not REVERSE:
            begin = tl.maximum(begins, first)
    return first, begin, stop, keep


@triton.jit
def taken(tokens, begin, first, stop, starts, REVERSE: tl.constexpr):
    """Mask of a chunk's tokens that belong to the state's document."""
    inside = (tokens >= begin) & (tokens < stop)
    if REVERSE and starts is not None:
        inside = inside & (tl.load(starts + tokens, mask=inside, other=first) < first)
    return inside


@triton.jit
def second_order(
        x, columns, y, states, starts, x_strides, y_strides, stride_column, group, length, chunks, first_a,
        HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, FIRST_B: tl.constexpr, WIDTH_B: tl.constexpr,
        MIRROR_FROM: tl.constexpr, CHUNK: tl.constexpr, DTYPE: tl.constexpr,
        TILE: tl.constexpr, DIMS: tl.constexpr, STAGES: tl.constexpr, REVERSE: tl.constexpr
):
    """states[a, b] of `DIMS` consecutive a and the b from FIRST_B on: (x_a y)^T x_b, with x_a y made in registers.

    From b = MIRROR_FROM on also states[b, a], where no other program makes them.
    """
    b, d = FIRST_B + tl.arange(0, WIDTH_B), tl.arange(0, WIDTH)
    totals = ()
    for _ in tl.static_range(DIMS):
        totals = totals + (tl.zeros([WIDTH, WIDTH_B], tl.float32),)  # noqa: RUF005
    for step in range(1, chunks):
        first, begin, stop, keep = chunk_visited(step, chunks, length, starts, CHUNK, REVERSE)
        if starts is not None:
            kept = ()
            for i in tl.static_range(DIMS):
                kept = kept + (totals[i] * keep,)  # noqa: RUF005
            totals = kept
        for visit in tl.range(0, group * (CHUNK // TILE), num_stages=STAGES):
            member, tile = visit // (CHUNK // TILE), first + visit % (CHUNK // TILE) * TILE
            tokens = tile + tl.arange(0, TILE)
            inside = taken(tokens, begin, first, stop, starts, REVERSE)
            x_tile = load_tile(
                x + tl.cast(member, tl.int64) * x_strides[1], tile, x_strides[2], stop, DTYPE, HEAD_DIM, TILE,
                WIDTH_B, FIRST_B
            )
            y_rows = y + tl.cast(member, tl.int64) * y_strides[1] + tl.cast(tile, tl.int64) * y_strides[2]
            y_tile = tl.load(
                y_rows + (tl.arange(0, TILE)[None, :] * y_strides[2] + d[:, None]),
                mask=inside[None, :] & (d < HEAD_DIM)[:, None], other=0.0
            )
            y_tile = cast(y_tile, DTYPE)
            lines = columns + tl.cast(member * HEAD_DIM + first_a, tl.int64) * stride_column + tokens
            scales = ()
            for i in tl.static_range(DIMS):
                present = tokens < tl.where(first_a + i < HEAD_DIM, stop, 0)
                line = tl.load(lines + tl.cast(i, tl.int64) * stride_column, mask=present, other=0.0)
                scales = scales + (line,)  # noqa: RUF005
            sums = ()
            for i in tl.static_range(DIMS):
                scaled = product(y_tile, scales[i][None, :])
                sums = sums + (dot(scaled, x_tile, totals[i]),)  # noqa: RUF005
            totals = sums
        later = chunks - 1 - step if REVERSE else step
        state = states + tl.cast(later, tl.int64) * (WIDTH * WIDTH * WIDTH)
        for i in tl.static_range(DIMS):
            a = first_a + i
            block = (totals[i] * (1.0 / HEAD_DIM)).to(DTYPE)
            tl.store(state + ((a * WIDTH + b[None, :]) * WIDTH + d[:, None]), block)
            if MIRROR_FROM < WIDTH:
                mirrored = tl.broadcast_to(b[None, :] >= MIRROR_FROM, [WIDTH, WIDTH_B])
                tl.store(state + ((b[None, :] * WIDTH + a) * WIDTH + d[:, None]), block, mask=mirrored)


@triton.jit
def lower_orders(
        x, y, weight, moments, sums, starts, x_strides, y_strides, group, length, chunks, HEAD_DIM: tl.constexpr,
        WIDTH: tl.constexpr, CHUNK: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr,
        STAGES: tl.constexpr, REVERSE: tl.constexpr
):
    """moments and sums of every chunk."""
    d = tl.arange(0, WIDTH)
    moment, gram = tl.zeros([WIDTH, WIDTH], tl.float32), tl.zeros([WIDTH, WIDTH], tl.float32)
    y_sum, x_sum = tl.zeros([TILE, WIDTH], tl.float32), tl.zeros([TILE, WIDTH], tl.float32)
    scale = 1 / tl.sqrt(HEAD_DIM * 1.0)
    for step in range(1, chunks):
        first, begin, stop, keep = chunk_visited(step, chunks, length, starts, CHUNK, REVERSE)
        moment, gram, y_sum, x_sum = moment * keep, gram * keep, y_sum * keep, x_sum * keep
        for visit in tl.range(0, group * (CHUNK // TILE), num_stages=STAGES):
            member, tile = visit // (CHUNK // TILE), first + visit % (CHUNK // TILE) * TILE
            tokens = tile + tl.arange(0, TILE)
            inside = taken(tokens, begin, first, stop, starts, REVERSE)
            x_tile = load_tile(
                x + tl.cast(member, tl.int64) * x_strides[1], tile, x_strides[2], stop, DTYPE, HEAD_DIM, TILE, WIDTH
            )
            y_tile = load_tile(
                y + tl.cast(member, tl.int64) * y_strides[1], tile, y_strides[2], stop, DTYPE, HEAD_DIM, TILE, WIDTH
            )
            y_tile = tl.where(inside[:, None], y_tile, 0.0).to(DTYPE)
            if REVERSE:
                line = weight + tl.cast(member, tl.int64) * length
                share = -tl.load(line + tokens, mask=inside, other=0.0)
            else:
                share = tl.where(inside, 1.0, 0.0)
            weighted = x_tile.to(tl.float32) * share[:, None]
            y_sum += y_tile.to(tl.float32)
            x_sum += weighted
            transposed = tl.trans(x_tile)
            moment = dot(transposed, y_tile, moment)
            gram = dot(transposed, weighted.to(DTYPE), gram)
        later = tl.cast(chunks - 1 - step if REVERSE else step, tl.int64)
        matrix = moments + later * (2 * WIDTH * WIDTH) + (d[:, None] * WIDTH + d[None, :])
        tl.store(matrix, (moment * scale).to(DTYPE))
        tl.store(matrix + WIDTH * WIDTH, (gram * (1.0 / HEAD_DIM)).to(DTYPE))
        tl.store(sums + later * (2 * WIDTH) + d, tl.sum(y_sum, axis=0))
        tl.store(sums + later * (2 * WIDTH) + WIDTH + d, tl.sum(x_sum, axis=0) * scale)


@triton.jit
def states_program(
        x, columns, y, weight, states, moments, sums, starts, x_strides, y_strides, stride_column, heads, group,
        length, chunks, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
        TILE: tl.constexpr, DIMS: tl.constexpr, STAGES: tl.constexpr, REVERSE: tl.constexpr, MIRROR: tl.constexpr
):
    """The running state of one key head, written before each chunk (in reverse, after it).

    Of DIMS dimensions a, or of the lower orders. `group` heads of x and y follow each other.
    """
    HALF: tl.constexpr = half_of(WIDTH)
    DTYPE: tl.constexpr = states.dtype.element_ty
    parts = tl.cdiv(HEAD_DIM, DIMS) + 1
    line, part = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts
    row, head = line // heads, line % heads * group
    x += row * x_strides[0] + head * x_strides[1]
    y += row * y_strides[0] + head * y_strides[1]
    columns += line * group * HEAD_DIM * stride_column
    states += line * chunks * (WIDTH * WIDTH * WIDTH)
    moments += line * chunks * (2 * WIDTH * WIDTH)
    sums += line * chunks * (2 * WIDTH)
    if starts is not None:
        starts += row * length
    if part == parts - 1:
        if REVERSE:
            weight += line * group * length
        lower_orders(
            x, y, weight, moments, sums, starts, x_strides, y_strides, group, length, chunks, HEAD_DIM, WIDTH, CHUNK,
            DTYPE, TILE, STAGES, REVERSE
        )
    elif part * DIMS < HALF:
        second_order(
            x, columns, y, states, starts, x_strides, y_strides, stride_column, group, length, chunks, part * DIMS,
            HEAD_DIM, WIDTH, 0, WIDTH, HALF if MIRROR else WIDTH, CHUNK, DTYPE, TILE, DIMS, STAGES, REVERSE
        )
    else:
        second_order(
            x, columns, y, states, starts, x_strides, y_strides, stride_column, group, length, chunks, part * DIMS,
            HEAD_DIM, WIDTH, WIDTH - HALF, HALF, WIDTH, CHUNK, DTYPE, TILE, DIMS, STAGES, REVERSE
        )


@triton.jit
def tile_of(heads, length, TILE: tl.constexpr):
    """This program's head among all rows', its row and head, and its first token."""
    tiles = tl.cdiv(length, TILE)
    line = (tl.program_id(0) // tiles).to(tl.int64)
    return line, line // heads, line % heads, tl.program_id(0) % tiles * TILE


@triton.jit
def scaled_products(
        total, left, columns, stride_column, inside, slabs, begin, end, WIDTH: tl.constexpr,
        STAGES: tl.constexpr
):
    """total + sum_a (x_a left) slab_a: features are made in registers, a dimension a at a time.

    `left` must come of loads made for this alone, and of constants: Triton then gives it the layout of the product's
    operand once, before the loop, and not through shared memory for each a.

    The condition, true of every a, has each product end before the next one's operand is made in the same registers:
    ptxas, which may not let them meet, would otherwise make all products of the program wait (its note C7513).
    """
    for a in tl.range(begin, end, num_stages=STAGES):
        column = tl.load(columns + tl.cast(a, tl.int64) * stride_column, mask=inside, other=0.0)
        slab = tl.load(slabs + a * (WIDTH * WIDTH))
        total = dot(product(left, column[:, None]), slab, total)
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
