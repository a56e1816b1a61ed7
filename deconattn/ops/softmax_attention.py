"""Standard causal attention behind one door: flash-attn where installed, PyTorch's fused kernels otherwise."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from deconattn.ops import flash, plain, reference
from deconattn.ops.backend import backend_for
from deconattn.ops.blockwise import attention as blockwise
from deconattn.ops.documents import Documents
from deconattn.ops.precision import outside_autocast

_HOPPER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
SHORT = 256
"""Tokens up to which PyTorch's own kernel is faster than blocks on a CPU."""


@outside_autocast("queries", "keys", "values")
def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V with a causal (and document) mask.

    Args:
        queries: [R, heads, L, head_dim].
        keys: [R, key_value_heads, L, head_dim]; each serves heads / key_value_heads query heads.
        values: [R, key_value_heads, L, x].

    Returns:
        [R, heads, L, x]. No map is held, but for document masks in fp32 on a GPU: there a boolean
        [R, 1, L, L] is, one for all heads, and for all layers that are not compiled.
    """
    if backend_for(values) == "reference":
        return reference.softmax_attention(queries, keys, values, None if documents is None else documents.ids)
    if values.shape[3] != queries.shape[3]:
        if not queries.is_cuda and queries.requires_grad and not torch.compiler.is_compiling():
            return blockwise.softmax_attention(queries, keys, values, None if documents is None else documents.ids)
        # Fused kernels, which hold no map, want one width.
        mixed = causal_attention(*plain.of_one_width(queries, keys, values), documents)
        return mixed[..., : values.shape[3]]
    package = flash.package(queries)
    if documents is not None:
        return _within_documents(queries, keys, values, documents, package)
    if package:
        mixed = flash.attention(package, *(tensor.transpose(1, 2) for tensor in (queries, keys, values)))
        return mixed.transpose(1, 2)
    if queries.is_cuda and queries.dtype == torch.float32:
        # SDPA's only fused kernel for it takes no groups: the map of every head would be held.
        keys, values = (reference.per_query_head(shared, queries.shape[1]) for shared in (keys, values))
    grouped = queries.shape[1] != keys.shape[1]
    if not queries.is_cuda:
        if queries.requires_grad and queries.shape[2] > SHORT and not torch.compiler.is_compiling():
            return blockwise.softmax_attention(queries, keys, values)
    elif flash.generation(queries.device.index or 0) >= 9:
        with sdpa_kernel(_HOPPER, set_priority=True):
            return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
    return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)


def _within_documents(
    queries: Tensor, keys: Tensor, values: Tensor, documents: Documents, package: str | None
) -> Tensor:
    if flash.packs(queries):
        rows, length = queries.shape[0], queries.shape[2]
        q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (queries, keys, values))
        packed_attention = partial(flash.packed_attention, package) if package else flash.pytorch_packed_attention
        # The rows' length bounds the documents'; to know the longest would be to wait for the GPU.
        mixed = packed_attention(q, k, v, documents.cumulative_lengths, length)
        return mixed.unflatten(0, (rows, length)).transpose(1, 2)
    if not queries.is_cuda:
        return blockwise.softmax_attention(queries, keys, values, documents.ids)
    group = queries.shape[1] // keys.shape[1]
    if group > 1:  # SDPA's fused kernels take a mask or groups, not both
        keys, values = (reference.per_query_head(shared, queries.shape[1]) for shared in (keys, values))
    return scaled_dot_product_attention(queries, keys, values, attn_mask=documents.causal_mask)
