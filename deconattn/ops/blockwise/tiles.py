"""Tiles of a causal map and what is hidden in them: the blockwise paths' tools."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from deconattn.ops.matmul import matmul, scaled_matmul
from deconattn.ops.precision import at_least_fp32

TILE = 192
"""Rows (or columns) of the map held at once."""


def tiles(length: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive tiles that cover `length`."""
    for start in range(0, length, TILE):
        yield start, min(start + TILE, length)


def scaled(queries: Tensor, factor: float) -> tuple[Tensor, float]:
    """Contiguous queries, and what their products with keys are still to be scaled by, to be `factor` times as large.

    In half precision that is all of it: a scaled query would be rounded once more.
    """
    if queries.dtype in (torch.float32, torch.float64):
        return queries.contiguous() * factor, 1.0
    return queries.contiguous(), factor


@dataclass(frozen=True)
class Visibility:
    """Causal and document mask: a query sees the keys up to itself, of its own document.

    Attributes:
        length: L.
        starts: int64 [N, L], the first token of each token's document, or None where a row is one document.
        ends: int64 [N, L], one past its last.
    """

    length: int
    starts: Tensor | None = None
    ends: Tensor | None = None

    @classmethod
    def of(cls, length: int, document_ids: Tensor | None) -> "Visibility":
        """From document ids [N, L], non-decreasing along a row."""
        if document_ids is None:
            return cls(length)
        ids = document_ids.contiguous()
        return cls(length, torch.searchsorted(ids, ids), torch.searchsorted(ids, ids, right=True))

    def rows(self, rows: slice, heads: int) -> "Visibility":
        """Visibility of some of the N rows, repeated `heads` times each."""
        if self.starts is None or self.ends is None:
            return self
        starts, ends = (bounds[rows].repeat_interleave(heads, dim=0) for bounds in (self.starts, self.ends))
        return Visibility(self.length, starts, ends)

    def first_key(self, query: int) -> int:
        """No key before it is seen from `query` on. On an accelerator 0: to know better would wait for it."""
        return 0 if self.starts is None or not self.starts.is_cpu else int(self.starts[:, query].min())

    def last_query(self, key: int) -> int:
        """No query from it on sees the keys up to `key`."""
        return self.length if self.ends is None or not self.ends.is_cpu else int(self.ends[:, key].max())

    def seen(self, start: int, stop: int) -> slice:
        """The keys of which queries from `start` to before `stop` see some."""
        return slice(self.first_key(start), stop)

    def seeing(self, start: int, stop: int) -> slice:
        """The queries of which keys from `start` to before `stop` are seen by some."""
        return slice(start, self.last_query(stop - 1))

    def hide_(self, tile: Tensor, queries: slice, keys: slice, value: float) -> Tensor:
        """Make the hidden pairs of `tile` `value`, 0 or -inf, in place.

        Args:
            tile: [N, queries, keys], finite. The keys must reach to the queries' end.
        """
        size = queries.stop - queries.start
        # Queries and keys of the same positions are a square, above whose diagonal lies the future.
        _fill(tile[..., keys.stop - keys.start - size :], _future(size, value, tile.dtype, tile.device), value)
        if self.starts is not None and self._documents_begin(queries, keys):
            positions = torch.arange(keys.start, keys.stop, device=tile.device)
            tile.masked_fill_(positions < self.starts[:, queries, None], value)
        return tile

    def hide_from_keys_(self, tile: Tensor, queries: slice, keys: slice, value: float, keys_first: bool) -> Tensor:
        """Mask a tile whose queries begin where its keys do; it is [N, keys, queries] if `keys_first`."""
        size = min(keys.stop, queries.stop) - keys.start
        future = _future(keys.stop - keys.start, value, tile.dtype, tile.device)[:size]
        _fill(*((tile[..., :size], future.T) if keys_first else (tile[..., :size, :], future)), value)
        if self.starts is not None and self._documents_begin(queries, keys):
            positions = torch.arange(keys.start, keys.stop, device=tile.device)
            hidden = positions < self.starts[:, queries, None]
            tile.masked_fill_(hidden.mT if keys_first else hidden, value)
        return tile

    def _documents_begin(self, queries: slice, keys: slice) -> bool:
        assert self.starts is not None
        return not self.starts.is_cpu or int(self.starts[:, queries.stop - 1].max()) > keys.start


def _fill(square: Tensor, future: Tensor, value: float) -> None:
    """Apply a mask by arithmetic, many times faster than masked_fill_."""
    square.add_(future) if value else square.mul_(future)


@cache
def _future(size: int, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[size, size]: what added (-inf) or multiplied (0) hides the pairs above the diagonal."""
    if value:
        return torch.full((size, size), value, dtype=dtype, device=device).triu(1)
    return torch.ones(size, size, dtype=dtype, device=device).tril()


@dataclass(frozen=True)
class Orientation:
    """Tiles are [N, keys, queries] if `keys_first`, else [N, queries, keys]."""

    keys_first: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "Orientation":
        """Choose the faster orientation for tensors [N, L, x]."""
        return cls(tensor.dtype in (torch.float32, torch.float64) and len(tensor) == 1)

    def transposed(self, keys: Tensor) -> Tensor:
        """[N, L, x] -> [N, x, L], laid out for products with queries of all keys so far."""
        return keys.mT if self.keys_first else keys.mT.contiguous()

    def shape(self, heads: int, keys: int, queries: int) -> tuple[int, int, int]:
        return (heads, keys, queries) if self.keys_first else (heads, queries, keys)

    def pairs(self, of_keys: Tensor, of_queries: Tensor, scale: float, out: Tensor) -> Tensor:
        """scale times the inner products of [N, keys, x] and [N, queries, x]: a tile."""
        left, right = (of_keys, of_queries) if self.keys_first else (of_queries, of_keys)
        return scaled_matmul(left, right.mT, scale, out)

    def sum_queries(self, tile: Tensor, of_queries: Tensor) -> Tensor:
        """[N, keys, x]: the tile's weighted sums of [N, queries, x]."""
        return matmul(tile if self.keys_first else tile.mT, of_queries)

    def sum_keys(self, tile: Tensor, of_keys: Tensor) -> Tensor:
        """[N, queries, x]: the tile's weighted sums of [N, keys, x]."""
        return matmul(tile.mT if self.keys_first else tile, of_keys)

    def per_query(self, numbers: Tensor) -> Tensor:
        """[N, queries], to be combined with a tile."""
        return numbers[:, None] if self.keys_first else numbers[..., None]

    def hide_(self, tile: Tensor, visible: Visibility, queries: slice, keys: slice, value: float) -> Tensor:
        """See :meth:`deconattn.ops.blockwise.tiles.Visibility.hide_from_keys_`."""
        return visible.hide_from_keys_(tile, queries, keys, value, self.keys_first)


class Scratch:
    """Buffers for tiles of up to `elements` numbers each.

    Args:
        like: what the tiles are computed from, whose dtype is the narrow one.
    """

    def __init__(self, like: Tensor, elements: int) -> None:
        precise = at_least_fp32(like.new_empty(0)).dtype
        self._dtype = like.dtype
        self._precise = [like.new_empty(elements, dtype=precise) for _ in range(2)]
        self._narrow = [like.new_empty(elements) for _ in range(2)] if precise != like.dtype else self._precise

    def product(self, which: int, shape: tuple[int, ...]) -> Tensor:
        """Buffer 0 or 1 for a product, in the narrow dtype."""
        return _view(self._narrow[which], shape)

    def precise(self, which: int, product: Tensor) -> Tensor:
        """A product in at least fp32: itself, or copied to buffer 0 or 1."""
        if self._narrow is self._precise:
            return product
        return _view(self._precise[which], product.shape).copy_(product)

    def narrow(self, which: int, tile: Tensor) -> Tensor:
        """A tile in the narrow dtype: itself, or copied over the product in buffer 0 or 1."""
        if self._narrow is self._precise:
            return tile
        return _view(self._narrow[which], tile.shape).copy_(tile)


def _view(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: torch.Size(shape).numel()].view(shape)
