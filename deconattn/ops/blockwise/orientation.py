"""Which way a tile of keys and the queries that see them lies in memory.

The same products in either: keys along rows is what oneDNN's products of matrices (fp32) want, queries along rows its
products of batches (bf16); the other way round takes twice as long.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deconattn.ops.blockwise.tiles import Visibility
from deconattn.ops.matmul import matmul, scaled_matmul


@dataclass(frozen=True)
class Orientation:
    """Tiles are [N, keys, queries] if `keys_first`, else [N, queries, keys]."""

    keys_first: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "Orientation":
        """What suits tensors [N, L, x]."""
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
