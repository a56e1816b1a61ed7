"""Tiles of a causal map, and query heads grouped by the key head that they share: the blockwise paths' tools."""

from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 128
"""Rows (or columns) of the map held at once."""


def tiles(length: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive tiles that cover `length`."""
    for start in range(0, length, TILE):
        yield start, min(start + TILE, length)


def hidden_pairs(rows: slice, columns: slice, device: torch.device, documents: Tensor | None = None) -> Tensor:
    """bool [.., rows, columns]: keys `columns` that queries `rows` may not see.

    documents: int64 [.., L], or None where a row is one document.
    """
    query = torch.arange(rows.start, rows.stop, device=device)[:, None]
    hidden = torch.arange(columns.start, columns.stop, device=device) > query
    if documents is None:
        return hidden
    return hidden | (documents[..., rows, None] != documents[..., None, columns])


def fold_groups(queries: Tensor, key_value_heads: int) -> Tensor:
    """[.., heads, L, x] -> [.., key_value_heads, group, L, x], a view."""
    return queries.unflatten(-3, (key_value_heads, queries.shape[-3] // key_value_heads))


def grouped_matmul(grouped: Tensor, shared: Tensor) -> Tensor:
    """[.., k, group, L, x] @ [.., k, x, n] -> [.., k, group, L, n], the shared operand not repeated."""
    product = grouped.flatten(-3, -2) @ shared
    return product.unflatten(-2, grouped.shape[-3:-1])


def summed_matmul(left: Tensor, right: Tensor) -> Tensor:
    """sum over group of [.., k, group, L, n]^T @ [.., k, group, L, x] -> [.., k, n, x]."""
    return left.flatten(-3, -2).transpose(-1, -2) @ right.flatten(-3, -2)
