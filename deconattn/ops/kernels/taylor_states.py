"""Taylor attention over states (approximate; paper, equation 6): linear in L, for sequences that are long.

The mathematics is that of :mod:`deconattn.ops.blockwise.taylor_states`: a chunk of tokens mixes by tiles of its own
map, and reads everything before it in a state: the sums S of k_a k_b v over earlier keys, and those of lower order.
A state has both orders of a pair (a, b), so one layout serves the four ways to read it. With G = sum k k^T, z1 = sum k
and n earlier keys (factors of 1 / sqrt(head_dim) aside), g = do / z, c = do.o / z,

    forward     o += 1/2 sum_ab q_a q_b S_ab            z += n + q.z1 + 1/2 q.G q
    backward    dq += sum_a q_a (S_a g)                 dq -= c (z1 + G q)
                dv += 1/2 sum_ab k_a k_b T_ab           where T sums q_a q_b g over later queries, whose
                dk += sum_a k_a (T_a v)                 H = -sum c q q^T and h1 = -sum c q give dk += h1 + H k

Each is a chain sum_a (x_a Y) B_a of tensor-core products: Y a tile of tokens in registers, x_a one dimension of it
(read from a transposed copy, where tokens lie side by side: in q each is a cache line of its own), B_a a slab
[head_dim, head_dim]. Features are never stored. States are made likewise, S_a = (k_a V)^T K. In o, dv and the states,
where (a, b) and (b, a) say the same, halves of the dimensions save a quarter: lower a with all b, upper a with upper b.

A program owns a few dimensions a of one key head's states, keeps them in registers along the whole sequence and
writes them, rounded, at every chunk: no scan over chunks, no atomics. The backward pass makes the states again, one
direction after the other; only q, k, v, o and z are saved.

Work, in multiples of head_dim^3 multiply-adds a token and query head: the states 3/4 and their reading 3/4; backward
3/4 + 1 for dq, 3/4 + 3/4 + 1 for dv and dk: 5.75. Tiles within a chunk of `chunk_length`: 10 products of
head_dim^2 / 8 keys each, 1.25. The memory traffic beside inputs and outputs is each state written once and read once
from memory (by the tiles of a chunk from the L2 cache: 32 bytes a clock and multiprocessor if tensor cores never
waited, half of which is expected), 8 head_dim bytes a token each way.

Precision. Products of pairs and states are rounded to bf16 and summed in fp32. A weight that the terms of s^2 cancel
to is known to 2^-9 of the terms: where keys share a mean of their own size the output is within 2e-3 of the formula's,
with a mean 3 times their size within 8e-3. States in fp32 would help little, as the products are rounded as well, and
all in tf32 costs half the speed. fp16 cannot hold sums of products of three, nor gradients over normalisers: it
computes in bf16. fp32 computes as :func:`deconattn.ops.kernels.products.dot` says.
"""

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from deconattn.ops.blockwise import taylor_states as blockwise
from deconattn.ops.blockwise.tiles import Visibility
from deconattn.ops.kernels.fallback import Door
from deconattn.ops.kernels.gpu import SPACIOUS, Gpu, gpu_of, launch_options
from deconattn.ops.kernels.taylor_read_programs import (
    grad_keys_program,
    grad_queries_program,
    grad_values_program,
    output_program,
)
from deconattn.ops.kernels.taylor_states_programs import columns_program, states_program, upstream_program
from deconattn.ops.kernels.tensor_layout import padded_width, token_major, unit_stride


@dataclass(frozen=True)
class States:
    """Launch parameters of the states: dimensions `a` a program, and tokens a step."""

    dims: int
    tile: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tile:
    """Launch parameters of a program for `tile` tokens, which meets those of its chunk `block` at a time."""

    tile: int
    block: int
    warps: int
    stages: int
    registers: int | None = None
    """Most registers a thread may use: 128 lets two programs of 8 warps share a multiprocessor."""


@dataclass(frozen=True)
class Launch:
    """Tokens of a chunk, and the programs' parameters."""

    chunk: int
    states: States
    output: Tile
    grad_queries: Tile
    grad_keys: Tile
    grad_values: Tile


def chunk_length(head_dim: int) -> int:
    """head_dim^2 / 4 tokens: head_dim^3 numbers of a state are then 4 head_dim a token, as much as q, k, v and o, and
    a token mixes with head_dim^2 / 8 others in its chunk, a sixth of the work of reading a state."""
    return max(128, padded_width(head_dim) ** 2 // 4)


def _alike(chunk: int, states: States, tile: Tile, two_maps: Tile | None = None) -> Launch:
    """`two_maps` where a program has the tile of q.k and that of g.v."""
    return Launch(chunk, states, tile, two_maps or tile, two_maps or tile, tile)


_STATES = States(4, 64, 4, 3)
_TILE, _SHORT = Tile(128, 64, 8, 3, 128), Tile(128, 32, 8, 3, 128)
CANDIDATES = (
    _alike(1024, _STATES, _TILE, _SHORT),
    _alike(1024, States(8, 32, 8, 3), _TILE, _SHORT),
    _alike(1024, _STATES, Tile(128, 64, 8, 3)),
    _alike(1024, _STATES, Tile(256, 32, 16, 3, 128)),
    _alike(2048, _STATES, _TILE, _SHORT),
)
"""Launch parameters worth timing at head_dim 64 in bf16 on sm_90, the chosen one first."""

COPY_TILE = 64


def launch_parameters(head_dim: int, dtype: torch.dtype, gpu: Gpu) -> Launch:
    """Chosen by arithmetic alone: a run's numbers must not depend on what was fastest on the day.

    Tiles are as long as registers allow, since each reads all slabs of its state. `dtype` is that of products.
    """
    chunk, spacious = chunk_length(head_dim), gpu in SPACIOUS
    if dtype == torch.float32:
        states = States(1, 32, 4, 2)
        if gpu is Gpu.OTHER and padded_width(head_dim) == 128:
            states = States(1, 16, 8, 2)  # 4 warps would spill 17 KB a thread on sm_80
        if spacious:
            states = States(1, 32, 8, 2) if padded_width(head_dim) == 128 else States(2, 32, 4, 2)
        return _alike(chunk, states, Tile(64, 32, 8, 2) if spacious else Tile(32, 16, 8, 2))
    if padded_width(head_dim) == 128:
        # With two maps 64 tokens would spill 600 bytes a thread on sm_80.
        two_maps = Tile(32, 32, 8, 2) if gpu is Gpu.OTHER else None
        launch = _alike(chunk, States(2, 32, 8, 2), Tile(128 if spacious else 64, 32, 8, 2), two_maps)
    elif spacious:
        return replace(CANDIDATES[0], chunk=chunk)
    else:
        launch = _alike(chunk, States(4, 32, 4, 3), Tile(128, 64, 8, 2))
    if gpu is Gpu.AMD:  # whose next blocks would wait in registers: 344 to 796 bytes a thread spilled
        return replace(launch, grad_keys=replace(launch.grad_keys, stages=1))
    return launch


def taylor_states_attention(
    queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None
) -> Tensor:
    """o_i = sum_{j<=i} w_ij v_j / sum_{j<=i} w_ij with w = 1 + s + s^2/2, s = q.k / sqrt(head_dim).

    Args:
        queries: [R, heads, L, head_dim], bf16, fp16 or fp32; any strides. head_dim is up to 128.
        keys, values: [R, key_value_heads, L, head_dim]; query head h reads head h // (heads // key_value_heads).
        document_ids: int64 [R, L], non-decreasing along a row, or None; mixing stays within a document.

    Returns:
        [R, heads, L, head_dim] in the values' dtype, a view of [R, L, heads, head_dim] memory.
    """
    return _taylor_states(queries, keys, values, document_ids)[0]


_DOOR = Door("Taylor attention over states", blockwise.passes)


@torch.library.custom_op("deconattn::taylor_states", mutates_args=())
def _taylor_states(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    mixed, normalisers = _DOOR.forward(forward, _empty_outputs, queries, keys, values, document_ids)
    return mixed, normalisers


@torch.library.custom_op("deconattn::taylor_states_backward", mutates_args=())
def _taylor_states_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    normalisers: Tensor,
    document_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    of_queries, of_keys, of_values = _DOOR.backward(
        backward, _empty_gradients, grad, (queries, keys, values, document_ids), (mixed, normalisers)
    )
    return of_queries, of_keys, of_values


@_taylor_states.register_fake
def _empty_outputs(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    return token_major(queries, values.dtype), queries.new_empty(queries.shape[:-1], dtype=torch.float32)


@_taylor_states_backward.register_fake
def _empty_gradients(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    normalisers: Tensor,
    document_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return token_major(queries), token_major(keys), token_major(values)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    queries, keys, values, document_ids = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(queries, keys, values, *output, document_ids)


def _differentiate(ctx, grad, _grad_normalisers):  # type: ignore[no-untyped-def]
    return *_taylor_states_backward(grad, *ctx.saved_tensors), None


_taylor_states.register_autograd(_differentiate, setup_context=_setup_context)


def forward(
    queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None, launch: Launch | None = None
) -> tuple[Tensor, Tensor]:
    """Mixed values [R, heads, L, head_dim], and z, fp32 [R, heads, L]."""
    rows, heads, length, head_dim = queries.shape
    launch = launch or _chosen(queries, values)
    queries, keys, values = unit_stride(queries), unit_stride(keys), unit_stride(values)
    starts = _starts(document_ids)
    mixed = token_major(queries, values.dtype)
    normalisers = queries.new_empty(queries.shape[:-1], dtype=torch.float32)
    with torch.cuda.device_of(queries):
        dtype = _product_dtype(queries, values)
        states = _states(keys, _columns(keys, dtype), values, None, starts, keys.shape[1], launch, mirror=False)
        tile, columns = launch.output, _columns(queries, dtype)
        output_program[(rows * heads * triton.cdiv(length, tile.tile),)](
            queries,
            keys,
            values,
            columns,
            *states,
            starts,
            mixed,
            normalisers,
            queries.stride(),
            keys.stride(),
            values.stride(),
            columns.stride(1),
            heads,
            heads // keys.shape[1],
            length,
            states[0].shape[1],
            head_dim**-0.5,
            **_constants(tile, launch, head_dim),
        )
    return mixed, normalisers


def backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    normalisers: Tensor,
    document_ids: Tensor | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; `mixed` and `normalisers` are what `forward` returned."""
    rows, heads, length, head_dim = queries.shape
    key_value_heads = keys.shape[1]
    launch = launch or _chosen(queries, values)
    grad, queries, keys, values = unit_stride(grad), unit_stride(queries), unit_stride(keys), unit_stride(values)
    starts = _starts(document_ids)
    grad_queries, grad_keys, grad_values = token_major(queries), token_major(keys), token_major(values)
    dtype = _product_dtype(queries, values)
    with torch.cuda.device_of(queries):
        upstream, delta = _upstream(grad, mixed, normalisers, dtype)
        query_columns, key_columns = _columns(queries, dtype), _columns(keys, dtype)
        states = _states(keys, key_columns, values, None, starts, key_value_heads, launch, mirror=True)
        chunks, tile = states[0].shape[1], launch.grad_queries
        grad_queries_program[(rows * heads * triton.cdiv(length, tile.tile),)](
            queries,
            keys,
            values,
            upstream,
            delta,
            query_columns,
            *states,
            starts,
            grad_queries,
            queries.stride(),
            keys.stride(),
            values.stride(),
            query_columns.stride(1),
            heads,
            heads // key_value_heads,
            length,
            chunks,
            head_dim**-0.5,
            **_constants(tile, launch, head_dim),
        )
        del states  # before the next ones, as large, are made

        states = _states(queries, query_columns, upstream, delta, starts, key_value_heads, launch, mirror=True)
        sizes = (key_columns.stride(1), key_value_heads, heads // key_value_heads, length, chunks, head_dim**-0.5)
        tile = launch.grad_keys
        grad_keys_program[(rows * key_value_heads * triton.cdiv(length, tile.tile),)](
            queries,
            keys,
            values,
            upstream,
            delta,
            key_columns,
            *states,
            starts,
            grad_keys,
            queries.stride(),
            keys.stride(),
            values.stride(),
            *sizes,
            **_constants(tile, launch, head_dim),
        )
        tile = launch.grad_values
        grad_values_program[(rows * key_value_heads * triton.cdiv(length, tile.tile),)](
            queries,
            keys,
            upstream,
            key_columns,
            *states,
            starts,
            grad_values,
            queries.stride(),
            keys.stride(),
            *sizes,
            **_constants(tile, launch, head_dim),
        )
    return grad_queries, grad_keys, grad_values


def _states(
    x: Tensor,
    columns: Tensor,
    y: Tensor,
    weight: Tensor | None,
    starts: Tensor | None,
    heads: int,
    launch: Launch,
    mirror: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """states, moments and sums of each key head and chunk; in reverse where there are weights."""
    rows, length, head_dim = x.shape[0], x.shape[2], x.shape[3]
    width, chunks = padded_width(head_dim), triton.cdiv(length, launch.chunk)
    lines = rows * heads
    states = columns.new_empty(lines, chunks, width, width, width)
    moments = columns.new_empty(lines, chunks, 2, width, width)
    sums = columns.new_empty(lines, chunks, 2, width, dtype=torch.float32)
    if chunks > 1:
        tile = launch.states
        states_program[(lines * (triton.cdiv(head_dim, tile.dims) + 2),)](
            x,
            columns,
            y,
            weight,
            states,
            moments,
            sums,
            starts,
            x.stride(),
            y.stride(),
            columns.stride(1),
            heads,
            x.shape[1] // heads,
            length,
            chunks,
            **_constants(tile, launch, head_dim),
            REVERSE=weight is not None,
            MIRROR=mirror,
        )
    return states, moments, sums


def _columns(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [R, heads, L, head_dim] as [R * heads, head_dim, L], rows of L padded to whole cache sectors."""
    rows, heads, length, head_dim = x.shape
    columns = x.new_empty(rows * heads, head_dim, (length + 15) // 16 * 16, dtype=dtype)
    columns_program[(rows * heads * triton.cdiv(length, COPY_TILE),)](
        x,
        columns,
        x.stride(),
        heads,
        length,
        columns.stride(1),
        HEAD_DIM=head_dim,
        WIDTH=padded_width(head_dim),
        TILE=COPY_TILE,
    )
    return columns


def _upstream(grad: Tensor, mixed: Tensor, normalisers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """g = do / z, [R, heads, L, head_dim], and c = do.o / z, fp32 [R, heads, L]."""
    rows, heads, length, head_dim = grad.shape
    upstream = grad.new_empty(grad.shape, dtype=dtype)
    delta = torch.empty_like(normalisers)
    upstream_program[(rows * heads * triton.cdiv(length, COPY_TILE),)](
        grad,
        mixed,
        normalisers,
        upstream,
        delta,
        grad.stride(),
        mixed.stride(),
        heads,
        length,
        HEAD_DIM=head_dim,
        WIDTH=padded_width(head_dim),
        TILE=COPY_TILE,
    )
    return upstream, delta


def _constants(tile: States | Tile, launch: Launch, head_dim: int) -> dict[str, object]:
    constants: dict[str, object] = {
        "HEAD_DIM": head_dim,
        "WIDTH": padded_width(head_dim),
        "CHUNK": launch.chunk,
        "TILE": tile.tile,
        "STAGES": tile.stages,
    }
    if isinstance(tile, States):
        return constants | {"DIMS": tile.dims} | launch_options(tile.warps)
    return constants | {"BLOCK": tile.block} | launch_options(tile.warps, registers=tile.registers)


def _chosen(queries: Tensor, values: Tensor) -> Launch:
    return launch_parameters(queries.shape[-1], _product_dtype(queries, values), gpu_of(queries))


def _product_dtype(queries: Tensor, values: Tensor) -> torch.dtype:
    return torch.float32 if torch.float32 in (queries.dtype, values.dtype) else torch.bfloat16


def _starts(document_ids: Tensor | None) -> Tensor | None:
    starts = None if document_ids is None else Visibility.of(document_ids.shape[1], document_ids).starts
    return None if starts is None else starts.to(torch.int32)
