"""Megatron-LM's indexed datasets: token ids in `PREFIX.bin`, lengths and bounds in `PREFIX.idx`.

The index, little-endian: magic, version (uint64), code of the ids' type (uint8), number of sequences and of document
bounds (uint64 each); a sequence's length (int32) each, its byte offset in the .bin (int64) each; the documents' bounds,
counted in sequences, first 0 (int64 each).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.mapped import fetch
from deconattn.errors import UserError

_HEAD = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_FLOATS = (6, 7)


def megatron_prefix(source: Path) -> Path | None:
    """PREFIX, given PREFIX, PREFIX.bin or PREFIX.idx of files that are there; otherwise None."""
    named = source.suffix in (".bin", ".idx")
    for prefix in [source.with_suffix("")] if named else [source]:
        if _with(prefix, ".idx").is_file() or _with(prefix, ".bin").is_file():
            return prefix
    return None


class MegatronDocuments:
    """The documents of an indexed dataset, memory-mapped.

    Raises:
        UserError: a file that is missing, damaged, or of something else than token ids; it names file and position.
    """

    def __init__(self, prefix: Path) -> None:
        self.index, self.tokens = _with(prefix, ".idx"), _with(prefix, ".bin")
        index = _map(self.index)
        if len(index) < _HEAD.size:
            raise UserError(
                f"{self.index}: {len(index)} bytes, no index of Megatron-LM; give PREFIX.idx and PREFIX.bin"
            )
        magic, version, code, sequences, bounds = _HEAD.unpack(index[: _HEAD.size].tobytes())
        if magic != _MAGIC or version != 1:
            raise UserError(f"{self.index}: byte 0: no index of Megatron-LM, version 1; preprocess the text again")
        if code not in _TYPES:
            what = "floating point numbers" if code in _FLOATS else f"of type {code}, which is unknown"
            raise UserError(f"{self.index}: byte 17: the ids are {what}; give a dataset of token ids")
        expected = _HEAD.size + 12 * sequences + 8 * bounds
        if len(index) == expected + sequences:
            raise UserError(f"{self.index}: a multimodal dataset; give one of text alone")
        if len(index) != expected:
            raise UserError(f"{self.index}: {len(index)} bytes, {expected} expected; it is damaged, copy it again")
        at = _HEAD.size
        self._lengths = index[at : at + 4 * sequences].view("<i4")
        self._offsets = index[at + 4 * sequences : at + 12 * sequences].view("<i8")
        self._bounds = index[at + 12 * sequences :].view("<i8")
        self._dtype = np.dtype(_TYPES[code])
        self._data = _map(self.tokens)
        self._check()

    @property
    def documents(self) -> int:
        """How many there are, empty ones included."""
        return max(len(self._bounds) - 1, 0)

    def __iter__(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Each document's place, for messages, and ids `[n]`."""
        for number in range(self.documents):
            first, end = int(self._bounds[number]), int(self._bounds[number + 1])
            parts = [self._sequence(sequence) for sequence in range(first, end)]
            ids = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self._dtype), *parts])
            yield f"{self.tokens}: document {number}", ids

    def _sequence(self, number: int) -> npt.NDArray[Any]:
        start = int(self._offsets[number])
        ids = self._data[start : start + int(self._lengths[number]) * self._dtype.itemsize].view(self._dtype)
        try:
            fetch(ids.ctypes.data, ids.nbytes)
        except OSError as error:
            raise UserError(
                f"{self.tokens}: byte {start} can no longer be read ({error.strerror}); check the disk"
            ) from None
        return ids

    def _check(self) -> None:
        bounds = self._bounds
        if len(bounds) and (bounds[0] != 0 or bounds[-1] != len(self._lengths)):
            raise UserError(
                f"{self.index}: the documents are sequences {bounds[0]} to {bounds[-1]} of {len(self._lengths)}; it is "
                "damaged, copy it again"
            )
        wrong = np.flatnonzero(np.diff(bounds) < 0)
        if len(wrong):
            raise UserError(f"{self.index}: document {wrong[0]} ends before it begins; it is damaged, copy it again")
        step = 1 << 20
        for first in range(0, len(self._lengths), step):
            lengths = self._lengths[first : first + step].astype(np.int64)
            offsets = self._offsets[first : first + step]
            # Compared in this way nothing overflows, whatever the offsets are.
            outside = (lengths < 0) | (offsets < 0) | (offsets > len(self._data) - lengths * self._dtype.itemsize)
            wrong = np.flatnonzero(outside)
            if len(wrong):
                number = int(wrong[0])
                raise UserError(
                    f"{self.tokens}: sequence {first + number} is {lengths[number]} ids at byte {offsets[number]}, but "
                    f"the file has {len(self._data)} bytes; one of the two files is damaged, copy both again"
                )


def _with(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _map(path: Path) -> npt.NDArray[np.uint8]:
    try:
        if path.stat().st_size == 0:
            return np.empty(0, dtype=np.uint8)
        return np.asarray(np.memmap(path, mode="r"))  # a memmap is slow to slice
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; PREFIX.idx and PREFIX.bin belong together") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
