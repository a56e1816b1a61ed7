"""The record batches of an Arrow IPC file, each with its position, as far as they can still be read."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from deconattn.json_files import reason

MAGIC = b"ARROW1"
_HEAD = 8  # magic and padding; then a stream of messages begins
_TAIL = 10  # the footer's length and magic
_RECORD_BATCHES = 3  # field of the footer's table: version, schema, dictionaries, record batches
_BLOCK = np.dtype([("offset", "<i8"), ("metadata", "<i4"), ("padding", "<i4"), ("body", "<i8")])
BROKEN = (pa.ArrowException, OSError, EOFError, ValueError, KeyError, IndexError, struct.error, SystemError)
"""Exceptions of pyarrow and `struct` for malformed bytes (SystemError: `len` of what has a negative length)."""


@dataclass(frozen=True)
class LocatedBatch:
    """Record batch `number`, which begins at byte `position` of its file; without `batch` it cannot be read."""

    number: int
    position: int
    batch: pa.RecordBatch | None
    fault: str


def open_record_batches(content: pa.Buffer) -> tuple[pa.Schema | None, Iterator[LocatedBatch], str]:
    """The schema, the record batches in order, and what is wrong with the footer (nothing, if it is sound).

    Without a footer the messages are followed from the file's beginning; that ends at the first one that is broken.
    """
    try:
        reader = pa.ipc.open_file(pa.BufferReader(content))
        places = _listed(content)
        if len(places) != reader.num_record_batches:
            raise ValueError("its list of record batches does not hold together")
    except BROKEN as error:
        schema, blocks = _follow(content)
        return schema, blocks, reason(error)
    ends = places["offset"] + places["metadata"] + places["body"]
    gaps = np.flatnonzero(places["offset"][1:] != ends[:-1])
    fault = f"record batch {gaps[0] + 1} does not begin where the one before it ends" if len(gaps) else ""
    return reader.schema, (_get(reader, number, int(p)) for number, p in enumerate(places["offset"])), fault


def _listed(content: pa.Buffer) -> npt.NDArray[np.void]:
    """The footer's list of record batches; a FlatBuffers table, which pyarrow has found sound but does not show."""
    size = int.from_bytes(content[-_TAIL : -len(MAGIC)].to_pybytes(), "little")
    footer = content[content.size - _TAIL - size : content.size - _TAIL].to_pybytes()
    (table,) = struct.unpack_from("<I", footer)
    fields = table - struct.unpack_from("<i", footer, table)[0]
    (offset,) = struct.unpack_from("<H", footer, fields + 4 + 2 * _RECORD_BATCHES)
    vector = table + offset
    vector += struct.unpack_from("<I", footer, vector)[0]
    (count,) = struct.unpack_from("<I", footer, vector)
    return np.frombuffer(footer, _BLOCK, count, vector + 4)


def _get(reader: pa.RecordBatchFileReader, number: int, position: int) -> LocatedBatch:
    try:
        return LocatedBatch(number, position, reader.get_batch(number), "")
    except BROKEN as error:
        return LocatedBatch(number, position, None, reason(error))


def _follow(content: pa.Buffer) -> tuple[pa.Schema | None, Iterator[LocatedBatch]]:
    source = pa.BufferReader(content)
    try:
        source.seek(_HEAD)
        schema = pa.ipc.read_schema(source)
    except BROKEN:
        return None, iter(())
    return schema, _messages(source, schema)


def _messages(source: pa.BufferReader, schema: pa.Schema) -> Iterator[LocatedBatch]:
    number = 0
    while True:
        position = source.tell()
        try:
            message = pa.ipc.read_message(source)
        except EOFError:  # the end of the stream, as it should be
            return
        except BROKEN as error:
            yield LocatedBatch(number, position, None, reason(error))
            return
        try:
            yield LocatedBatch(number, position, pa.ipc.read_record_batch(message, schema), "")
        except BROKEN as error:
            yield LocatedBatch(number, position, None, reason(error))
        number += 1
