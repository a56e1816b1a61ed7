"""Order of samples, as pure functions of integers: a data position is a number and nothing else.

How corpora are interleaved is in `blend`.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from deconattn.data.loading.blend import Blend

_MASK = 2**64 - 1
_ROUNDS = 6
_BLOCK = 1024
_BLOCKS_KEPT = 4  # a batch may straddle two, and validation may read between
_WORTH_AN_ARRAY = 16

Integers = TypeVar("Integers", int, npt.NDArray[np.uint64])


def mix(value: Integers) -> Integers:
    """The splitmix64 finaliser: a bijective hash of 64-bit integers (or uint64 arrays of any shape)."""
    x: Any = (value + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return cast(Integers, x ^ (x >> 31))


def make_key(*parts: int) -> int:
    """A 64-bit key out of several integers (a seed, a corpus number, an epoch); their order matters."""
    key = 0
    for part in parts:
        key = mix((key ^ (part & _MASK)) & _MASK)
    return key


def permute(index: Integers, size: int, key: int) -> Integers:
    """Image of `index` under a keyed pseudo-random permutation of `range(size)`.

    A Feistel network over the next power of four, walked along its cycle until it lands below `size`: constant
    memory, about one to four steps. `index` is an int or a uint64 array of any shape, each `0 <= index < size`
    (ValueError otherwise).
    """
    if isinstance(index, np.ndarray):
        if index.size and int(index.max()) >= size:
            raise ValueError(f"index {int(index.max())} outside range({size})")
        result = _feistel(index.astype(np.uint64), size, key)
        while (outside := result >= size).any():
            result[outside] = _feistel(result[outside], size, key)
        return result
    if not 0 <= index < size:
        raise ValueError(f"index {index} outside range({size})")
    position = _feistel(int(index), size, key)
    while position >= size:
        position = _feistel(position, size, key)
    return position


def _feistel(value: Integers, size: int, key: int) -> Integers:
    half = max(((size - 1).bit_length() + 1) // 2, 1)
    mask = (1 << half) - 1
    left: Any = value >> half
    right: Any = value & mask
    for round_key in _round_keys(key):
        left, right = right, left ^ (mix(right ^ round_key) & mask)
    return cast(Integers, (left << half) | right)


@lru_cache(maxsize=1024)
def _round_keys(key: int) -> tuple[int, ...]:
    return tuple(make_key(key, number) for number in range(_ROUNDS))


class Order:
    """Sample numbers -> (corpus, place of the sample within its corpus): a blend, and each corpus shuffled by epochs.

    A corpus goes through all its samples, in an order of its own, before it repeats one. Works in blocks of
    consecutive numbers, because that is how they are asked for.

    sizes: samples in each corpus. shuffle: without, each epoch goes from first to last. keys: number by which each
    corpus is shuffled, its place in the blend by default. drawn: samples of each that were drawn before the first.
    """

    def __init__(
        self,
        blend: Blend,
        sizes: Sequence[int],
        seed: int,
        shuffle: bool,
        keys: Sequence[int] | None = None,
        drawn: Sequence[int] | None = None,
    ) -> None:
        self._blend, self._sizes, self._seed, self._shuffle = blend, tuple(sizes), seed, shuffle
        self._keys = tuple(range(len(sizes))) if keys is None else tuple(keys)
        self._drawn = np.array([0] * len(sizes) if drawn is None else drawn, dtype=np.int64)
        self._blocks: dict[int, list[tuple[int, int]]] = {}

    def __call__(self, number: int) -> tuple[int, int]:
        """Corpus and place of sample `number`; IndexError below 0."""
        if number < 0:
            raise IndexError(f"sample number {number} is negative")
        block, within = divmod(number, _BLOCK)
        found = self._blocks.get(block)
        if found is None:
            while len(self._blocks) >= _BLOCKS_KEPT:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[block] = found = self._make(block)
        return found[within]

    def _make(self, block: int) -> list[tuple[int, int]]:
        corpora, drawn = self._blend(np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.int64))
        drawn = drawn + self._drawn[corpora]
        epochs, places = np.divmod(drawn, np.array(self._sizes, dtype=np.int64)[corpora])
        if self._shuffle:
            for corpus, size in enumerate(self._sizes):
                ours = np.flatnonzero(corpora == corpus)
                # Drawn in order: an epoch is a run.
                for run in np.split(ours, np.flatnonzero(np.diff(epochs[ours])) + 1):
                    if len(run):
                        key = make_key(self._seed, self._keys[corpus], int(epochs[run[0]]))
                        places[run] = _permuted(places[run], size, key)
        return list(zip(corpora.tolist(), places.tolist(), strict=True))


def _permuted(places: npt.NDArray[np.int64], size: int, key: int) -> npt.NDArray[Any] | list[int]:
    if len(places) < _WORTH_AN_ARRAY:
        return [permute(place, size, key) for place in places.tolist()]
    return permute(places.astype(np.uint64), size, key)
