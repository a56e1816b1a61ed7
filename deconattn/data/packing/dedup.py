"""Exact duplicates: a 128-bit hash of every document's text, and a set of them that costs 16 bytes each."""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

HASH_BYTES = 16
_GROWTH = 8

Hashes = npt.NDArray[np.bytes_]
"""`[n]` of type `S16`: NumPy orders and compares them as bytes."""


def hash_texts(texts: Iterable[bytes]) -> Hashes:
    """The hash of each text, given in UTF-8."""
    digests = b"".join(hashlib.blake2b(text, digest_size=HASH_BYTES).digest() for text in texts)
    return np.frombuffer(digests, dtype=f"S{HASH_BYTES}")


class HashSet:
    """The hashes seen so far, in a few sorted arrays, each some times larger than the next.

    A small array is merged into its neighbour when it has grown near it, so that a look-up is a few binary searches
    and each hash is moved a few times in its life.
    """

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def add(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Add hashes `[n]`; which of them were new, `[n]`. Of equal ones among them the first is."""
        ordered, first = np.unique(hashes, return_index=True)
        known = np.zeros(len(ordered), dtype=np.bool_)
        for run in self._runs:
            place = np.searchsorted(run, ordered)
            place[place == len(run)] = 0  # beyond the end: equal to none, the first least of all
            known |= run[place] == ordered
        new = np.zeros(len(hashes), dtype=np.bool_)
        new[first[~known]] = True
        self._keep(ordered[~known])
        return new

    def _keep(self, ordered: Hashes) -> None:
        if not len(ordered):
            return
        self._runs.append(ordered)
        while len(self._runs) > 1 and len(self._runs[-2]) < _GROWTH * len(self._runs[-1]):
            last = self._runs.pop()
            merged = np.concatenate([self._runs.pop(), last])
            merged.sort(kind="stable")  # which finds the two ordered parts and merges them
            self._runs.append(merged)
