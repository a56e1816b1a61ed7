"""Token ids that other programs made: Megatron-LM's indexed datasets, and datasets of Hugging Face.

Megatron-LM has token ids in `PREFIX.bin`, lengths and bounds in `PREFIX.idx`. The index, little-endian: magic, version
(uint64), code of the ids' type (uint8), number of sequences and of document bounds (uint64 each); a sequence's length
(int32) each, its byte offset in the .bin (int64) each; the documents' bounds, counted in sequences, first 0 (int64
each). Hugging Face datasets are as `save_to_disk` writes them, or Parquet: a list of ids a row.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from deconattn.data.mapped import fetch
from deconattn.data.reading.input_files import Input, find_inputs
from deconattn.errors import UserError
from deconattn.program import command

_HEAD = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_FLOATS = (6, 7)
_ROWS = 256  # of a Parquet file at a time
_MAX_DOCUMENT = 1 << 28
_ARROW_FILE = b"ARROW1"


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
        """Number of documents, empty ones included."""
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


Document = tuple[str, npt.NDArray[Any]]


class DatasetDocuments:
    """The rows of a dataset's column, in order, each its place, for messages, and ids `[n]`.

    Args:
        split: which one to take of a data set of several splits.

    `left_out` counts the files of the folder that are not read, by ending.

    Raises:
        UserError: no Arrow or Parquet file, no such column, a column of something else, a null, a damaged file; it
            names file and row.
    """

    def __init__(self, source: Path, column: str, split: str | None = None) -> None:
        self._column = column
        self.left_out: Counter[str] = Counter()
        self._inputs = find_inputs([str(source)], text_field=None, split=split, left_out=self.left_out)
        for file in self._inputs:
            if file.kind not in ("arrow", "parquet"):
                raise UserError(
                    f"{file.name}: not a dataset of ids; give Arrow or Parquet files, or {command('pack')} for text"
                )

    def __iter__(self) -> Iterator[Document]:
        for file in self._inputs:
            row = 0
            try:
                for batch in self._batches(file):
                    yield from _rows(batch, file.name, row)
                    row += len(batch)
            except (pa.ArrowException, OSError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(f"{file.name}: row {row}: cannot be read ({reason}); copy the file again") from None

    def _batches(self, file: Input) -> Iterator[pa.Array]:
        if file.kind == "parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(file.name, pre_buffer=False) as parquet:
                self._check_column(file, parquet.schema_arrow)
                for batch in parquet.iter_batches(_ROWS, columns=[self._column]):
                    yield batch.column(0)
            return
        with pa.memory_map(file.name) as mapped:
            if mapped.read(len(_ARROW_FILE)) == _ARROW_FILE:
                reader = pa.ipc.open_file(mapped)
                self._check_column(file, reader.schema)
                for number in range(reader.num_record_batches):
                    yield reader.get_batch(number).column(self._column)
                return
            mapped.seek(0)
            stream = pa.ipc.open_stream(mapped)
            self._check_column(file, stream.schema)
            for batch in stream:
                yield batch.column(self._column)

    def _check_column(self, file: Input, schema: pa.Schema) -> None:
        if self._column not in schema.names:
            raise UserError(
                f"{file.name}: has no column {self._column!r} (but {', '.join(schema.names)}); name it with --column"
            )
        kind = schema.field(self._column).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not lists or not pa.types.is_integer(kind.value_type):
            raise UserError(f"{file.name}: column {self._column!r} is {kind}, not lists of ids; name one with --column")


def cut_at_separators(rows: Iterable[Document], separator: int) -> Iterator[Document]:
    """Documents out of rows that are pieces of one long sequence: they end at separators, wherever rows end.

    Each has the place of the row that it begins in. What follows the last separator is a document too. Raises
    :class:`UserError` for 268 435 456 ids without a separator.
    """
    parts: list[npt.NDArray[Any]] = []
    begun, held = "", 0
    for place, ids in rows:
        start = 0
        for end in (np.flatnonzero(ids == separator) + 1).tolist():
            parts.append(ids[start:end])
            yield begun or place, np.concatenate(parts)
            parts, begun, held, start = [], "", 0, end
        if start < len(ids):
            parts.append(ids[start:])
            begun = begun or place
            held += len(ids) - start
        if held > _MAX_DOCUMENT:
            raise UserError(f"{begun}: no separator {separator} in {held} ids; leave --pieces out, or mend --tokenizer")
    if parts:
        yield begun, np.concatenate(parts)


def _rows(column: pa.Array, name: str, first: int) -> Iterator[Document]:
    column.validate(full=True)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"{name}: row {first + row} is null; filter the dataset")
    values = column.flatten()
    if pa.types.is_fixed_size_list(column.type):
        lengths = np.full(len(column), column.type.list_size)
    else:
        lengths = column.value_lengths().to_numpy()
    ends = np.cumsum(lengths, dtype=np.int64)
    if values.null_count:
        place = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        row = int(np.searchsorted(ends, place, side="right"))
        raise UserError(
            f"{name}: row {first + row}: id {place - int(ends[row] - lengths[row])} is null; filter the dataset"
        )
    ids = values.to_numpy()
    for row, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
        yield f"{name}: row {first + row}", ids[end - length : end]
