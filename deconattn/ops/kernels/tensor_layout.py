"""Memory layout of the kernels' tensors."""

import torch
import triton
from torch import Tensor


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor, or a copy whose channels are neighbours."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def token_major(like: Tensor, dtype: torch.dtype | None = None, heads: int | None = None) -> Tensor:
    """Empty [.., heads, L, head_dim] in [.., L, heads, head_dim] memory: what follows merges heads without a copy."""
    *rows, own_heads, length, head_dim = like.shape
    return like.new_empty(*rows, length, heads or own_heads, head_dim, dtype=dtype or like.dtype).transpose(-3, -2)


def padded_width(head_dim: int) -> int:
    """Columns of a tile: Triton's come in powers of two, and tensor cores take 16 at least."""
    return max(16, triton.next_power_of_2(head_dim))
