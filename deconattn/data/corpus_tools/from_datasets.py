"""Hugging Face datasets of token ids, as `save_to_disk` writes them or as Parquet: a list of ids a row."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from deconattn.data.reading.input_files import Input, find_inputs
from deconattn.errors import UserError
from deconattn.program import command

_ROWS = 256  # of a Parquet file at a time
_MAX_DOCUMENT = 1 << 28
_ARROW_FILE = b"ARROW1"

Document = tuple[str, npt.NDArray[Any]]


class DatasetDocuments:
    """The rows of a dataset's column, in order, each its place, for messages, and ids `[n]`.

    Raises:
        UserError: no Arrow or Parquet file, no such column, a column of something else, a null, a damaged file; it
            names file and row.
    """

    def __init__(self, source: Path, column: str) -> None:
        self._column = column
        self._inputs = find_inputs([str(source)])
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
