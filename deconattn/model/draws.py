"""Normal numbers by position: any part of a tensor can be drawn alone, and is what the whole would have there.

A tensor is a matrix of tiles. Each tile has a counter of Philox (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3") of its own, under a key of seed and name, and NumPy draws its numbers in order. So a part costs the tiles
that it touches, whatever lies before it, and threads share the tiles.

Float32 numbers come by the ziggurat method, which compares integers and multiplies once: platforms and vector widths
agree, but for the last bit of some of the one in a thousand that need a logarithm.
"""

import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE = 4096
"""Numbers of a whole tile. Setting a counter takes as long as 100 of them."""
TILE_COLUMNS = 256
"""Columns of a tile, if the matrix has as many: tensor parallelism cuts a matrix by columns too, at multiples of 64 or
more."""
CHUNK = 1 << 22
"""Numbers that are drawn before they are copied to their place, 16 MiB."""
WORTH_THREADS = 1 << 18
"""Numbers from which on threads share the work: those of some milliseconds."""


class Draws:
    """Numbers of N(0, sigma^2) for the elements of one tensor, float32.

    Args:
        shape: of the whole tensor; its last dimensions are the columns of a matrix.
    """

    def __init__(self, seed: int, name: str, shape: Sequence[int], sigma: float) -> None:
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        self._key = int.from_bytes(digest[:16], "little")
        self._sigma = numpy.float32(sigma)
        self.rows, self.columns = shape[0], math.prod(shape[1:])
        self._tile_columns = min(TILE_COLUMNS, self.columns)
        self._tile_rows = TILE // self._tile_columns
        self._own = threading.local()

    def block(self, rows: range, columns: range) -> Tensor:
        """Return those of consecutive rows and columns, [rows, columns]; all tiles that they touch are drawn."""
        drawn = torch.empty(len(rows), len(columns), dtype=torch.float32, device="cpu")
        into = drawn.numpy()
        bands = list(pairwise(_cuts(rows, self._tile_rows)))

        def fill(band: tuple[int, int]) -> None:
            self._fill_band(range(*band), columns, into[band[0] - rows.start : band[1] - rows.start])

        threads = min(torch.get_num_threads(), len(bands))
        if threads == 1 or drawn.numel() < WORTH_THREADS:
            for band in bands:
                fill(band)
        else:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(fill, bands):
                    pass
        return drawn

    def flat(self, rows: range, columns: range, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (offset, [n]) of the elements from `start` to `stop` of a block that is laid out row by row.

        The offsets count from `start`. Whole rows are drawn, some millions of numbers at a time.
        """
        if start >= stop:
            return
        width = len(columns)
        first, last = start // width, -(-stop // width)
        whole = self._tile_rows * max(1, CHUNK // (self._tile_rows * width))
        for top, bottom in pairwise(_cuts(rows[first:last], whole)):
            begins = (top - rows.start) * width
            numbers = self.block(range(top, bottom), columns).view(-1)
            numbers = numbers[max(0, start - begins) : stop - begins]
            yield max(0, begins - start), numbers

    def _fill_band(self, rows: range, columns: range, into: NDArray[numpy.float32]) -> None:
        """Fill rows of one row of tiles."""
        tile_row = rows.start // self._tile_rows
        top = tile_row * self._tile_rows
        height = min(self._tile_rows, self.rows - top)
        for left, right in pairwise(_cuts(columns, self._tile_columns)):
            edge = left - left % self._tile_columns
            tile = self._tile(
                tile_row, edge // self._tile_columns, height, min(self._tile_columns, self.columns - edge)
            )
            part = tile[rows.start - top : rows.stop - top, left - edge : right - edge]
            numpy.multiply(part, self._sigma, out=into[:, left - columns.start : right - columns.start])

    def _tile(self, row: int, column: int, height: int, width: int) -> NDArray[numpy.float32]:
        """Return a tile's numbers of N(0, 1), [height, width], in this thread's memory."""
        own = self._own
        if not hasattr(own, "generator"):
            own.bits = numpy.random.Philox(key=self._key)
            own.generator, own.memory = numpy.random.Generator(own.bits), numpy.empty(TILE, numpy.float32)
            own.state = own.bits.state
        state: dict[str, Any] = own.state
        # The lowest word counts within the tile. What the generator had in store is of another tile.
        state["state"]["counter"][1:3] = column, row
        own.bits.state = state
        tile: NDArray[numpy.float32] = own.memory[: height * width]
        own.generator.standard_normal(dtype=numpy.float32, out=tile)
        return tile.reshape(height, width)


def _cuts(span: range, every: int) -> list[int]:
    """Return a span's ends and the multiples of `every` between them."""
    inner = range(span.start // every * every + every, span.stop, every)
    return [span.start, *inner, span.stop]
