"""Slice files: what one rank wrote of a checkpoint's tensors, a safetensors file whose header has checksums.

A slice is a run of elements of a tensor, of the whole one or of the part that tensor parallelism has left of it
(:class:`Part`), both in row-major order: ZeRO's flat partitions begin and end at arbitrary elements. The key of a slice
is `KIND/NAME`, such as `exp_avg/model.norm.weight`. The header's one metadata entry, `slices`, is JSON:

    {"weights/model.norm.weight": {"shape": [512],            of the whole tensor
                                   "part": [0, 0, 256],       dim, start, stop; null where the whole is not cut
                                   "first": 128,              the slice's first element in that part
                                   "sha256": "...."}}         64 digits for each block of its elements, in order

Elements are verified by blocks of BLOCK, so that a reader of any other cut reads little besides what it needs. The
header is verified by the SHA-256 that the manifest has of it. Written here rather than by safetensors, whose writer
wants all tensors on the CPU at once, none of them views of one memory, and hides the number of a disk's error.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from deconattn.json_files import open_regular, parse_json
from deconattn.layers.shards import Shard

BLOCK = 2**16
"""Elements of a block, 256 KiB in fp32."""
READ = 64 * BLOCK
"""Elements that are read and verified at once, at most."""
NAME = "slices-{:05d}.safetensors"
"""Name of a rank's file."""
_TYPES = {"I64": torch.int64, "F32": torch.float32}
"""Types by safetensors' names, those of more bytes first: that keeps the data aligned."""
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_DIGITS = 64


class DamagedError(ValueError):
    """Content that is not what was written; the message says which, without the file's name."""


@dataclass(frozen=True)
class Part:
    """Part of a whole tensor: indices `start` to `stop` along `dim`."""

    dim: int
    start: int
    stop: int

    def of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the part's shape (ValueError if the tensor has no such part)."""
        if not 0 <= self.dim < len(shape) or not 0 <= self.start < self.stop <= shape[self.dim]:
            raise ValueError("no part of the tensor")
        return (*shape[: self.dim], self.stop - self.start, *shape[self.dim + 1 :])


def part_of_shard(shard: Shard | None) -> Part | None:
    """Return a tensor-parallel rank's part as slices describe it; None is the whole."""
    return None if shard is None else Part(shard.dim, *shard.bounds[shard.rank])


@dataclass(frozen=True)
class Slice:
    """Run of elements of a tensor, and its values of each kind.

    Attributes:
        shape: of the whole tensor.
        part: the part of it that is counted in; None for the whole.
        first: the run's first element.
        values: by kind (`weights`, `exp_avg`, ..): 1-D, alike in number; on any device.
    """

    name: str
    shape: tuple[int, ...]
    part: Part | None
    first: int
    values: Mapping[str, Tensor]


def write_slices(path: Path, slices: Sequence[Slice]) -> dict[str, Any]:
    """Write a file, flushed to the disk; one tensor at a time is on the CPU.

    Returns:
        The file's entry in the manifest: its size, and size and SHA-256 of its header.

    Raises:
        OSError: the disk refuses.
    """
    keyed = [(f"{kind}/{piece.name}", piece, value) for piece in slices for kind, value in piece.values.items()]
    keyed.sort(key=lambda entry: list(_TYPES).index(_NAMES[entry[2].dtype]))
    digests = {key: "0" * _DIGITS * _blocks(value.numel()) for key, _, value in keyed}
    room = len(_header(keyed, digests))
    with path.open("wb") as file:
        _write(file, bytes(room))
        for key, _, value in keyed:
            digests[key] = "".join(_written(file, value))
        header = _header(keyed, digests)
        file.seek(0)
        _write(file, header)
        file.flush()
        os.fsync(file.fileno())
    size = room + sum(value.nbytes for _, _, value in keyed)
    return {"bytes": size, "sha256": hashlib.sha256(header).hexdigest(), "header_bytes": room}


def _blocks(elements: int) -> int:
    return math.ceil(elements / BLOCK)


def _header(keyed: Sequence[tuple[str, Slice, Tensor]], digests: Mapping[str, str]) -> bytes:
    described, entries, offset = {}, {}, 0
    for key, piece, value in keyed:
        part = None if piece.part is None else [piece.part.dim, piece.part.start, piece.part.stop]
        described[key] = {"shape": piece.shape, "part": part, "first": piece.first, "sha256": digests[key]}
        whole = value.numel() == math.prod(piece.shape)
        shape = piece.shape if whole else (value.numel(),)
        entries[key] = {"dtype": _NAMES[value.dtype], "shape": shape, "data_offsets": (offset, offset + value.nbytes)}
        offset += value.nbytes
    content = json.dumps({"__metadata__": {"format": "pt", "slices": json.dumps(described)}, **entries}).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _written(file: BinaryIO, value: Tensor) -> Iterator[str]:
    """Write a tensor; yield the digest of each block."""
    content = value.detach().cpu().contiguous().view(torch.uint8).numpy().data
    step = BLOCK * value.element_size()
    for start in range(0, len(content), step):
        block = content[start : start + step]
        _write(file, block)
        yield hashlib.sha256(block).hexdigest()


def _write(file: BinaryIO, content: bytes | memoryview) -> None:
    file.write(content)


@dataclass(frozen=True)
class Stored:
    """A slice in a file: where its bytes lie, and what they must be.

    Attributes:
        elements: how many there are.
        offset: of the first byte in the file.
        sha256: a digest a block; empty where the file was verified as a whole.
    """

    kind: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    part: Part | None
    first: int
    elements: int
    offset: int
    sha256: tuple[str, ...]


class SliceFile:
    """A slice file that is open to be read.

    Args:
        header: size and SHA-256 of the header; None takes the file as it is, verified in whole or not to be trusted.

    Attributes:
        bytes_read: so far, the header's included.

    Raises:
        OSError: it cannot be read.
        DamagedError: its header is not what was written.
    """

    def __init__(self, path: Path, header: tuple[int, str] | None = None) -> None:
        self._file = open_regular(path)
        try:
            self.bytes_read = 0
            size = int.from_bytes(self._pread(8, 0), "little")
            end = os.fstat(self._file.fileno()).st_size
            if size + 8 > end or (header is not None and size + 8 != header[0]):
                raise DamagedError("its header has another size")
            content = self._pread(size, 8)
            if header is not None and hashlib.sha256(size.to_bytes(8, "little") + content).hexdigest() != header[1]:
                raise DamagedError("its header is not what was written")
            self.header = (size + 8, hashlib.sha256(size.to_bytes(8, "little") + content).hexdigest())
            self.slices = dict(_parsed(content, size + 8, end))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "SliceFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """Read elements `start` to `stop` of a slice, verified; 1-D.

        Raises:
            OSError: they cannot be read.
            DamagedError: naming the slice.
        """
        stored = self.slices[key]
        low, high = start, stop
        if stored.sha256:
            low, high = start // BLOCK * BLOCK, min(_blocks(stop) * BLOCK, stored.elements)
        dtype = _TYPES[stored.dtype]
        content = self._pread((high - low) * dtype.itemsize, stored.offset + low * dtype.itemsize)
        if stored.sha256:
            step = BLOCK * dtype.itemsize
            view = memoryview(content)
            for number, begin in enumerate(range(0, len(content), step), start=low // BLOCK):
                if hashlib.sha256(view[begin : begin + step]).hexdigest() != stored.sha256[number]:
                    raise DamagedError(f"{key} is not what was written")
        return torch.frombuffer(content, dtype=dtype)[start - low : stop - low]

    def _pread(self, size: int, offset: int) -> bytearray:
        content = bytearray(size)
        view, done = memoryview(content), 0
        while done < size:
            count = os.preadv(self._file.fileno(), [view[done : done + 2**30]], offset + done)
            if not count:
                raise DamagedError("it is too short")
            done += count
        self.bytes_read += size
        return content


def _parsed(content: bytes | bytearray, data: int, end: int) -> Iterator[tuple[str, Stored]]:
    """Yield the slices of a header by key; in files of formats 1 and 2 keys are names, and slices whole tensors."""
    try:
        header = parse_json(bytes(content))
        described = parse_json(header.pop("__metadata__", {}).get("slices", "{}").encode())
        for key, entry in header.items():
            more = described.get(key) or {"shape": entry["shape"], "part": None, "first": 0, "sha256": ""}
            kind, name = key.split("/", 1) if key in described else ("", key)
            first, last = entry["data_offsets"]
            shape, sha256 = tuple(more["shape"]), more["sha256"]
            part = None if more["part"] is None else Part(*more["part"])
            count, rest = divmod(last - first, _TYPES[entry["dtype"]].itemsize)
            box = shape if part is None else part.of(shape)
            digests = tuple(sha256[start : start + _DIGITS] for start in range(0, len(sha256), _DIGITS))
            sound = 0 <= first <= last <= end - data and not rest and more["first"] >= 0
            sound = sound and more["first"] + count <= math.prod(box)
            if not sound or (key in described and len(digests) != _blocks(count)):
                raise ValueError
            yield key, Stored(kind, name, entry["dtype"], shape, part, more["first"], count, data + first, digests)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError("its header is no list of slices") from error
