"""Triton programs that sum up the states of :mod:`deconattn.ops.kernels.taylor_states`, which says why so.

Shapes. WIDTH is head_dim padded to a power of two, CHUNK a multiple of every tile. `columns` is a transposed copy,
[.., head_dim, stride_column], of queries or keys. Of each key head and chunk,

    states   [WIDTH a, WIDTH b, WIDTH d]   sum_j x_ja x_jb y_jd / head_dim
    moments  [2, WIDTH, WIDTH]             sum_j x_jb y_jd / sqrt(head_dim);  sum_j p_j x_ja x_jb / head_dim
    sums     [2, WIDTH] fp32               sum_j y_jd;  sum_j p_j x_jb / sqrt(head_dim)

hold (x, y, p) = (k, v, 1) of the tokens before the chunk or, in reverse, (q, g, -c) of those after it, within one
document. Products are of the scratch's dtype, bf16 or fp32; sums are fp32. `starts` [R, L] is the index of the first
token of each token's document, or None where a row is one document.

:mod:`.taylor_read_programs` has those that read them.
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
def tile_of(heads, length, TILE: tl.constexpr):
    """This program's head among all rows', its row and head, and its first token."""
    tiles = tl.cdiv(length, TILE)
    line = (tl.program_id(0) // tiles).to(tl.int64)
    return line, line // heads, line % heads, tl.program_id(0) % tiles * TILE


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
def lower_order(
        x, y, weight, moments, sums, starts, x_strides, y_strides, group, length, chunks, HEAD_DIM: tl.constexpr,
        WIDTH: tl.constexpr, CHUNK: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr,
        STAGES: tl.constexpr, REVERSE: tl.constexpr, OF_KEYS: tl.constexpr
):
    """The moments x^T y and sums of y of every chunk or, `OF_KEYS`, x^T (p x) and those of p x.

    One at a time: for sm_100 Triton takes three sums of each fp32 product, and both would exceed their memory.
    """
    d = tl.arange(0, WIDTH)
    moment, total = tl.zeros([WIDTH, WIDTH], tl.float32), tl.zeros([TILE, WIDTH], tl.float32)
    for step in range(1, chunks):
        first, begin, stop, keep = chunk_visited(step, chunks, length, starts, CHUNK, REVERSE)
        moment, total = moment * keep, total * keep
        for visit in tl.range(0, group * (CHUNK // TILE), num_stages=STAGES):
            member, tile = visit // (CHUNK // TILE), first + visit % (CHUNK // TILE) * TILE
            tokens = tile + tl.arange(0, TILE)
            inside = taken(tokens, begin, first, stop, starts, REVERSE)
            x_tile = load_tile(
                x + tl.cast(member, tl.int64) * x_strides[1], tile, x_strides[2], stop, DTYPE, HEAD_DIM, TILE, WIDTH
            )
            if OF_KEYS:
                if REVERSE:
                    line = weight + tl.cast(member, tl.int64) * length
                    share = -tl.load(line + tokens, mask=inside, other=0.0)
                else:
                    share = tl.where(inside, 1.0, 0.0)
                other = x_tile.to(tl.float32) * share[:, None]
            else:
                y_tile = load_tile(
                    y + tl.cast(member, tl.int64) * y_strides[1], tile, y_strides[2], stop, DTYPE, HEAD_DIM, TILE, WIDTH
                )
                other = tl.where(inside[:, None], y_tile, 0.0).to(tl.float32)
            total += other
            moment = dot(tl.trans(x_tile), other.to(DTYPE), moment)
        later = tl.cast(chunks - 1 - step if REVERSE else step, tl.int64)
        scale = 1 / tl.sqrt(HEAD_DIM * 1.0)
        matrix = moments + later * (2 * WIDTH * WIDTH) + (d[:, None] * WIDTH + d[None, :])
        tl.store(matrix, (moment * (1.0 / HEAD_DIM if OF_KEYS else scale)).to(DTYPE))
        tl.store(sums + later * (2 * WIDTH) + d, tl.sum(total, axis=0) * (scale if OF_KEYS else 1.0))


@triton.jit
def states_program(
        x, columns, y, weight, states, moments, sums, starts, x_strides, y_strides, stride_column, heads, group,
        length, chunks, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
        TILE: tl.constexpr, DIMS: tl.constexpr, STAGES: tl.constexpr, REVERSE: tl.constexpr, MIRROR: tl.constexpr
):
    """The running state of one key head, written before each chunk (in reverse, after it).

    Of DIMS dimensions a, or of one of the lower orders. `group` heads of x and y follow each other.
    """
    HALF: tl.constexpr = half_of(WIDTH)
    DTYPE: tl.constexpr = states.dtype.element_ty
    parts = tl.cdiv(HEAD_DIM, DIMS) + 2
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
        lower_order(
            x, y, weight, moments, sums, starts, x_strides, y_strides, group, length, chunks, HEAD_DIM, WIDTH, CHUNK,
            DTYPE, TILE, STAGES, REVERSE, False
        )
    elif part == parts - 2:
        if REVERSE:
            weight += line * group * length
        lower_order(
            x, y, weight, moments + WIDTH * WIDTH, sums + WIDTH, starts, x_strides, y_strides, group, length, chunks,
            HEAD_DIM, WIDTH, CHUNK, DTYPE, TILE, STAGES, REVERSE, True
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
