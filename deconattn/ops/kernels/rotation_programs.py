"""Program of :mod:`deconattn.ops.kernels.rotation`: some tokens of a row and head each, queries' and keys' alike."""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def rotation_kernel(
    queries, keys, cos, sin, of_queries, of_keys,
    queries_strides, keys_strides, cos_strides, sin_strides, of_queries_strides, of_keys_strides,
    heads, key_heads, length,
    HALF: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    # Heads first, so that programs at work together read the same cosines.
    all_heads = heads + key_heads
    head = tl.program_id(0) % all_heads
    blocks = tl.cdiv(length, BLOCK)
    block = tl.program_id(0) // all_heads % blocks
    row = (tl.program_id(0) // all_heads // blocks).to(tl.int64)
    tokens = (block * BLOCK + tl.arange(0, BLOCK))[:, None].to(tl.int64)
    channels = tl.arange(0, WIDTH)[None, :]
    inside = (tokens < length) & (channels < HALF)
    c = tl.load(cos + row * cos_strides[0] + tokens * cos_strides[2] + channels, mask=inside, other=0).to(tl.float32)
    s = tl.load(sin + row * sin_strides[0] + tokens * sin_strides[2] + channels, mask=inside, other=0).to(tl.float32)
    if BACK:
        s = -s
    if head < heads:
        place = queries + row * queries_strides[0] + head * queries_strides[1]
        into = of_queries + row * of_queries_strides[0] + head * of_queries_strides[1]
        _rotate(place, queries_strides[2], into, of_queries_strides[2], c, s, tokens, channels, inside, HALF)
    else:
        place = keys + row * keys_strides[0] + (head - heads) * keys_strides[1]
        into = of_keys + row * of_keys_strides[0] + (head - heads) * of_keys_strides[1]
        _rotate(place, keys_strides[2], into, of_keys_strides[2], c, s, tokens, channels, inside, HALF)


@triton.jit
def _rotate(place, stride, into, into_stride, c, s, tokens, channels, inside, HALF: tl.constexpr):
    here = place + tokens * stride + channels
    there = into + tokens * into_stride + channels
    first = tl.load(here, mask=inside, other=0).to(tl.float32)
    second = tl.load(here + HALF, mask=inside, other=0).to(tl.float32)
    tl.store(there, (first * c - second * s).to(into.dtype.element_ty), mask=inside)
    tl.store(there + HALF, (second * c + first * s).to(into.dtype.element_ty), mask=inside)
