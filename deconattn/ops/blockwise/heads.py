"""Heads and rows as the blockwise paths lay them out, and how many are computed at once.

On a CPU that is one head of one row, whose tiles its caches hold; on an accelerator, whose launches cost more than
they compute, all that can go together.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from deconattn.ops.precision import at_least_fp32


def one_at_a_time(device: torch.device) -> bool:
    """Whether heads and rows are computed one by one."""
    return device.type == "cpu"


def row_groups(tensor: Tensor) -> Iterator[slice]:
    """Rows [R, ..] to compute at once."""
    step = 1 if one_at_a_time(tensor.device) else max(1, tensor.shape[0])
    for start in range(0, tensor.shape[0], step):
        yield slice(start, start + step)


def head_groups(heads: int, key_value_heads: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Query heads to compute at once, and the key/value heads that serve them, as many."""
    group = heads // key_value_heads
    if one_at_a_time(device):
        for head in range(heads):
            yield slice(head, head + 1), slice(head // group, head // group + 1)
    else:
        for member in range(group):
            yield slice(member, None, group), slice(None)


def empty_heads(like: Tensor, heads: int) -> Tensor:
    """[R, heads, L, x] for `like` [R, any, L, x], in the memory order [R, L, heads, x] that projections read."""
    rows, _, length, width = like.shape
    return like.new_empty(rows, length, heads, width).transpose(1, 2)


def zero_gradient(shared: Tensor, heads: int) -> Tensor:
    """Zeros to add the gradients of keys or values [.., key_value_heads, L, x] to, in fp32 where several are added."""
    return torch.zeros_like(shared if heads == shared.shape[-3] else at_least_fp32(shared))


def per_query_head(shared: Tensor, heads: int) -> Tensor:
    """[R, key_value_heads, L, x] -> [R, heads, L, x]: each key or value head beside the queries that it serves."""
    group = heads // shared.shape[1]
    return shared if group == 1 else shared.repeat_interleave(group, dim=1)


def summed_per_key_head(gradient: Tensor, key_value_heads: int) -> Tensor:
    """The transpose of :func:`per_query_head`."""
    if gradient.shape[1] == key_value_heads:
        return gradient
    return gradient.unflatten(1, (key_value_heads, -1)).sum(dim=2)
