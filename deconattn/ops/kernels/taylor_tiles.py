"""Taylor attention over tiles of its map (approximate; paper, equation 6): quadratic, for sequences that are short.

With s_ij = q_i . k_j / sqrt(head_dim) and pairs (i, j) of one document with j <= i,

    w_ij = 1 + s_ij + s_ij^2 / 2 = t_ij^2 + 1/2  where  t_ij = (1 + s_ij) / sqrt(2),
    z_i = sum_j w_ij,    o_i = sum_j w_ij v_j / z_i.

Tiles of w live in registers only, as in FlashAttention-2, but w >= 1/2 needs no exponential, no running maximum and
no rescaling: a weight costs two fused multiply-adds and the addition to z. The forward pass keeps q, k, v, o and 1/z.
The backward pass, with c_i = do_i . o_i / z_i, is

    dv_j = sum_i (w_ij / z_i) do_i,    ds_ij = (do_i . v_j / z_i - c_i) (1 + s_ij) / sqrt(head_dim),
    dq_i = sum_j ds_ij k_j,            dk_j = sum_i ds_ij q_i,

in two kernels, so that every sum has one owner and the same inputs give the same bits: one by blocks of queries
(dq, and c on the way), one by blocks of keys (dk and dv, all query heads of a key head in turn).

A pair costs 4 head_dim floating-point operations forward and 6 + 8 backward on tensor cores (5 of these 7 products
would do with atomic additions), beside 3.5 and 3.5 + 6 instructions on plain cores: at head_dim 64 less than half
the tensor cores' time. Memory traffic is that of the inputs and outputs; keys and values (queries and gradients) are
read again by every block of queries (keys), from the L2 cache because neighbouring programs share a head.

Document ids do not decrease along a row, so a document is a span: a query sees the keys from its document's start,
tiles outside the spans are never visited, and only tiles on a span's edge are masked.
"""

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from deconattn.ops.blockwise import attention as blockwise
from deconattn.ops.kernels.fallback import Door
from deconattn.ops.kernels.gpu import Gpu, gpu_of, launch_options
from deconattn.ops.kernels.taylor_tiles_programs import by_keys_kernel, by_queries_kernel, forward_kernel
from deconattn.ops.kernels.tensor_layout import padded_width, token_major, unit_stride


@dataclass(frozen=True)
class Tile:
    """One kernel's tile of the map and launch parameters."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None
    """Most registers a thread, where that lets two programs share a multiprocessor; None for as many as it takes."""


@dataclass(frozen=True)
class Launch:
    """The three kernels' tiles: forward, by queries (dq), by keys (dk and dv)."""

    forward: Tile
    by_queries: Tile
    by_keys: Tile


CANDIDATES = (
    Launch(Tile(128, 64, 8, 3, registers=128), Tile(128, 64, 8, 3, registers=128), Tile(64, 128, 8, 3)),
    Launch(Tile(128, 128, 8, 2, registers=128), Tile(64, 128, 8, 2), Tile(64, 128, 8, 2)),
    Launch(Tile(128, 64, 4, 3), Tile(128, 64, 8, 3), Tile(32, 128, 8, 3)),
    Launch(Tile(64, 64, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 3)),
)
"""Launch parameters worth timing for 16-bit types and head_dim up to 64 on sm_90, the chosen ones first.

At 600 TFLOP/s, programs of 64 queries would read keys and values from the L2 cache at 9 TB/s, more than it gives;
128 queries halve that. 128 registers let two programs of 256 threads share a multiprocessor: one's sums on plain
cores run beside the other's products. By keys the two sums alone take half of the 255 registers, so one program runs
and a third stage hides the cache's latency.
"""
_HOPPER_WIDE = Launch(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(32, 128, 8, 3))
_OTHER = Launch(Tile(128, 64, 8, 3, registers=128), Tile(64, 64, 4, 2), Tile(32, 128, 8, 2))
_OTHER_WIDE = Launch(Tile(64, 64, 4, 2), Tile(64, 64, 8, 1), Tile(32, 64, 8, 2))
_FP32 = Launch(Tile(64, 32, 4, 2), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1))
_FP32_WIDE = Launch(Tile(32, 32, 8, 1), Tile(16, 32, 8, 1), Tile(32, 16, 8, 1))


def launch_parameters(head_dim: int, dtype: torch.dtype, gpu: Gpu) -> Launch:
    """Constants, found by arithmetic and by what the compiler makes of them (shared memory, registers, no spills).

    A run's numbers must not depend on what was fastest on the day. Off sm_90, 64 KiB of shared memory are enough.
    """
    wide = head_dim > 64
    if dtype == torch.float32:
        return _FP32_WIDE if wide else _FP32
    if gpu is Gpu.HOPPER:
        return _HOPPER_WIDE if wide else CANDIDATES[0]
    if gpu is Gpu.AMD and wide:  # by keys 32 queries would spill 548 bytes a thread
        return replace(_OTHER_WIDE, by_keys=Tile(16, 64, 8, 2))
    return _OTHER_WIDE if wide else _OTHER


def taylor_tiles_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """o_i = sum_{j<=i} w_ij v_j / sum_{j<=i} w_ij with w = 1 + s + s^2/2, s = q.k / sqrt(head_dim).

    Args:
        queries: [R, heads, L, head_dim], bf16, fp16 or fp32; any strides. head_dim is even, up to 128.
        keys, values: [R, key_value_heads, L, head_dim]; query head h reads head h // (heads // key_value_heads).
        document_ids: int64 [R, L], non-decreasing along a row, or None; mixing stays within a document.

    Returns:
        [R, heads, L, head_dim], a view of [R, L, heads, head_dim] memory; gradients have the same layout.
    """
    return _taylor_tiles(queries, keys, values, document_ids)[0]


_DOOR = Door("Taylor attention over tiles", blockwise.taylor_passes)


@torch.library.custom_op("deconattn::taylor_tiles", mutates_args=())
def _taylor_tiles(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    mixed, shares = _DOOR.forward(forward, _empty_outputs, queries, keys, values, document_ids)
    return mixed, shares


@torch.library.custom_op("deconattn::taylor_tiles_backward", mutates_args=())
def _taylor_tiles_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    shares: Tensor,
    document_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    of_queries, of_keys, of_values = _DOOR.backward(
        backward, _empty_gradients, grad, (queries, keys, values, document_ids), (mixed, shares)
    )
    return of_queries, of_keys, of_values


@_taylor_tiles.register_fake
def _empty_outputs(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    return token_major(queries, values.dtype), queries.new_empty(queries.shape[:-1], dtype=torch.float32)


@_taylor_tiles_backward.register_fake
def _empty_gradients(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    shares: Tensor,
    document_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return token_major(queries), token_major(keys), token_major(values)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    queries, keys, values, document_ids = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(queries, keys, values, *output, document_ids)


def _differentiate(ctx, grad, _grad_shares):  # type: ignore[no-untyped-def]
    queries, keys, values, mixed, shares, document_ids = ctx.saved_tensors
    return *_taylor_tiles_backward(grad, queries, keys, values, mixed, shares, document_ids), None


_taylor_tiles.register_autograd(_differentiate, setup_context=_setup_context)


def forward(
    queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None, launch: Launch | None = None
) -> tuple[Tensor, Tensor]:
    """Mixed values [R, heads, L, head_dim], and 1/z, fp32 [R, heads, L]."""
    rows, heads, length, head_dim = queries.shape
    tile = (launch or _chosen(queries, values)).forward
    queries, keys, values = unit_stride(queries), unit_stride(keys), unit_stride(values)
    mixed = token_major(queries, values.dtype)
    shares = queries.new_empty(queries.shape[:-1], dtype=torch.float32)
    with torch.cuda.device_of(queries):
        forward_kernel[(rows * heads * triton.cdiv(length, tile.queries),)](
            queries,
            keys,
            values,
            _bounds(document_ids, ends=False),
            mixed,
            shares,
            queries.stride(),
            keys.stride(),
            values.stride(),
            mixed.stride(),
            heads,
            heads // keys.shape[1],
            length,
            head_dim**-0.5,
            **_constants(tile, head_dim, document_ids),
        )
    return mixed, shares


def backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    shares: Tensor,
    document_ids: Tensor | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; `mixed` and `shares` are what `forward` returned."""
    rows, heads, length, head_dim = queries.shape
    key_value_heads = keys.shape[1]
    launch = launch or _chosen(queries, values)
    queries, keys, values = unit_stride(queries), unit_stride(keys), unit_stride(values)
    grad, mixed, shares = unit_stride(grad), unit_stride(mixed), shares.contiguous()
    grad_queries, grad_keys, grad_values = token_major(queries), token_major(keys), token_major(values)
    deltas = torch.empty_like(shares)
    with torch.cuda.device_of(queries):
        by_queries_kernel[(rows * heads * triton.cdiv(length, launch.by_queries.queries),)](
            queries,
            keys,
            values,
            _bounds(document_ids, ends=False),
            grad,
            mixed,
            shares,
            deltas,
            grad_queries,
            queries.stride(),
            keys.stride(),
            values.stride(),
            grad.stride(),
            mixed.stride(),
            grad_queries.stride(),
            heads,
            heads // key_value_heads,
            length,
            head_dim**-0.5,
            **_constants(launch.by_queries, head_dim, document_ids),
        )
        by_keys_kernel[(rows * key_value_heads * triton.cdiv(length, launch.by_keys.keys),)](
            queries,
            keys,
            values,
            _bounds(document_ids, ends=True),
            grad,
            shares,
            deltas,
            grad_keys,
            grad_values,
            queries.stride(),
            keys.stride(),
            values.stride(),
            grad.stride(),
            grad_keys.stride(),
            grad_values.stride(),
            key_value_heads,
            heads // key_value_heads,
            length,
            head_dim**-0.5,
            **_constants(launch.by_keys, head_dim, document_ids),
        )
    return grad_queries, grad_keys, grad_values


def _chosen(queries: Tensor, values: Tensor) -> Launch:
    return launch_parameters(queries.shape[-1], torch.promote_types(queries.dtype, values.dtype), gpu_of(queries))


def _constants(tile: Tile, head_dim: int, document_ids: Tensor | None) -> dict[str, object]:
    width = padded_width(head_dim)
    return {
        "HEAD_DIM": head_dim,
        "WIDTH": width,
        "QUERIES": tile.queries,
        "KEYS": tile.keys,
        "DOCUMENTS": document_ids is not None,
        # Masks of padding take more registers.
        **launch_options(tile.warps, tile.stages, tile.registers if width == head_dim else None),
    }


def _bounds(document_ids: Tensor | None, ends: bool) -> Tensor | None:
    """int32 [R, L]: the first token of each token's document, or the first token after it."""
    if document_ids is None:
        return None
    document_ids = document_ids.contiguous()
    return torch.searchsorted(document_ids, document_ids, out_int32=True, right=ends)
