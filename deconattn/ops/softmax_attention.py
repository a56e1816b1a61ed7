"""Standard causal attention behind one door: flash-attn where installed and usable, else PyTorch's SDPA."""

import importlib.util
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from deconattn.ops.documents import Documents


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V with a causal (and document) mask.

    Args:
        queries: [R, heads, L, head_dim].
        keys, values: [R, key_value_heads, L, head_dim]; each serves heads / key_value_heads query heads.

    Returns:
        [R, heads, L, head_dim]. No map is held; with documents and without flash-attn, a boolean [R, 1, L, L]
        mask is, one for all heads and layers.
    """
    if _flash_attention_usable(queries):
        return _flash_attention(queries, keys, values, documents)
    grouped = queries.shape[1] != keys.shape[1]
    if documents is None:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
    if grouped:  # SDPA's fused kernels take a mask or groups, not both
        group = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    return scaled_dot_product_attention(queries, keys, values, attn_mask=documents.causal_mask)


@cache
def _flash_attention_installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _flash_attention_usable(queries: Tensor) -> bool:
    return queries.is_cuda and queries.dtype in (torch.bfloat16, torch.float16) and _flash_attention_installed()


def _flash_attention(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents | None) -> Tensor:
    try:
        from flash_attn import flash_attn_func, flash_attn_varlen_func
    except ImportError as error:
        raise ImportError(f"flash_attn is installed but does not import ({error}): reinstall or remove it") from error

    queries, keys, values = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
    if documents is None:
        return flash_attn_func(queries, keys, values, causal=True).transpose(1, 2)
    rows, length = queries.shape[:2]
    offsets, longest = documents.cumulative_lengths, documents.longest
    packed = (tensor.flatten(0, 1) for tensor in (queries, keys, values))
    mixed = flash_attn_varlen_func(*packed, offsets, offsets, longest, longest, causal=True)
    return mixed.unflatten(0, (rows, length)).transpose(1, 2)
