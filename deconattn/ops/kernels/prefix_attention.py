"""Softmax over the prefix with one score a token as streaming kernels (nonapproximate; paper, section 3.1).

    s_j = sum(silu(q_j) * k_j) / sqrt(head_dim),    o_i = sum_{j<=i} exp(s_j) v_j / sum_{j<=i} exp(s_j)

Sums stay within a document. A span of tokens is summed up for the document that it ends in: its largest score m, its
weight z = sum exp(s_j - m) and sum exp(s_j - m) v_j. A program walks the blocks of one head and carries this summary;
within a block the prefixes are a triangular [BLOCK, BLOCK] matrix exp(s_j - m_i) times the values, where m_i is the
running maximum, so no exponent is positive and scores of any size are safe.

Backward, with the log-sum-exp (lse) n_i = m_i + log z_i, delta_i = do_i . o_i and A_ij = exp(s_j - n_i) <= 1:

    dv_j = sum_{i>=j} A_ij do_i,    ds_j = v_j . dv_j - sum_{i>=j} A_ij (do_i . o_i),
    dq_j = ds_j k_j silu'(q_j) / sqrt(head_dim),    dk_j = ds_j silu(q_j) / sqrt(head_dim).

Both sums are exp(s_j - n_j) R_j with R_j = sum_{i>=j} exp(n_j - n_i) [do_i, do_i . o_i], carried from the last block to
the first; n never falls within a document, so these exponents are not positive either. Kept for it are q, k, v, o and
two fp32 numbers a token and head, s and n.

Traffic, in head_dim elements a token and head (and a few fp32 numbers): forward 4 (q, k, v, o), backward 8 (q, k, v,
o, do; dq, dk, dv). Where rows * heads are too few programs for a GPU, the length is cut into segments side by side. A
first kernel then writes their summaries, and with them the scores (or do . o), so that queries, keys and o are still
read once: forward 5, backward 9. Arithmetic for a block of 16 tokens of 64 channels in 16 bits: about 850 instructions
of a warp forward, 1700 backward, where an H100's multiprocessor can issue 2500 and 4900 in its share of the time to
move the block.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from deconattn.ops.blockwise import prefix_average as blockwise
from deconattn.ops.kernels.fallback import Door
from deconattn.ops.kernels.gpu import launch_options
from deconattn.ops.kernels.prefix_attention_programs import (
    backward_kernel,
    forward_kernel,
    summary_back_kernel,
    summary_kernel,
)
from deconattn.ops.kernels.tensor_layout import padded_width, token_major, unit_stride


@dataclass(frozen=True)
class Pass:
    """Launch parameters of one pass: tokens of a block, warps and pipeline stages of a program, and cuts of the length.

    Fewer than `enough` heads (of all rows) a multiprocessor are cut into segments, to about `many` warps a
    multiprocessor.
    """

    block: int
    warps: int
    stages: int
    enough: int = 3
    many: int = 12


@dataclass(frozen=True)
class Launch:
    forward: Pass
    backward: Pass


CANDIDATES = (
    Launch(Pass(block=16, warps=1, stages=3), Pass(block=16, warps=2, stages=2)),
    Launch(Pass(block=16, warps=1, stages=4), Pass(block=16, warps=2, stages=3)),
    Launch(Pass(block=16, warps=1, stages=2), Pass(block=16, warps=4, stages=2)),
    Launch(Pass(block=16, warps=1, stages=3, enough=4, many=16), Pass(block=16, warps=2, stages=2, enough=4, many=16)),
    Launch(Pass(block=16, warps=1, stages=4, enough=2, many=8), Pass(block=16, warps=2, stages=3, enough=2, many=8)),
    Launch(Pass(block=32, warps=2, stages=3), Pass(block=32, warps=4, stages=2)),
    Launch(Pass(block=64, warps=8, stages=2, enough=2, many=16), Pass(block=64, warps=8, stages=2, enough=2, many=16)),
)
"""Launch parameters worth timing at head_dim 64 in 16-bit types, the chosen ones first."""


def launch_parameters(head_dim: int, dtype: torch.dtype) -> Launch:
    """Chosen by arithmetic alone; they fit every GPU from sm_80 on, and AMD's.

    A block of 16 tokens wastes least of its triangle, and a program of one warp waits for no other. Blocks of more
    bytes, and those whose channels are loaded one by one, are spread over more warps: without spilled registers, and
    with 8 warps or more a multiprocessor.
    """
    work = triton.next_power_of_2(head_dim) * dtype.itemsize * (2 if head_dim % 16 else 1)
    return Launch(
        Pass(block=16, warps=max(1, work // 128), stages=3),
        Pass(block=16, warps=min(8, max(1, work // 64)), stages=2),
    )


def prefix_attention(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """o_i = sum_{j<=i} exp(s_j) v_j / sum_{j<=i} exp(s_j) with s_j = sum(silu(q_j) * k_j) / sqrt(head_dim).

    Args:
        queries: [R, heads, L, head_dim], before SiLU; bf16, fp16 or fp32, any strides. head_dim is even, up to 128.
        keys, values: [R, key_value_heads, L, head_dim]; query head h reads head h // (heads // key_value_heads).
        document_ids: int64 [R, L], non-decreasing along a row, or None; the average restarts with each document.

    Returns:
        [R, heads, L, head_dim] in the values' dtype, a view of [R, L, heads, head_dim] memory; gradients likewise.
    """
    return _prefix_attention(queries, keys, values, document_ids)[0]


_DOOR = Door("the prefix average", blockwise.passes)


@torch.library.custom_op("deconattn::prefix_attention", mutates_args=())
def _prefix_attention(
    queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    output, scores, lse = _DOOR.forward(forward, _empty_outputs, queries, keys, values, document_ids)
    return output, scores, lse


@torch.library.custom_op("deconattn::prefix_attention_backward", mutates_args=())
def _prefix_attention_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    scores: Tensor,
    lse: Tensor,
    document_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    of_queries, of_keys, of_values = _DOOR.backward(
        backward, _empty_gradients, grad, (queries, keys, values, document_ids), (output, scores, lse)
    )
    return of_queries, of_keys, of_values


@_prefix_attention.register_fake
def _empty_outputs(
    queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    scores = queries.new_empty(queries.shape[:-1], dtype=torch.float32)
    return token_major(queries, values.dtype), scores, torch.empty_like(scores)


@_prefix_attention_backward.register_fake
def _empty_gradients(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    scores: Tensor,
    lse: Tensor,
    document_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return token_major(queries), token_major(keys), token_major(values)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    queries, keys, values, document_ids = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(queries, keys, values, *output, document_ids)


def _differentiate(ctx, grad, _grad_scores, _grad_lse):  # type: ignore[no-untyped-def]
    *saved, document_ids = ctx.saved_tensors
    return *_prefix_attention_backward(grad, *saved, document_ids), None


_prefix_attention.register_autograd(_differentiate, setup_context=_setup_context)


def forward(
    queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None, launch: Launch | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [R, heads, L, head_dim], and scores and log-sum-exps in base 2, fp32 [R, heads, L]."""
    rows, heads, length, head_dim = queries.shape
    chosen = (launch or launch_parameters(head_dim, queries.dtype)).forward
    segments, segment_length = _cut(queries, chosen)
    queries, keys, values = unit_stride(queries), unit_stride(keys), unit_stride(values)
    documents = None if document_ids is None else document_ids.contiguous()
    output = token_major(queries, values.dtype)
    scores = queries.new_empty(rows, heads, length, dtype=torch.float32)
    lse = torch.empty_like(scores)
    max_scores = weights = sums = None
    grid = (rows * heads * segments,)
    strides = (queries.stride(), keys.stride(), values.stride())
    sizes = (heads, heads // keys.shape[1], length, segments, segment_length, head_dim**-0.5)
    constants = _constants(chosen, head_dim)
    with torch.cuda.device_of(queries):
        if segments > 1:
            max_scores, weights = scores.new_empty(2, rows, heads, segments)
            sums = scores.new_empty(rows, heads, segments, head_dim)
            summary_kernel[grid](
                queries, keys, values, documents, scores, max_scores, weights, sums, *strides, *sizes, **constants
            )  # fmt: skip
        forward_kernel[grid](
            queries, keys, values, documents, scores, lse, output, max_scores, weights, sums,
            *strides, output.stride(), *sizes, **constants,
        )  # fmt: skip
    return output, scores, lse


def backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    scores: Tensor,
    lse: Tensor,
    document_ids: Tensor | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; `output`, `scores` and `lse` are what `forward` returned."""
    rows, heads, length, head_dim = queries.shape
    group = heads // keys.shape[1]
    chosen = (launch or launch_parameters(head_dim, queries.dtype)).backward
    segments, segment_length = _cut(queries, chosen)
    grad, queries, keys, values = unit_stride(grad), unit_stride(queries), unit_stride(keys), unit_stride(values)
    output, scores, lse = unit_stride(output), scores.contiguous(), lse.contiguous()
    documents = None if document_ids is None else document_ids.contiguous()
    grad_queries = token_major(queries)
    grad_keys, grad_values = token_major(queries, keys.dtype), token_major(queries, values.dtype)
    deltas = sums = delta_sums = None
    grid = (rows * heads * segments,)
    constants = _constants(chosen, head_dim)
    with torch.cuda.device_of(queries):
        if segments > 1:
            deltas = torch.empty_like(scores)
            sums = scores.new_empty(rows, heads, segments, head_dim)
            delta_sums = scores.new_empty(rows, heads, segments)
            summary_back_kernel[grid](
                grad, output, documents, lse, deltas, sums, delta_sums,
                grad.stride(), output.stride(), heads, length, segments, segment_length, **constants,
            )  # fmt: skip
        backward_kernel[grid](
            grad, queries, keys, values, output, documents, scores, lse, deltas, sums, delta_sums,
            grad_queries, grad_keys, grad_values,
            grad.stride(), queries.stride(), keys.stride(), values.stride(), output.stride(), grad_queries.stride(),
            heads, group, length, segments, segment_length, head_dim**-0.5, **constants,
        )  # fmt: skip
    return grad_queries, _sum_groups(grad_keys, group), _sum_groups(grad_values, group)


def _cut(queries: Tensor, chosen: Pass) -> tuple[int, int]:
    """Number of segments, and tokens of each (of the last one at most): whole blocks."""
    rows, heads, length, _ = queries.shape
    blocks = triton.cdiv(length, chosen.block)
    processors = _multiprocessors(queries.device)
    if rows * heads >= chosen.enough * processors:
        return 1, blocks * chosen.block
    wanted = max(1, chosen.many * processors // (chosen.warps * rows * heads))
    share = triton.cdiv(blocks, wanted)
    return triton.cdiv(blocks, share), share * chosen.block


def _multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a GPU; elsewhere 4, so that small tensors are cut into segments, too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _constants(chosen: Pass, head_dim: int) -> dict[str, int]:
    return {
        "HEAD_DIM": head_dim,
        "WIDTH": padded_width(head_dim),
        "BLOCK": chosen.block,
        "STAGES": chosen.stages,
        **launch_options(chosen.warps),
    }


def _sum_groups(grad: Tensor, group: int) -> Tensor:
    """[R, heads, L, x] to [R, heads / group, L, x]: of the query heads that share one, summed in fp32."""
    if group == 1:
        return grad
    return grad.transpose(1, 2).unflatten(2, (-1, group)).sum(dim=3).transpose(1, 2)
