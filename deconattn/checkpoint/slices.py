"""The tensors of a step folder, any part of any of them, put together from the slices that hold it.

A tensor of which tensor parallelism has cut dimension d is seen as a matrix: a row for each index before d, and in a
row what lies behind it. A part is then some of the columns, and a run of its elements up to three rectangles: the end
of a row, whole rows, the beginning of one. What a reader wants and what a slice has are both such rectangles, and it
reads where they meet.
"""

import errno
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from deconattn.checkpoint.manifest import Entry, Manifest, TensorEntry, part_of
from deconattn.checkpoint.slice_file import BLOCK, READ, DamagedError, Part, SliceFile, Stored
from deconattn.errors import UserError
from deconattn.json_files import reason

REMEDY = "restore it or use an earlier checkpoint"
_DTYPES = {"F32": torch.float32, "I64": torch.int64}
_OLD = re.compile(r"(weights|exp_avg|exp_avg_sq)-\d+-\d+\.safetensors")
"""Files of formats 1 and 2: whole tensors of one kind, by their own names, verified when the folder is opened."""
_OPEN = 256
"""Files that are open at a time, at most."""
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG, errno.ENXIO)
"""What an OSError says of a file that is not what was written; another says nothing of the checkpoint itself."""


class UnreadableError(UserError):
    """A checkpoint that is no worse for this: nothing goes on from an earlier one in its place."""


def unreadable(place: object, error: OSError) -> UserError:
    """Return what an OSError says of a checkpoint: that it is damaged, or that this user or machine cannot read it."""
    if error.errno in _DAMAGE:
        return UserError(f"{place} cannot be read ({reason(error)}): {REMEDY}")
    what = "no permission to read it: change its mode or owner"
    if not isinstance(error, PermissionError):
        what = f"{reason(error)}: try again, or use another checkpoint (--resume-from step-N)"
    return UnreadableError(f"{place}: {what}")


class Rectangle(NamedTuple):
    """Rows `top` to `bottom` and columns `left` to `right` of a matrix."""

    top: int
    bottom: int
    left: int
    right: int

    def meet(self, other: "Rectangle") -> "Rectangle | None":
        """Return what two rectangles share."""
        top, bottom = max(self.top, other.top), min(self.bottom, other.bottom)
        left, right = max(self.left, other.left), min(self.right, other.right)
        return Rectangle(top, bottom, left, right) if top < bottom and left < right else None


@dataclass(frozen=True)
class Run:
    """Elements `first` to `last` of columns `left` to `left + width` of a matrix, in row-major order."""

    left: int
    width: int
    first: int
    last: int

    @classmethod
    def of(cls, shape: tuple[int, ...], dim: int, part: Part | None, first: int, last: int) -> "Run":
        """Return a run of a part of a tensor that is seen as a matrix with `dim` in the columns."""
        inner = math.prod(shape[dim + 1 :])
        if part is None:
            return cls(0, math.prod(shape[dim:]), first, last)
        assert part.dim == dim
        return cls(part.start * inner, (part.stop - part.start) * inner, first, last)

    def rectangles(self) -> Iterator[Rectangle]:
        """Yield up to three rectangles that make up the run."""
        at = self.first
        while at < self.last:
            row, column = divmod(at, self.width)
            if column or self.last - at < self.width:
                stop = min(self.width, column + self.last - at)
                yield Rectangle(row, row + 1, self.left + column, self.left + stop)
                at += stop - column
            else:
                bottom = self.last // self.width
                yield Rectangle(row, bottom, self.left, self.left + self.width)
                at = bottom * self.width

    def position(self, row: int, column: int) -> int:
        """Return where an element of the matrix lies in the run."""
        return row * self.width + column - self.left - self.first


class SliceReader:
    """Reader of a step folder's tensors; only what is asked for is read, and all of that is verified.

    Attributes:
        tensors: what there is, by name.
        bytes_read: so far.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._files = folder, manifest.files
        self._names, self.tensors = manifest.slice_files, manifest.tensors
        self._held: dict[int, SliceFile] = {}
        self._old: dict[tuple[str, str], tuple[int, str]] = {}
        self.bytes_read = 0
        if not self.tensors:
            self._index_old()

    def read(self, kind: str, name: str, part: Part | None = None, first: int = 0, last: int | None = None) -> Tensor:
        """Read elements `first` to `last` of a part of a tensor, 1-D, on the CPU; by default all.

        Raises:
            UserError: naming what is damaged or cannot be read.
        """
        entry = self.tensors[name]
        last = math.prod(entry.shape if part is None else part.of(entry.shape)) if last is None else last
        dims = {cut.dim for piece in entry.slices if (cut := part_of(piece)) is not None}
        if part is not None and dims - {part.dim}:  # cut in another way than it is wanted: rows and columns do not meet
            whole = self.read(kind, name).view(entry.shape).narrow(part.dim, part.start, part.stop - part.start)
            return whole.flatten()[first:last]
        dim = part.dim if part is not None else next(iter(dims), 0)
        wanted = Run.of(entry.shape, dim, part, first, last) if entry.shape else Run(0, 1, 0, 1)
        values = torch.empty(last - first, dtype=_DTYPES[entry.dtype])
        areas, found = list(wanted.rectangles()), 0
        for piece in entry.slices:
            number, start, count = piece[:3]
            held = Run.of(entry.shape, dim, part_of(piece), start, start + count) if entry.shape else Run(0, 1, 0, 1)
            for own in held.rectangles():
                for area in areas:
                    if (shared := own.meet(area)) is not None:
                        self._copy(kind, name, number, held, wanted, shared, values)
                        found += (shared.bottom - shared.top) * (shared.right - shared.left)
        if found != len(values):
            raise UserError(f"{self._folder} lacks a part of {name}: {REMEDY}")
        return values

    def verify(self, kinds: Collection[str] | None = None, share: tuple[int, int] = (0, 1)) -> None:
        """Read and verify all slices of some kinds, or one share of them.

        Args:
            kinds: all by default.
            share: this reader's number, and how many readers there are; together they read each block once.

        Raises:
            UserError: naming what is damaged or cannot be read.
        """
        number, readers = share
        total = sum(self._files[name].bytes for name in self._names)
        low, high = total * number // readers, total * (number + 1) // readers
        before = 0
        for index, name in enumerate(self._names):
            size = self._files[name].bytes
            if before < high and before + size > low:
                for key, stored in self._file(index).slices.items():
                    if stored.sha256 and (kinds is None or stored.kind in kinds):
                        self._verify(index, key, stored, low - before, high - before)
            before += size
            self._close(index)

    def _verify(self, index: int, key: str, stored: Stored, low: int, high: int) -> None:
        """Read the blocks of a slice that begin at bytes `low` to `high` of its file."""
        step = BLOCK * _DTYPES[stored.dtype].itemsize
        blocks = math.ceil(stored.elements / BLOCK)
        start = min(max(0, math.ceil((low - stored.offset) / step)), blocks) * BLOCK
        stop = min(max(0, math.ceil((high - stored.offset) / step)) * BLOCK, stored.elements)
        for begin in range(start, stop, READ):
            self._elements(index, key, begin, min(begin + READ, stop))

    def _copy(
        self, kind: str, name: str, number: int, held: Run, wanted: Run, shared: Rectangle, values: Tensor
    ) -> None:
        """Copy what a slice has of what is wanted."""
        width = shared.right - shared.left
        rows = max(1, READ // held.width)
        for top in range(shared.top, shared.bottom, rows):
            count = min(rows, shared.bottom - top)
            begin = held.position(top, shared.left)
            stop = begin + (count - 1) * held.width + width
            target = values.as_strided((count, width), (wanted.width, 1), wanted.position(top, shared.left))
            if count > 1:
                content = self._stored(kind, name, number, begin, stop)
                target.copy_(content.as_strided((count, width), (held.width, 1), content.storage_offset()))
                continue
            for at in range(begin, stop, READ):  # a row may be as long as the tensor
                content = self._stored(kind, name, number, at, min(at + READ, stop))
                target[0, at - begin : at - begin + len(content)].copy_(content)

    def _stored(self, kind: str, name: str, number: int, start: int, stop: int) -> Tensor:
        number, key = self._old.get((kind, name), (number, f"{kind}/{name}"))
        return self._elements(number, key, start, stop)

    def _elements(self, number: int, key: str, start: int, stop: int) -> Tensor:
        file = self._file(number)
        before = file.bytes_read
        try:
            if key not in file.slices:
                raise DamagedError(f"it has no {key}")
            return file.read(key, start, stop)
        except (OSError, DamagedError) as error:
            raise self._unreadable(number, error) from error
        finally:
            self.bytes_read += file.bytes_read - before

    def _file(self, number: int) -> SliceFile:
        """Open a file, or return it if it is; headers are verified."""
        if number not in self._held:
            if len(self._held) == _OPEN:
                self._close(next(iter(self._held)))
            entry: Entry = self._files[self._names[number]]
            header = None if entry.header_bytes is None else (entry.header_bytes, entry.sha256)
            try:
                self._held[number] = SliceFile(self._folder / self._names[number], header)
            except (OSError, DamagedError) as error:
                raise self._unreadable(number, error) from error
            self.bytes_read += self._held[number].bytes_read
        return self._held[number]

    def _close(self, number: int) -> None:
        if (file := self._held.pop(number, None)) is not None:
            file.close()

    def close(self) -> None:
        """Close the files; what is read later opens them again."""
        for number in list(self._held):
            self._close(number)

    def _unreadable(self, number: int, error: OSError | DamagedError) -> UserError:
        path = self._folder / self._names[number]
        if isinstance(error, DamagedError):
            return UserError(f"{path} is damaged ({error}): {REMEDY}")
        return unreadable(path, error)

    def _index_old(self) -> None:
        """List the whole tensors of a checkpoint of format 1 or 2."""
        self._names = tuple(name for name in sorted(self._files) if _OLD.fullmatch(name))
        found: dict[str, TensorEntry] = {}
        for number, file_name in enumerate(self._names):
            kind = file_name.split("-")[0]
            for key, stored in self._file(number).slices.items():
                before = found.get(stored.name)
                if before is not None and (before.dtype, before.shape) != (stored.dtype, stored.shape):
                    continue  # of this kind it does not count as there
                kinds = (*(before.kinds if before else ()), kind)
                whole = ((number, 0, stored.elements),)
                found[stored.name] = TensorEntry(stored.dtype, stored.shape, kinds, whole)
                self._old[kind, stored.name] = (number, key)
        self.tensors = found
