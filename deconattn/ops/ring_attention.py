"""Softmax attention of some queries over some of the keys that they see, both passes, and how such blocks add up.

A block's mixed values are those of a softmax over its keys alone; with its log-sum-exp (lse) it is merged with other
blocks of the same queries, exactly (Liu et al. 2023, Ring Attention, arXiv:2310.01889). Backward, a block's gradients
come from the lse and the mixed values of all keys. Log-sum-exps are in base 2, as in
:mod:`deconattn.ops.blockwise.softmax`.

The queries and keys of a block are those of the same tokens, causal and within documents, or each query sees each key:
of two parts of a row a query of the later one sees all of the earlier one, with documents its end or nothing.
"""

from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from deconattn.ops import flash_blocks
from deconattn.ops.backend import SLOWER
from deconattn.ops.blockwise import parts
from deconattn.ops.documents import Documents
from deconattn.ops.notes import said_of, say

_TOLERANCE = 0.05
"""Of half precision's numbers of a few units; a wrong base, mask or factor is off by more."""


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, causal: bool, documents: Documents | None = None
) -> tuple[Tensor, Tensor]:
    """Mix a block's values: by PyTorch's flash attention where it can be had, else by blocks of PyTorch operations.

    Args:
        queries: [R, heads, T, head_dim].
        keys: [R, key_value_heads, S, head_dim].
        values: [R, key_value_heads, S, x].
        causal: queries and keys are of the same tokens, and of these `documents`; else each query sees each key.

    Returns:
        [R, heads, T, x] in the values' dtype, and log-sum-exps [R, heads, T] in at least fp32.
    """
    return _passes(queries, values).forward(queries, keys, values, causal, documents)


def gradients(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    lse: Tensor,
    grad: Tensor,
    causal: bool,
    documents: Documents | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a block's share of the gradients of its queries, keys and values, each in their dtype.

    Args:
        mixed, lse: of the queries over all keys, of this block and others.
        grad: [R, heads, T, x], of `mixed`.
    """
    return _passes(queries, values).backward(queries, keys, values, mixed, lse, grad, causal, documents)


def merge_(mixed: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> None:
    """Add the keys of another block, in place: mixed [.., T, x] in at least fp32, lse [.., T]."""
    total = torch.logaddexp2(lse, more_lse)
    mixed.mul_((lse - total).exp2_()[..., None]).addcmul_(more.to(mixed.dtype), (more_lse - total).exp2_()[..., None])
    lse.copy_(total)


class _Passes(Protocol):
    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, causal: bool, documents: Documents | None, /
    ) -> tuple[Tensor, Tensor]: ...

    def backward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mixed: Tensor,
        lse: Tensor,
        grad: Tensor,
        causal: bool,
        documents: Documents | None,
        /,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def _passes(queries: Tensor, values: Tensor) -> _Passes:
    width = queries.shape[-1]
    by_flash = flash_blocks.take(queries, values) and _flash_is_right(queries.device, queries.dtype, width)
    return flash_blocks if by_flash else parts


@cache
def _flash_is_right(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether PyTorch's operators give on a device what blocks give; says so where they do not."""
    kinds = (True, False), (True, True), (False, False)
    try:
        with torch.no_grad():
            error = max(_difference(*kind, device, dtype, width) for kind in kinds)
        failed = "" if error < _TOLERANCE else f"they are off by {error:.2g}"
    except (RuntimeError, TypeError, AttributeError) as raised:
        failed = said_of(raised)
    if failed:
        say(f"warning: PyTorch's flash attention cannot be had for rows that ranks share: {failed}; {SLOWER}")
    return not failed


def _difference(causal: bool, with_documents: bool, device: torch.device, dtype: torch.dtype, width: int) -> float:
    """How far flash attention and blocks are apart, both passes, on a small problem."""
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int, length: int) -> Tensor:
        return torch.randn(2, heads, length, width, generator=generator).to(device, dtype)

    seen = 48 if causal else 80
    queries, keys, values, grad = draw(4, 48), draw(2, seen), draw(2, seen), draw(4, 48)
    ids = torch.arange(48, device=device).expand(2, -1) // 20
    documents = Documents(ids, ids) if with_documents else None
    found = []
    for passes in (flash_blocks, parts):
        mixed, lse = passes.forward(queries, keys, values, causal, documents)
        # As if of more keys: nothing of a block's own backward pass needs its own lse.
        of_inputs = passes.backward(queries, keys, values, mixed, lse + 1, grad, causal, documents)
        found.append((mixed, lse, *of_inputs))
    return max(float((one.float() - other.float()).abs().max()) for one, other in zip(*found, strict=True))
