"""Rotary embedding of queries and keys in one kernel, each read once and written once.

Of b bytes an element that is 2 b; PyTorch's operations move about 13 b. All is computed in fp32 and rounded once.
"""

from functools import partial

import torch
import triton
from torch import Tensor

from deconattn.ops import plain
from deconattn.ops.kernels.fallback import Attempts
from deconattn.ops.kernels.gpu import launch_options
from deconattn.ops.kernels.rotation_programs import rotation_kernel
from deconattn.ops.kernels.tensor_layout import unit_stride

ELEMENTS = 2048
"""Of each half of the channels, in a program: 16 a thread."""
WARPS = 4
_ATTEMPTS = Attempts("the rotary embedding")
# As in deconattn.ops.kernels.swiglu.
_LIBRARY = torch.library.Library("deconattn", "FRAGMENT")
_LIBRARY.define("rotation(Tensor queries, Tensor keys, Tensor cos, Tensor sin, bool back) -> Tensor")


@torch.library.impl(_LIBRARY, "rotation", "CompositeExplicitAutograd")
def _rotation(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    found = _ATTEMPTS.tried(partial(rotation, queries, keys, cos, sin, back), queries, f"head_dim {queries.shape[-1]}")
    if found is None:
        found = _empty(queries, keys, cos, sin, back)
        for part, rotated in zip(
            split(found, queries, keys), plain.rotate(queries, keys, cos, -sin if back else sin), strict=True
        ):
            part.copy_(rotated)
    return found


@torch.library.register_fake("deconattn::rotation")
def _empty(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    rows, heads, length, head_dim = queries.shape
    return queries.new_empty(rows, length, heads + keys.shape[1], head_dim)


def split(joined: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Cut [R, L, heads + key_value_heads, head_dim] into views [R, heads, L, head_dim] of the two."""
    of_queries, of_keys = joined.transpose(1, 2).split([queries.shape[1], keys.shape[1]], dim=1)
    return of_queries, of_keys


def rotation(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """Rotate queries and keys, or rotate them back: side by side, [R, L, heads + key_value_heads, head_dim].

    Args:
        queries, keys: [R, heads, L, head_dim] and [R, key_value_heads, L, head_dim], any strides.
        cos, sin: [R or 1, 1, L, head_dim], the two halves of the channels alike.
    """
    queries, keys, cos, sin = unit_stride(queries), unit_stride(keys), unit_stride(cos), unit_stride(sin)
    rows, heads, length, head_dim = queries.shape
    joined = _empty(queries, keys, cos, sin, back)
    of_queries, of_keys = split(joined, queries, keys)
    width = triton.next_power_of_2(head_dim // 2)
    block = min(triton.next_power_of_2(length), max(1, ELEMENTS // width))
    cos, sin = cos.expand(rows, -1, -1, -1), sin.expand(rows, -1, -1, -1)
    programs = (heads + keys.shape[1]) * triton.cdiv(length, block) * rows
    with torch.cuda.device_of(queries):
        rotation_kernel[(programs,)](
            queries, keys, cos, sin, of_queries, of_keys,
            queries.stride(), keys.stride(), cos.stride(), sin.stride(), of_queries.stride(), of_keys.stride(),
            heads, keys.shape[1], length,
            HALF=head_dim // 2, WIDTH=width, BLOCK=block, BACK=back, **launch_options(WARPS),
        )  # fmt: skip
    return joined
