"""Memory for the numbers of one tile, used again by the next: fresh memory would be paid for in page faults."""

import torch
from torch import Tensor

from deconattn.ops.precision import at_least_fp32


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
