"""The programs of :mod:`deconattn.ops.kernels.fixed_map`, which says what they compute and why so.

Tensors come as a pointer and the strides of their rows (r), heads (h) and tokens (l); channels have stride 1. BLOCK_M
counts queries, BLOCK_N keys and BLOCK_W columns of W, the rows' channels side by side, where head_dim is padded to
PADDED with columns that do not exist. lse (log-sum-exp) and delta are fp32 [heads, whole blocks], lse in base 2;
`scale` is log2(e) / sqrt(head_dim). Positions and offsets within a tile are 32-bit; where a tile or a row begins is
64-bit.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

from deconattn.ops.kernels.products import dot

PANELS = tl.constexpr(32)
"""Panels (a head's block of columns) that are worked on side by side; see `_place`."""


@triton.jit
def _place(blocks, panels):
    """This program's (block, panel): PANELS panels at a time, block by block, all panels of a block together.

    Neighbours read the same tiles at the same time, and callers count blocks from the one with the most work.
    """
    program = tl.program_id(0)
    first = program // (blocks * PANELS) * PANELS
    members = tl.minimum(panels - first, PANELS)
    within = program % (blocks * PANELS)
    return within // members, first + within % members


@triton.jit
def _at(base, index, stride):
    return base + tl.cast(index, tl.int64) * stride


@triton.jit
def _columns(first, rows, stride_row, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr):
    """Offsets of columns first.. of W, rows of PADDED channels side by side, and a mask of those that exist."""
    column = first + tl.arange(0, BLOCK)
    row, channel = column // PADDED, column % PADDED
    return row.to(tl.int64) * stride_row + channel, (row < rows) & (channel < HEAD_DIM)


@triton.jit
def _load(base, first, stop, stride, offsets, exists, BLOCK: tl.constexpr):
    """[BLOCK, columns]: tokens first.., up to `stop`, of the columns that lie at `offsets`; zeros elsewhere."""
    token = tl.arange(0, BLOCK)
    pointers = _at(base, first, stride) + token[:, None] * stride + offsets[None, :]
    return tl.load(pointers, mask=(first + token < stop)[:, None] & exists[None, :], other=0.0)


@triton.jit
def _store(base, first, stop, stride, offsets, exists, tile, BLOCK: tl.constexpr):
    token = tl.arange(0, BLOCK)
    pointers = _at(base, first, stride) + token[:, None] * stride + offsets[None, :]
    mask = (first + token < stop)[:, None] & exists[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _channels(HEAD_DIM: tl.constexpr, PADDED: tl.constexpr):
    channel = tl.arange(0, PADDED)
    return channel, channel < HEAD_DIM


@triton.jit(do_not_specialize=["length", "heads", "group"])
def lse_kernel(
    queries, keys, lse, stride_qh, stride_ql, stride_kh, stride_kl,
    stride_nh, length, heads, group, scale,
    HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """lse [heads, whole blocks] = log2 sum_j exp2(q.k scale), and infinity beyond the length."""
    blocks = stride_nh // BLOCK_M
    block, head = _place(blocks, heads)
    start = (blocks - 1 - block) * BLOCK_M
    channel, exists = _channels(HEAD_DIM, PADDED)
    q = _load(_at(queries, head, stride_qh), start, length, stride_ql, channel, exists, BLOCK_M)
    keys = _at(keys, head // group, stride_kh)
    query = start + tl.arange(0, BLOCK_M)
    largest = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in tl.range(0, tl.minimum(start + BLOCK_M, length), BLOCK_N):
        k = _load(keys, first, length, stride_kl, channel, exists, BLOCK_N)
        s = dot(q, tl.trans(k)) * scale
        s = tl.where(query[:, None] >= first + tl.arange(0, BLOCK_N)[None, :], s, -float("inf"))
        larger = tl.maximum(largest, tl.max(s, 1))
        total = total * tl.exp2(largest - larger) + tl.sum(tl.exp2(s - larger[:, None]), 1)
        largest = larger
    tl.store(lse + head * stride_nh + query, tl.where(query < length, largest + tl.log2(total), float("inf")))


@triton.jit(do_not_specialize=["length", "rows", "heads", "group"])
def mix_kernel(
    queries, keys, values, lse, mixed,
    stride_qh, stride_ql, stride_kh, stride_kl, stride_vr, stride_vh, stride_vl, stride_or, stride_oh, stride_ol,
    stride_nh, length, rows, heads, group, scale,
    HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """mixed = A V, a block of queries and of columns each; the last queries, which see most, first."""
    blocks, panels = tl.cdiv(length, BLOCK_M), tl.cdiv(rows * PADDED, BLOCK_W)
    block, panel = _place(blocks, heads * panels)
    start, head = (blocks - 1 - block) * BLOCK_M, panel // panels
    channel, exists = _channels(HEAD_DIM, PADDED)
    q = _load(_at(queries, head, stride_qh), start, length, stride_ql, channel, exists, BLOCK_M)
    n = tl.load(lse + head * stride_nh + start + tl.arange(0, BLOCK_M))
    keys, values = _at(keys, head // group, stride_kh), _at(values, head // group, stride_vh)
    offsets, real = _columns(panel % panels * BLOCK_W, rows, stride_vr, BLOCK_W, HEAD_DIM, PADDED)
    acc = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
    for key in tl.range(0, tl.minimum(start + BLOCK_M, length), BLOCK_N):
        k = _load(keys, key, length, stride_kl, channel, exists, BLOCK_N)
        weights = tl.exp2(dot(q, tl.trans(k)) * scale - n[:, None])
        last_seen = start - key + tl.arange(0, BLOCK_M)
        weights = tl.where(tl.arange(0, BLOCK_N)[None, :] <= last_seen[:, None], weights, 0.0)
        v = _load(values, key, length, stride_vl, offsets, real, BLOCK_N)
        acc = dot(weights.to(v.dtype), v, acc)
    offsets, exists = _columns(panel % panels * BLOCK_W, rows, stride_or, BLOCK_W, HEAD_DIM, PADDED)
    _store(_at(mixed, head, stride_oh), start, length, stride_ol, offsets, exists, acc, BLOCK_M)


@triton.jit(do_not_specialize=["length", "rows"])
def delta_kernel(
    grad, mixed, delta, stride_gr, stride_gh, stride_gl, stride_or, stride_oh, stride_ol,
    stride_nh, length, rows,
    HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """delta [heads, whole blocks] = sum over rows and channels of grad * mixed."""
    start, head = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    grad, mixed = _at(grad, head, stride_gh), _at(mixed, head, stride_oh)
    acc = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
    for column in tl.range(0, rows * PADDED, BLOCK_W):
        offsets, exists = _columns(column, rows, stride_gr, BLOCK_W, HEAD_DIM, PADDED)
        g = _load(grad, start, length, stride_gl, offsets, exists, BLOCK_M)
        offsets, exists = _columns(column, rows, stride_or, BLOCK_W, HEAD_DIM, PADDED)
        o = _load(mixed, start, length, stride_ol, offsets, exists, BLOCK_M)
        acc += g.to(tl.float32) * o.to(tl.float32)
    query = start + tl.arange(0, BLOCK_M)
    tl.store(delta + head * stride_nh + query, tl.sum(acc, 1))


@triton.jit(do_not_specialize=["length", "rows", "key_value_heads", "group"])
def grad_values_kernel(
    queries, keys, lse, grad, grad_values,
    stride_qh, stride_ql, stride_kh, stride_kl, stride_gr, stride_gh, stride_gl, stride_vr, stride_vh, stride_vl,
    stride_nh, length, rows, key_value_heads, group, scale,
    HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """grad_values = A^T dO, a block of keys and of columns each; the first keys, which most see, first."""
    blocks, panels = tl.cdiv(length, BLOCK_N), tl.cdiv(rows * PADDED, BLOCK_W)
    block, panel = _place(blocks, key_value_heads * panels)
    start, shared = block * BLOCK_N, panel // panels
    channel, exists = _channels(HEAD_DIM, PADDED)
    k = _load(_at(keys, shared, stride_kh), start, length, stride_kl, channel, exists, BLOCK_N)
    offsets, real = _columns(panel % panels * BLOCK_W, rows, stride_gr, BLOCK_W, HEAD_DIM, PADDED)
    acc = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
    steps = tl.cdiv(length - start, BLOCK_M)
    for step in tl.range(0, group * steps):
        head, query = shared * group + step // steps, start + step % steps * BLOCK_M
        q = _load(_at(queries, head, stride_qh), query, length, stride_ql, channel, exists, BLOCK_M)
        n = tl.load(lse + head * stride_nh + query + tl.arange(0, BLOCK_M))
        weights = tl.exp2(dot(k, tl.trans(q)) * scale - n[None, :])
        first_seen = start - query + tl.arange(0, BLOCK_N)
        weights = tl.where(tl.arange(0, BLOCK_M)[None, :] >= first_seen[:, None], weights, 0.0)
        g = _load(_at(grad, head, stride_gh), query, length, stride_gl, offsets, real, BLOCK_M)
        acc = dot(weights.to(g.dtype), g, acc)
    offsets, exists = _columns(panel % panels * BLOCK_W, rows, stride_vr, BLOCK_W, HEAD_DIM, PADDED)
    _store(_at(grad_values, shared, stride_vh), start, length, stride_vl, offsets, exists, acc, BLOCK_N)


@triton.jit(do_not_specialize=["strip_start", "strip_stop", "length", "rows", "group"])
def grad_scores_kernel(
    queries, keys, values, grad, lse, delta, grad_scores,
    stride_qh, stride_ql, stride_kh, stride_kl, stride_vr, stride_vh, stride_vl, stride_gr, stride_gh, stride_gl,
    stride_sh, stride_sl, stride_nh, strip_start, strip_stop, length, rows, group, scale, score_scale,
    HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """grad_scores [heads, whole blocks, strip] = A * (dA - delta) / sqrt(x) of the keys of a strip, a tile each.

    Whole tiles, with zeros above the diagonal and beyond the length, because stores with a mask would not be wide;
    tiles wholly above the diagonal are not written.
    """
    across, down = tl.cdiv(strip_stop - strip_start, BLOCK_N), tl.cdiv(length - strip_start, BLOCK_M)
    program = tl.program_id(0)
    head, place = program // (across * down), program % (across * down)
    query_start, key_start = strip_start + place // across * BLOCK_M, strip_start + place % across * BLOCK_N
    if query_start + BLOCK_M <= key_start:
        return
    grad, values = _at(grad, head, stride_gh), _at(values, head // group, stride_vh)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # Sums that might not be summed to are set to zero beside the loop, for which ptxas would make its products wait.
    width = rows * PADDED
    tl.assume(width > 0)
    for column in tl.range(0, width, BLOCK_W):
        offsets, exists = _columns(column, rows, stride_gr, BLOCK_W, HEAD_DIM, PADDED)
        g = _load(grad, query_start, length, stride_gl, offsets, exists, BLOCK_M)
        offsets, exists = _columns(column, rows, stride_vr, BLOCK_W, HEAD_DIM, PADDED)
        v = _load(values, key_start, length, stride_vl, offsets, exists, BLOCK_N)
        acc = dot(g, tl.trans(v), acc)
    # In halves: beside the scores of a whole tile, too few registers are left for two programs on a multiprocessor.
    HALF: tl.constexpr = BLOCK_N // 2
    left, right = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, HALF)), (0, 2, 1)))
    row, column = tl.arange(0, BLOCK_M), tl.arange(0, HALF)
    n = tl.load(lse + head * stride_nh + query_start + row)
    c = tl.load(delta + head * stride_nh + query_start + row)
    channel, exists = _channels(HEAD_DIM, PADDED)
    q = _load(_at(queries, head, stride_qh), query_start, length, stride_ql, channel, exists, BLOCK_M)
    keys = _at(keys, head // group, stride_kh)
    tile = _at(_at(grad_scores, head, stride_sh), query_start, stride_sl) + row[:, None] * stride_sl
    for half in tl.static_range(2):
        first = key_start + half * HALF
        k = _load(keys, first, length, stride_kl, channel, exists, HALF)
        s = dot(q, tl.trans(k))
        ds = tl.exp2(s * scale - n[:, None]) * ((left if half == 0 else right) - c[:, None]) * score_scale
        ds = tl.where(column[None, :] <= (query_start - first + row)[:, None], ds, 0.0)
        tl.store(tile + (first - strip_start + column)[None, :], ds.to(grad_scores.dtype.element_ty))


@triton.jit(do_not_specialize=["strip_start", "strip_stop", "length", "heads", "group"])
def apply_scores_kernel(
    grad_scores, operand, output, stride_sh, stride_so, stride_si, stride_ih, stride_il, stride_oh, stride_ol,
    strip_start, strip_stop, length, heads, group,
    HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    BY_KEYS: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """output [heads, length, x] in fp32 = (or +=) dS K by blocks of queries, or dS^T Q by blocks of keys (BY_KEYS).

    dS is read with one stride for tokens of the output and one for those of the operand.
    """
    block, head = _place(tl.cdiv((strip_stop if BY_KEYS else length) - strip_start, BLOCK_O), heads)
    start = strip_start + block * BLOCK_O
    token = tl.arange(0, BLOCK_O)
    if BY_KEYS:
        first, stop, output_stop = start, length, strip_stop
        strip = _at(grad_scores, head, stride_sh) - strip_start * stride_so
    else:
        first, stop, output_stop = strip_start, tl.minimum(strip_stop, start + BLOCK_O), length
        strip = _at(grad_scores, head, stride_sh) - strip_start * stride_si
    strip = _at(strip, start, stride_so) + token[:, None] * stride_so
    operand = _at(operand, head // group, stride_ih)
    output = _at(output, head, stride_oh)
    channel, exists = _channels(HEAD_DIM, PADDED)
    acc = tl.zeros([BLOCK_O, PADDED], tl.float32)
    if ACCUMULATE:
        acc += _load(output, start, output_stop, stride_ol, channel, exists, BLOCK_O)
    for inner in tl.range(first, stop, BLOCK_I):
        ds = tl.load(_at(strip, inner, stride_si) + tl.arange(0, BLOCK_I)[None, :] * stride_si)
        x = _load(operand, inner, stop, stride_il, channel, exists, BLOCK_I)
        acc = dot(ds, x, acc)
    _store(output, start, output_stop, stride_ol, channel, exists, acc, BLOCK_O)
