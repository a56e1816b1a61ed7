"""One shard against its manifest entry and against itself: every fault, each with its place."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from deconattn.data.answers import plain
from deconattn.data.corpus_tools.new_corpus import schema_of
from deconattn.data.corpus_tools.record_batches import BROKEN, MAGIC, LocatedBatch, open_record_batches
from deconattn.data.manifest import Manifest, ShardEntry
from deconattn.data.mapped import fetch
from deconattn.json_files import reason
from deconattn.progress import Advance

_PIECE = 1 << 24
_LISTED = 10  # of the faults of one kind in one record batch; the others are counted

Sound = Callable[[int, npt.NDArray[Any], npt.NDArray[np.int32]], Iterator[tuple[int, str]]]
"""Check of a sound record batch: takes its first document's number, values and document bounds; yields faults, each
with the document's number."""


@dataclass
class Examined:
    """Faults and counts of one shard; `inner_separators` are those before a document's last token."""

    faults: list[str] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    max_token_id: int = 0
    inner_separators: int = 0


def examine_shard(
    folder: Path, entry: ShardEntry, manifest: Manifest, first: int, sound: Sound, advance: Advance
) -> Examined:
    """Check a shard's size, checksum, Arrow structure, offsets, ids, separators and counts.

    Args:
        first: the number of its first document in the split; faults name documents by such numbers.
        sound: a further check of record batches that are sound.
        advance: told how many bytes have been read.
    """
    path = folder / entry.name
    found = Examined()
    try:
        _examine(path, entry, manifest, first, sound, advance, found)
    except OSError as error:
        found.faults.append(f"{path}: cannot be read ({error.strerror or error})")
    return found


def _examine(
    path: Path, entry: ShardEntry, manifest: Manifest, first: int, sound: Sound, advance: Advance, found: Examined
) -> None:
    size = os.stat(path).st_size
    if size != entry.bytes:
        found.faults.append(f"{path}: {size} bytes, {entry.bytes} in the manifest")
    if size == 0:
        return
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer()
    digest = _digest(content, advance)
    if size == entry.bytes and digest != entry.sha256:
        found.faults.append(f"{path}: SHA-256 {digest}, {entry.sha256} in the manifest")
    if content[: len(MAGIC)].to_pybytes() != MAGIC:
        found.faults.append(f"{path}: does not begin as an Arrow file")
    schema, blocks, fault = open_record_batches(content)
    if fault:
        found.faults.append(f"{path}: the footer is damaged ({fault})")
    if schema is None:
        found.faults.append(f"{path}: holds no Arrow schema")
        return
    expected = schema_of(manifest, "").arrow(entry.split)
    if not schema.equals(expected):
        found.faults.append(f"{path}: is not a shard (its columns are {_columns(schema)}, not {_columns(expected)})")
        return
    found.faults += [f"{path}: {fault}" for fault in _metadata_faults(schema, expected)]
    whole = not fault
    number: int | None = first
    for block in blocks:
        place = f"{path}, record batch {block.number} (byte {block.position})"
        documents = _RecordBatch(block, manifest)
        found.faults += [f"{place}{fault}" for fault in documents.faults(number, sound)]
        whole &= documents.readable
        # How many documents one held that cannot be read, nobody knows.
        number = number + documents.count if number is not None and documents.readable else None
        found.documents += documents.count
        found.tokens += len(documents.values)
        found.max_token_id = max(found.max_token_id, int(documents.values.max(initial=0)))
        found.inner_separators += documents.inner_separators
    if not whole:  # counts would differ, and say nothing new
        return
    for name in ("documents", "tokens", "max_token_id"):
        held, said = getattr(found, name), getattr(entry, name)
        if held != said:
            found.faults.append(f"{path}: {name} {held}, {said} in the manifest")


class _RecordBatch:
    """The documents of one record batch."""

    def __init__(self, block: LocatedBatch, manifest: Manifest) -> None:
        self._eos, self._vocab_size = manifest.eos_token_id, manifest.vocab_size
        self._answers = manifest.answers
        self.values: npt.NDArray[Any] = np.empty(0, dtype=manifest.dtype)
        self.bounds: npt.NDArray[np.int32] = np.zeros(1, dtype=np.int32)
        self.inner_separators = 0
        self.readable = False
        self._fault = block.fault
        if block.batch is None:
            return
        try:
            self._read(block.batch, np.dtype(manifest.dtype))
            self.readable = True
        except BROKEN as error:
            self._fault = reason(error)

    def _read(self, batch: pa.RecordBatch, dtype: np.dtype[Any]) -> None:
        column = batch.column(0)
        validity, offsets, inner_validity, values = column.buffers()
        if column.null_count or column.values.null_count or validity is not None or inner_validity is not None:
            raise ValueError("holds nulls")
        # Not pyarrow's own arrays: those trust that the buffers are as long as the batch says.
        bounds = np.frombuffer(offsets, np.int32, len(column) + 1)
        flat = np.frombuffer(values, dtype, len(column.values)) if values is not None else self.values
        for array in (bounds, flat):
            fetch(array.ctypes.data, array.nbytes)
        self.bounds, self.values = bounds, plain(flat) if self._answers else flat

    @property
    def count(self) -> int:
        return len(self.bounds) - 1

    def faults(self, first: int | None, sound: Sound) -> Iterator[str]:
        """Yield the faults, each the end of a line that begins with the record batch.

        Without the number of the first document they are counted within the record batch.
        """
        if not self.readable:
            yield f": cannot be read ({self._fault})"
            return
        starts, ends, total = self.bounds[:-1], self.bounds[1:], len(self.values)
        if self.bounds[0] != 0:
            yield f": its first document begins at token {self.bounds[0]}, not 0"
        if self.bounds[-1] != total:
            yield f": its last document ends at token {self.bounds[-1]}, but it holds {total}"
        inside = (starts >= 0) & (starts <= ends) & (ends <= total)
        yield from self._listed(
            first, np.flatnonzero(~inside), lambda d: f"spans tokens {starts[d]} to {ends[d]} of {total}"
        )
        yield from self._listed(first, np.flatnonzero(inside & (starts == ends)), lambda d: "is empty")
        filled = np.flatnonzero(inside & (starts < ends))
        last = self.values[ends[filled] - 1]
        yield from self._listed(
            first,
            filled[last != self._eos],
            lambda d: f"ends with id {self.values[ends[d] - 1]}, not the separator {self._eos}",
        )
        in_order = bool(inside.all())
        foreign = np.flatnonzero(self.values >= self._vocab_size)
        if len(foreign):
            yield from self._foreign(first, foreign, in_order)
        self.inner_separators = int((self.values == self._eos).sum()) - int((last == self._eos).sum())
        if first is not None and in_order and self.bounds[0] == 0 and self.bounds[-1] == total:
            for number, fault in sound(first, self.values, self.bounds):
                yield f", document {number}: {fault}"

    def _foreign(self, first: int | None, places: npt.NDArray[np.intp], in_order: bool) -> Iterator[str]:
        for place in places[:_LISTED]:
            what = f"id {self.values[place]} is beyond the vocabulary of {self._vocab_size}"
            document = int(np.searchsorted(self.bounds, place, side="right")) - 1
            if in_order and 0 <= document < self.count:
                yield f", {_document(first, document)}: token {place - self.bounds[document]}: {what}"
            else:
                yield f": token {place}: {what}"
        if len(places) > _LISTED:
            yield f": {len(places) - _LISTED} more ids beyond the vocabulary"

    def _listed(self, first: int | None, documents: npt.NDArray[np.intp], what: Callable[[int], str]) -> Iterator[str]:
        for document in documents[:_LISTED]:
            yield f", {_document(first, document)}: {what(document)}"
        if len(documents) > _LISTED:
            yield f": {len(documents) - _LISTED} more such documents, the last is {_document(first, documents[-1])}"


def _document(first: int | None, place: int) -> str:
    return f"its document {place}" if first is None else f"document {first + place}"


def _digest(content: pa.Buffer, advance: Advance) -> str:
    digest = hashlib.sha256()
    for start in range(0, content.size, _PIECE):
        piece = content[start : start + _PIECE]
        fetch(piece.address, piece.size)
        digest.update(piece)
        advance(piece.size)
    return digest.hexdigest()


def _columns(schema: pa.Schema) -> str:
    try:
        return ", ".join(f"{field.name}: {field.type}" for field in schema)
    except ValueError:
        return "of names that are not UTF-8"


def _metadata_faults(schema: pa.Schema, expected: pa.Schema) -> Iterator[str]:
    metadata = schema.metadata or {}
    for key, value in expected.metadata.items():
        held = metadata.get(key, b"nothing")
        if key != b"deconattn.source" and held != value:
            yield f"its {key.decode()} is {held.decode(errors='replace')}, the manifest's {value.decode()}"
