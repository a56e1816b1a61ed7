"""Blocks of :mod:`deconattn.ops.ring_attention` by the flash attention that PyTorch carries: half precision on a GPU.

These are the operators under `torch.nn.attention.varlen`, which give the log-sum-exp and take it in the backward pass.
They are no public interface, so that they must give on a GPU what blocks of PyTorch operations give before they are
used there (:func:`deconattn.ops.ring_attention.attend`).
"""

import math

import torch
from torch import Tensor

from deconattn.ops import flash
from deconattn.ops.blockwise.heads import summed_per_key_head
from deconattn.ops.documents import Documents
from deconattn.ops.reference import per_query_head

_WIDEST = 256


def take(queries: Tensor, values: Tensor) -> bool:
    """Whether the operators are made for such queries [R, heads, T, head_dim] and values [.., x]."""
    width = queries.shape[-1]
    return flash.packs(queries) and values.shape[-1] == width and width % 8 == 0 and width <= _WIDEST


def forward(
    queries: Tensor, keys: Tensor, values: Tensor, causal: bool, documents: Documents | None
) -> tuple[Tensor, Tensor]:
    """:func:`deconattn.ops.ring_attention.attend`."""
    shared = (per_query_head(tensor, queries.shape[1]) for tensor in (keys, values))
    packed = (_packed(tensor) for tensor in (queries, *shared))
    mixed, lse, *_ = torch.ops.aten._flash_attention_forward(
        *packed, *_lengths(queries, keys, documents), 0.0, causal, False
    )
    rows = len(queries)
    return _of_rows(mixed, rows), lse.unflatten(1, (rows, -1)).transpose(0, 1) / math.log(2)


def backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    lse: Tensor,
    grad: Tensor,
    causal: bool,
    documents: Documents | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`deconattn.ops.ring_attention.gradients`."""
    shared = (per_query_head(tensor, queries.shape[1]) for tensor in (keys, values))
    packed = (_packed(tensor) for tensor in (grad, queries, *shared, mixed))
    natural = (lse * math.log(2)).transpose(0, 1).flatten(1).contiguous()
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=queries.device)
    unused = torch.empty(0, device=queries.device)
    found = torch.ops.aten._flash_attention_backward(
        *packed, natural, *_lengths(queries, keys, documents), 0.0, causal, no_dropout, unused
    )
    of_queries, of_keys, of_values = (_of_rows(tensor, len(queries)) for tensor in found)
    return of_queries, summed_per_key_head(of_keys, keys.shape[1]), summed_per_key_head(of_values, keys.shape[1])


def _packed(tensor: Tensor) -> Tensor:
    """[R, heads, T, x] -> [R T, heads, x]."""
    return tensor.transpose(1, 2).flatten(0, 1).contiguous()


def _of_rows(packed: Tensor, rows: int) -> Tensor:
    """Undo :func:`_packed`."""
    return packed.unflatten(0, (rows, -1)).transpose(1, 2)


def _lengths(queries: Tensor, keys: Tensor, documents: Documents | None) -> tuple[Tensor, Tensor, int, int]:
    """Return offsets of queries and keys, and bounds of their lengths."""
    lengths = queries.shape[2], keys.shape[2]
    if documents is not None:
        return documents.cumulative_lengths, documents.cumulative_lengths, *lengths
    ends = (torch.arange(len(queries) + 1, dtype=torch.int32, device=queries.device) * length for length in lengths)
    of_queries, of_keys = ends
    return of_queries, of_keys, *lengths
