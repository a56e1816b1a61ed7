"""Heads and rows as the blockwise paths lay them out, and how many are computed at once.

On a CPU that is one head of one row, whose tiles its caches hold; on an accelerator, whose launches cost more than
they compute, all that can go together.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deconattn.ops.precision import at_least_fp32

BF16_HEADS = 4
"""Heads at once on a CPU in bf16."""


def one_at_a_time(device: torch.device) -> bool:
    """Whether heads and rows are computed one by one."""
    return device.type == "cpu"


def row_groups(tensor: Tensor) -> Iterator[slice]:
    """Rows [R, ..] to compute at once."""
    step = 1 if one_at_a_time(tensor.device) else max(1, tensor.shape[0])
    for start in range(0, tensor.shape[0], step):
        yield slice(start, start + step)


class HeadGroup(NamedTuple):
    """Query heads to compute at once, and the key/value heads that serve them, as many.

    Attributes:
        first: whether these key/value heads have served none before.
    """

    heads: slice
    shared: slice
    first: bool


def head_groups(heads: int, key_value_heads: int, like: Tensor) -> Iterator[HeadGroup]:
    """All heads, on a CPU one at a time in fp32, whose products oneDNN then takes, and in bf16 a few."""
    group = heads // key_value_heads
    at_once = key_value_heads
    if one_at_a_time(like.device):
        at_once = BF16_HEADS if like.dtype == torch.bfloat16 else 1
    for start in range(0, key_value_heads, at_once):
        stop = min(start + at_once, key_value_heads)
        for member in range(group):
            yield HeadGroup(slice(start * group + member, stop * group, group), slice(start, stop), member == 0)


def empty_heads(like: Tensor, heads: int) -> Tensor:
    """[R, heads, L, x] for `like` [R, any, L, x], in the memory order [R, L, heads, x] that projections read."""
    rows, _, length, width = like.shape
    return like.new_empty(rows, length, heads, width).transpose(1, 2)


def empty_gradient(shared: Tensor, heads: int) -> Tensor:
    """Empty gradient of keys or values [.., key_value_heads, L, x], in at least fp32 where several are added."""
    return torch.empty_like(shared if heads == shared.shape[-3] else at_least_fp32(shared))


def accumulate(total: Tensor, gradient: Tensor, first: bool) -> None:
    """Add to a part of an :func:`empty_gradient`, or begin with it."""
    total.copy_(gradient) if first else total.add_(gradient)


def inner_products(grad: Tensor, mixed: Tensor) -> Tensor:
    """grad . mixed of each row, head and token, [R, N, L, x] -> [R, N, L] in at least fp32."""
    products = at_least_fp32(grad).new_empty(grad.shape[:-1])
    for rows in row_groups(grad):
        torch.linalg.vecdot(at_least_fp32(grad[rows]), at_least_fp32(mixed[rows]), out=products[rows])
    return products


def summed_per_key_head(gradient: Tensor, key_value_heads: int) -> Tensor:
    """The transpose of :func:`deconattn.ops.reference.per_query_head`."""
    if gradient.shape[1] == key_value_heads:
        return gradient
    return gradient.unflatten(1, (key_value_heads, -1)).sum(dim=2)
