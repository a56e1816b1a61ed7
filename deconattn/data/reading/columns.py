"""The rows of Parquet and Arrow inputs: one text column, cut into pieces of about as many bytes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from deconattn.data.reading.input_files import Input
from deconattn.data.reading.lines import GRID
from deconattn.data.reading.sources import damage_named, opened
from deconattn.errors import UserError

_BITS = 24
"""A piece's number is its group's (row group or record batch) << 24 plus its own within the group."""
_ROWS = 256  # that Parquet decodes at a time
_ROW_BYTES = 16  # that a row counts beside its text, so that a piece has an end where texts have no length
_MAGIC = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of an input.

    Attributes:
        number: increases from piece to piece, with gaps.
        content: an Arrow IPC stream of one binary column.
        position: file bytes consumed.
    """

    number: int
    content: bytes
    position: int


def cut_rows(source: Input, text_field: str, start: int) -> Iterator[Rows]:
    """The pieces of a Parquet or Arrow input from number `start` on; row groups before it are not read.

    A row group's pages are read one at a time; a record batch is in memory as a whole.

    Raises:
        UserError: a damaged file, or one without such a column of text.
    """
    read = _parquet if source.kind == "parquet" else _arrow
    before = 0  # file bytes
    with opened(source) as raw:
        for group in read(source, raw, text_field, start >> _BITS):
            rows = 0
            for index, (columns, content) in enumerate(_pieces(group.columns)):
                rows += sum(map(len, columns))
                number = (group.number << _BITS) + index
                if number >= start:
                    yield Rows(number, content, before + (group.end - before) * rows // max(group.rows, rows))
            before = group.end


@dataclass(frozen=True)
class _Group:
    """A row group or record batch; `end` is the file's byte where it ends, about."""

    number: int
    rows: int
    columns: Iterator[Any]
    end: int


def _parquet(source: Input, raw: Any, text_field: str, first: int) -> Iterator[_Group]:
    import pyarrow.parquet as pq

    with damage_named(source, ""):
        file = pq.ParquetFile(raw, buffer_size=GRID, pre_buffer=False, page_checksum_verification=True)
        groups = file.num_row_groups
        _find_column(file.schema_arrow, source, text_field)

    def columns(group: int, expected: int) -> Iterator[Any]:
        rows = 0
        with damage_named(source, f"in row group {group}"):
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[text_field], use_threads=False):
                rows += len(batch)
                yield _as_binary(batch.column(0))
            if rows != expected:
                raise pa.ArrowInvalid(f"it holds {rows:,} of {expected:,} rows")

    for group in range(first, groups):
        rows = file.metadata.row_group(group).num_rows
        yield _Group(group, rows, columns(group, rows), source.size * (group + 1) // groups)


def _arrow(source: Input, raw: Any, text_field: str, first: int) -> Iterator[_Group]:
    with damage_named(source, ""):
        is_file = raw.read(len(_MAGIC)) == _MAGIC
        open_ipc = pa.ipc.open_file if is_file else pa.ipc.open_stream
        raw.seek(0)
        field = _find_column(open_ipc(raw).schema, source, text_field)
        raw.seek(0)
        reader = open_ipc(raw, options=pa.ipc.IpcReadOptions(included_fields=[field], use_threads=False))
    if is_file:
        groups = reader.num_record_batches
        for group in range(first, groups):
            with damage_named(source, f"in record batch {group}"):
                column = _as_binary(reader.get_batch(group).column(0))
            yield _Group(group, len(column), iter([column]), source.size * (group + 1) // groups)
        return
    for group in count():
        with damage_named(source, f"in record batch {group}"):
            try:
                column = _as_binary(reader.read_next_batch().column(0))
            except StopIteration:
                _check_end(raw)
                return
        if group >= first:
            yield _Group(group, len(column), iter([column]), raw.tell())


def _check_end(raw: Any) -> None:
    """A stream that was cut between two batches reads like a whole one, but for its end mark."""
    raw.seek(max(raw.tell() - len(_STREAM_END), 0))
    if raw.read(len(_STREAM_END)) != _STREAM_END or raw.read(1):
        raise pa.ArrowInvalid("the end mark is missing")


def _find_column(schema: Any, source: Input, text_field: str) -> int:
    names = schema.names
    if names.count(text_field) != 1:
        number = "several columns" if text_field in names else "no column"
        remedy = f"give --text-field one of {' '.join(', '.join(names).split())}" if names else "leave the file out"
        raise UserError(f"{source.name} has {number} {text_field!r}; {remedy}")
    kind = schema.field(names.index(text_field)).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"{source.name}: column {text_field!r} is {kind}, not text; give another --text-field")
    return int(names.index(text_field))


def _as_binary(column: Any) -> Any:
    """The column with checked offsets; whether its bytes are UTF-8 is judged row by row later."""
    if pa.types.is_dictionary(column.type):
        values = _as_binary(column.dictionary)
        return pa.DictionaryArray.from_arrays(column.indices, values).dictionary_decode()  # checks the indices
    if pa.types.is_string_view(column.type):
        column = column.view(pa.binary_view())
        column.validate(full=True)
        return column.cast(pa.binary())
    column = column.view(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
    column.validate(full=True)
    return column


def _pieces(columns: Iterable[Any]) -> Iterator[tuple[list[Any], bytes]]:
    """Cut after the row that reaches the grid's bytes, however the rows come in columns."""
    pending: list[Any] = []
    room = GRID
    for column in columns:
        lengths = _byte_lengths(column) + _ROW_BYTES
        at = 0
        while at < len(column):
            end = at + int(lengths[at:].cumsum().searchsorted(room)) + 1
            pending.append(column[at:end])
            room -= int(lengths[at:end].sum())
            if room <= 0:
                yield pending, _serialized(pending)
                pending, room = [], GRID
            at = end
    if pending:
        yield pending, _serialized(pending)


def _byte_lengths(column: Any) -> npt.NDArray[np.int64]:
    kind = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    ends = np.frombuffer(column.buffers()[1], kind, len(column) + 1, column.offset * np.dtype(kind).itemsize)
    return np.diff(ends).astype(np.int64)


def _serialized(columns: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("", columns[0].type)])) as writer:
        for column in columns:
            writer.write_batch(pa.record_batch([column], names=[""]))
    content: bytes = sink.getvalue().to_pybytes()
    return content
