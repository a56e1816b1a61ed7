"""One softmax map applied to every row of the batch, fused (rndemb, fixedseq).

With A = softmax(Q K^T / sqrt(x)), causal, of one stream and o_r = A V_r of R rows, the rows' values side by side
are one matrix of W = R x columns (column c is channel c % x of row c // x). It is never put together: its columns are
addressed through strides. With s = q.k log2(e) / sqrt(x) and n_i = log2 sum_{j<=i} exp2(s_ij), A_ij = exp2(s_ij - n_i)
needs no running maximum.

    forward    lse: n, by an online softmax without values; then o = A V by blocks of [queries, columns of W]
    backward   delta: c_i = sum_r do_ri . o_ri
               dV = A^T dO by blocks of [keys, columns], summed over the query heads that share the values
               dS = A * (dA - c) / sqrt(x) with dA = sum_r dO_r V_r^T, contracted over all W columns
               dQ = dS K,  dK = dS^T Q, each the work of one row

Arithmetic, in causal products of [L, x] and [x, L] for each head: attention of R separate rows takes 7 R (2 R forward,
5 R backward). Here A V, A^T dO and dA take 3 R; scores are computed again for each block of columns in A V and in
A^T dO (x multiplications beside the block's columns: a quarter more at 256 columns of head_dim 64), and n, dS, dQ and
dK take one each.

dQ sums dS over keys, dK over queries. One kernel by queries and one by keys would each contract dA over W, 4 R in place
of 3 R; atomics would not be deterministic. So dS is written, for a strip of keys at a time, and read twice: 6 bytes in
bf16 for each element, for which the contraction did 2 W operations, more than a GPU does in the time of 6 bytes from
W = 600 on, and less traffic where the strip stays in cache. A strip has as many keys as W has columns (or 512), so dS
takes no more memory than dO, linear in L. dQ is summed over strips and dK over the group's heads in fp32. Kept from
the forward pass are Q, K, V, o and n.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from deconattn.ops.blockwise import fixed_map as blockwise
from deconattn.ops.kernels.fallback import Door
from deconattn.ops.kernels.fixed_map_programs import (
    apply_scores_kernel,
    delta_kernel,
    grad_scores_kernel,
    grad_values_kernel,
    lse_kernel,
    mix_kernel,
)
from deconattn.ops.kernels.gpu import SPACIOUS, Gpu, gpu_of, launch_options
from deconattn.ops.kernels.tensor_layout import padded_width, token_major, unit_stride

WHOLE = 128
"""Multiple to which the queries of lse and delta are padded (one of every tile's queries), lse with infinity, a weight
of zero: a mask on their loads would cost A^T dO more registers than there are."""
NARROWEST_STRIP = 512
"""Fewest keys of a strip of dS: with a row or two it still fills a GPU."""
ENOUGH = 160
"""Programs that keep the 132 multiprocessors of an H100 busy, though the last have less to do than the first."""


@dataclass(frozen=True)
class Tile:
    """One kernel's block, queries by keys and `columns` of W at a time (where it has them), and its launch."""

    queries: int
    keys: int
    columns: int
    warps: int
    stages: int
    registers: int | None = None
    """Most for a thread, where that lets one more program on a multiprocessor."""


@dataclass(frozen=True)
class Launch:
    """The tiles of all kernels, in powers of two.

    `grad_queries` takes queries that are a multiple of its keys and divide both sides of `grad_scores`, `grad_keys`
    keys that are a multiple of its queries and do. No tile has more queries than WHOLE.
    """

    lse: Tile
    mix: Tile
    delta: Tile
    grad_values: Tile
    grad_scores: Tile
    grad_queries: Tile
    grad_keys: Tile


_HOPPER = Launch(
    lse=Tile(queries=64, keys=128, columns=0, warps=4, stages=3),
    mix=Tile(queries=128, keys=64, columns=256, warps=8, stages=3),
    delta=Tile(queries=32, keys=0, columns=128, warps=4, stages=1),
    grad_values=Tile(queries=64, keys=128, columns=256, warps=8, stages=3),
    grad_scores=Tile(queries=128, keys=128, columns=64, warps=8, stages=3, registers=128),
    grad_queries=Tile(queries=64, keys=64, columns=0, warps=4, stages=4),
    grad_keys=Tile(queries=64, keys=64, columns=0, warps=4, stages=4),
)
_AMPERE = Launch(
    lse=Tile(queries=64, keys=64, columns=0, warps=4, stages=3),
    mix=Tile(queries=128, keys=64, columns=128, warps=8, stages=3),
    delta=Tile(queries=32, keys=0, columns=64, warps=4, stages=1),
    grad_values=Tile(queries=32, keys=128, columns=128, warps=8, stages=3),
    grad_scores=Tile(queries=128, keys=64, columns=64, warps=8, stages=3),
    grad_queries=Tile(queries=64, keys=64, columns=0, warps=8, stages=3),
    grad_keys=Tile(queries=64, keys=64, columns=0, warps=8, stages=3),
)
_AMPERE_64K = replace(_AMPERE, mix=replace(_AMPERE.mix, stages=2))
"""Within AMD's 64 KiB at head_dim 128, too."""
_SMALL = Launch(
    lse=Tile(queries=64, keys=32, columns=0, warps=8, stages=2),
    mix=Tile(queries=64, keys=32, columns=64, warps=8, stages=2),
    delta=Tile(queries=32, keys=0, columns=64, warps=4, stages=1),
    grad_values=Tile(queries=32, keys=64, columns=64, warps=8, stages=2),
    grad_scores=Tile(queries=64, keys=64, columns=32, warps=8, stages=2),
    grad_queries=Tile(queries=32, keys=32, columns=0, warps=4, stages=2),
    grad_keys=Tile(queries=32, keys=32, columns=0, warps=4, stages=2),
)
_TINY = Launch(
    lse=Tile(queries=32, keys=16, columns=0, warps=4, stages=2),
    mix=Tile(queries=32, keys=16, columns=64, warps=4, stages=2),
    delta=Tile(queries=32, keys=0, columns=64, warps=4, stages=1),
    grad_values=Tile(queries=16, keys=32, columns=64, warps=4, stages=2),
    grad_scores=Tile(queries=32, keys=32, columns=32, warps=8, stages=2),
    grad_queries=Tile(queries=32, keys=16, columns=0, warps=4, stages=2),
    grad_keys=Tile(queries=16, keys=32, columns=0, warps=4, stages=2),
)
CANDIDATES = (
    _HOPPER,
    replace(_HOPPER, mix=replace(_HOPPER.mix, stages=4), grad_values=replace(_HOPPER.grad_values, stages=4)),
    replace(_HOPPER, grad_scores=Tile(queries=128, keys=256, columns=64, warps=8, stages=3)),
    replace(_HOPPER, grad_values=Tile(queries=32, keys=128, columns=256, warps=8, stages=4)),
    replace(
        _HOPPER,
        mix=Tile(queries=64, keys=64, columns=256, warps=4, stages=2),
        grad_queries=replace(_HOPPER.grad_queries, stages=3),
        grad_keys=replace(_HOPPER.grad_keys, stages=3),
    ),
    _AMPERE,
)
"""Launch parameters worth timing on an H100 at head_dim 64 in 16-bit types, the chosen ones first."""


def launch_parameters(head_dim: int, dtype: torch.dtype, gpu: Gpu) -> Launch:
    """Chosen by what fits registers and shared memory, and by arithmetic.

    The wide products of an H100 take tiles of 128 by 256, so that a multiprocessor needs about 20 bytes a clock from
    its L2 cache; dS takes 128 by 128, so that two programs share a multiprocessor and one computes scores while the
    other contracts. Elsewhere tiles fit the 99 KiB of the smallest GPUs of NVIDIA's, and the 64 of AMD's. A head_dim
    that is no multiple of 16 leaves loads narrow and many registers taken by addresses, and fp32 operands are split in
    two, in registers again.
    """
    narrow = head_dim % 16 != 0
    if dtype == torch.float32:
        return _TINY if narrow or head_dim > 64 else _SMALL
    if narrow:
        return _SMALL
    if gpu is Gpu.AMD and head_dim > 64:
        return _AMPERE_64K
    return _HOPPER if gpu in SPACIOUS else _AMPERE


def fixed_map_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V, the map shared by all rows; differentiable in all three.

    Args:
        queries: [heads, L, head_dim], of the fixed stream; fp32, bf16 or fp16, head_dim even and up to 128.
        keys: [key_value_heads, L, head_dim], of the fixed stream, in the queries' dtype.
        values: [R, key_value_heads, L, head_dim], of every row.

    Returns:
        [R, heads, L, head_dim] in [R, L, heads, head_dim] memory.
    """
    return _fixed_map(queries, keys, values)[0]


_DOOR = Door("the fixed map", blockwise.passes)


@torch.library.custom_op("deconattn::fixed_map", mutates_args=())
def _fixed_map(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    mixed, lse = _DOOR.forward(forward, _empty_outputs, queries, keys, values)
    return mixed, lse


@torch.library.custom_op("deconattn::fixed_map_backward", mutates_args=())
def _fixed_map_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mixed: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    of_queries, of_keys, of_values = _DOOR.backward(
        backward, _empty_gradients, grad, (queries, keys, values), (mixed, lse)
    )
    return of_queries, of_keys, of_values


@_fixed_map.register_fake
def _empty_outputs(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return token_major(values, heads=queries.shape[0]), _empty_lse(queries)


@_fixed_map_backward.register_fake
def _empty_gradients(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mixed: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return token_major(queries), token_major(keys), token_major(values)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _grad_lse: None) -> tuple[Tensor, Tensor, Tensor]:
    return _fixed_map_backward(grad, *ctx.saved_tensors)


_fixed_map.register_autograd(_differentiate, setup_context=_setup_context)


def forward(queries: Tensor, keys: Tensor, values: Tensor, launch: Launch | None = None) -> tuple[Tensor, Tensor]:
    """(mixed [R, heads, L, x], log-sum-exps (lse) in base 2, fp32 [heads, L padded to whole blocks])."""
    heads, length, head_dim = queries.shape
    rows, key_value_heads = values.shape[:2]
    group = heads // key_value_heads
    queries, keys, values = map(unit_stride, (queries, keys, values))
    launch = launch or launch_parameters(head_dim, values.dtype, gpu_of(values))
    mixed, lse = token_major(values, heads=heads), _empty_lse(queries)
    whole = lse.shape[1]
    scale = math.log2(math.e) / math.sqrt(head_dim)
    with torch.cuda.device_of(values):
        tile = launch.lse
        lse_kernel[(whole // tile.queries * heads,)](
            queries, keys, lse, *queries.stride()[:2], *keys.stride()[:2], whole, length, heads, group, scale,
            BLOCK_M=tile.queries, BLOCK_N=tile.keys, **_options(tile, head_dim),
        )  # fmt: skip
        tile, blocks = launch.mix, heads * triton.cdiv(length, launch.mix.queries)
        columns = _columns(tile, rows, head_dim, blocks)
        mix_kernel[(blocks * triton.cdiv(rows * padded_width(head_dim), columns),)](
            queries, keys, values, lse, mixed,
            *queries.stride()[:2], *keys.stride()[:2], *values.stride()[:3], *mixed.stride()[:3],
            whole, length, rows, heads, group, scale,
            BLOCK_M=tile.queries, BLOCK_N=tile.keys, BLOCK_W=columns, **_options(tile, head_dim),
        )  # fmt: skip
    return mixed, lse


def backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    lse: Tensor,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; `mixed` and `lse` are what `forward` returned."""
    heads, length, head_dim = queries.shape
    rows, key_value_heads = values.shape[:2]
    group, whole = heads // key_value_heads, lse.shape[1]
    grad, queries, keys, values = map(unit_stride, (grad, queries, keys, values))
    launch = launch or launch_parameters(head_dim, values.dtype, gpu_of(values))
    scale = 1 / math.sqrt(head_dim)
    scale_2 = math.log2(math.e) * scale
    delta, grad_values = torch.empty_like(lse), token_major(values)
    # [L, heads, x] in fp32: of the queries summed over strips, of the keys one for each query head.
    grad_queries, grad_keys = lse.new_empty(2, length, heads, head_dim)
    strip = _strip(rows, length, head_dim, launch.grad_scores)
    grad_scores = queries.new_empty(heads, whole, strip)
    by_head, by_query, by_key = grad_scores.stride()
    of_token, of_head, _ = grad_queries.stride()
    with torch.cuda.device_of(values):
        tile = launch.delta
        delta_kernel[whole // tile.queries, heads](
            grad, mixed, delta, *grad.stride()[:3], *mixed.stride()[:3], whole, length, rows,
            BLOCK_M=tile.queries, BLOCK_W=_columns(tile, rows, head_dim, ENOUGH), **_options(tile, head_dim),
        )  # fmt: skip
        tile, blocks = launch.grad_values, key_value_heads * triton.cdiv(length, launch.grad_values.keys)
        columns = _columns(tile, rows, head_dim, blocks)
        grad_values_kernel[(blocks * triton.cdiv(rows * padded_width(head_dim), columns),)](
            queries, keys, lse, grad, grad_values,
            *queries.stride()[:2], *keys.stride()[:2], *grad.stride()[:3], *grad_values.stride()[:3],
            whole, length, rows, key_value_heads, group, scale_2,
            BLOCK_M=tile.queries, BLOCK_N=tile.keys, BLOCK_W=columns, **_options(tile, head_dim),
        )  # fmt: skip
        for start in range(0, length, strip):
            stop = min(start + strip, length)
            tile = launch.grad_scores
            tiles = triton.cdiv(length - start, tile.queries) * triton.cdiv(stop - start, tile.keys)
            grad_scores_kernel[(heads * tiles,)](
                queries, keys, values, grad, lse, delta, grad_scores,
                *queries.stride()[:2], *keys.stride()[:2], *values.stride()[:3], *grad.stride()[:3],
                by_head, by_query, whole, start, stop, length, rows, group, scale_2, scale,
                BLOCK_M=tile.queries, BLOCK_N=tile.keys, BLOCK_W=tile.columns, **_options(tile, head_dim),
            )  # fmt: skip
            tile = launch.grad_queries
            apply_scores_kernel[(triton.cdiv(length - start, tile.queries) * heads,)](
                grad_scores, keys, grad_queries, by_head, by_query, by_key, *keys.stride()[:2], of_head, of_token,
                start, stop, length, heads, group,
                BLOCK_O=tile.queries, BLOCK_I=tile.keys, BY_KEYS=False, ACCUMULATE=start > 0,
                **_options(tile, head_dim),
            )  # fmt: skip
            tile = launch.grad_keys
            apply_scores_kernel[(triton.cdiv(stop - start, tile.keys) * heads,)](
                grad_scores, queries, grad_keys, by_head, by_key, by_query, *queries.stride()[:2], of_head, of_token,
                start, stop, length, heads, 1,
                BLOCK_O=tile.keys, BLOCK_I=tile.queries, BY_KEYS=True, ACCUMULATE=False,
                **_options(tile, head_dim),
            )  # fmt: skip
    grad_keys = grad_keys.unflatten(1, (key_value_heads, group)).sum(dim=2)
    return grad_queries.to(queries.dtype).transpose(0, 1), grad_keys.to(keys.dtype).transpose(0, 1), grad_values


def _columns(tile: Tile, rows: int, head_dim: int, blocks: int) -> int:
    """Columns of W at a time: the tile's, or fewer where `blocks` of queries or keys times them are few programs."""
    width = rows * padded_width(head_dim)
    columns = min(tile.columns, triton.next_power_of_2(width))
    while columns > 64 and blocks * triton.cdiv(width, columns) < ENOUGH:
        columns //= 2
    return columns


def _strip(rows: int, length: int, head_dim: int, tile: Tile) -> int:
    """Keys of a strip of dS, in whole tiles."""
    whole = max(tile.queries, tile.keys)
    return triton.cdiv(min(max(rows * head_dim, NARROWEST_STRIP), length), whole) * whole


def _options(tile: Tile, head_dim: int) -> dict[str, int]:
    return {
        "HEAD_DIM": head_dim,
        "PADDED": padded_width(head_dim),
        **launch_options(tile.warps, tile.stages, tile.registers),
    }


def _empty_lse(queries: Tensor) -> Tensor:
    """Empty log-sum-exps, fp32 [heads, L padded to whole blocks]."""
    heads, length, _ = queries.shape
    return queries.new_empty(heads, (length + WHOLE - 1) // WHOLE * WHOLE, dtype=torch.float32)
