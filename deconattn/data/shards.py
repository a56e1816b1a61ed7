"""One shard: an Arrow IPC file, a row a document, column `tokens: list<uint16>` or `list<uint32>`.

The schema's metadata names the format version, tokenizer, vocabulary size, eos id, source and split, so a shard
that has strayed from its folder still says what it is. Token values are stored uncompressed: reading maps them.
"""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from deconattn.data.answers import plain
from deconattn.data.manifest import FORMAT_VERSION, Manifest, ShardEntry, SpecialTokens, check_size, read_manifest
from deconattn.errors import UserError
from deconattn.program import command

TOKENS_PER_RECORD_BATCH = 1_000_000
_MAGIC = b"ARROW1"
_MAX_DOCUMENT_TOKENS = 2**31 - 1  # list offsets are int32


@dataclass(frozen=True)
class ShardSchema:
    """Schema shared by all shards of a packed corpus."""

    tokenizer_fingerprint: str
    vocab_size: int
    eos_token_id: int
    source: str
    bos_token_id: int | None = None
    special_tokens: SpecialTokens | None = None
    answers: bool = False

    @property
    def dtype(self) -> str:
        """The narrowest of `uint16` and `uint32` that holds every id of the vocabulary, and marks where there are."""
        return "uint16" if self.vocab_size <= 65536 and not self.answers else "uint32"

    def arrow(self, split: str) -> pa.Schema:
        """The Arrow schema, metadata included."""
        metadata = {
            "deconattn.format_version": str(FORMAT_VERSION),
            "deconattn.tokenizer_fingerprint": self.tokenizer_fingerprint,
            "deconattn.vocab_size": str(self.vocab_size),
            "deconattn.eos_token_id": str(self.eos_token_id),
            "deconattn.source": self.source,
            "deconattn.split": split,
        }
        value = pa.uint16() if self.dtype == "uint16" else pa.uint32()
        return pa.schema([pa.field("tokens", pa.list_(value), nullable=False)], metadata=metadata)

    def manifest(self, shards: tuple[ShardEntry, ...]) -> Manifest:
        """The manifest of a folder of such shards."""
        return Manifest(
            format_version=FORMAT_VERSION,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            vocab_size=self.vocab_size,
            eos_token_id=self.eos_token_id,
            bos_token_id=self.bos_token_id,
            special_tokens=self.special_tokens,
            dtype=self.dtype,
            answers=self.answers,
            source=self.source,
            shards=shards,
        )


class _HashingFile:
    """A binary file that hashes what passes through: Arrow's writer only ever appends."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        written = self._file.write(data)
        self.sha256.update(data)
        self.bytes += written
        return written

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.bytes

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True  # the ShardWriter closes the real file, after fsync


def count_fitting(ends: npt.NDArray[np.int64], first: int, room: int) -> int:
    """Index of the first document, from `first` on, that no longer fits into `room` tokens with those before it.

    Documents end at tokens `ends`, `[n]`; n where all fit.
    """
    start = int(ends[first - 1]) if first else 0
    return max(int(np.searchsorted(ends, start + room, side="right")), first)


class ShardWriter:
    """Write documents into one shard; a context manager.

    Everything goes to a temporary name in the same folder. A clean exit flushes it to disk and renames it, and
    sets `entry`; an exception removes it. OSError (a full disk) passes through.
    """

    def __init__(self, path: Path, split: str, schema: ShardSchema) -> None:
        self.path = path
        self.split = split
        self.tokens = 0
        self.documents = 0
        self.entry: ShardEntry | None = None
        self._vocab_size, self._answers = schema.vocab_size, schema.answers
        self._max_token_id = 0
        self._schema = schema.arrow(split)
        self._dtype = np.dtype(schema.dtype)
        self._pending: list[npt.NDArray[Any]] = []  # the next record batch: ids, and each document's count
        self._pending_lengths: list[npt.NDArray[np.int64]] = []
        self._pending_tokens = 0
        self._temporary = path.with_name(f".{path.name}.partial")
        self._file = self._temporary.open("wb")
        self._sink = _HashingFile(self._file)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), self._schema)

    def append(self, document: npt.NDArray[Any]) -> None:
        """Add one document: token ids `[n]`, separator included. Raises ValueError on an id beyond the vocabulary."""
        self.extend(document, np.array([len(document)], dtype=np.int64))

    def extend(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> None:
        """Add documents laid end to end: ids `[n]`, separators included, and each one's count, `[documents]`.

        The record batches are those that appending one after the other gives. Raises ValueError on an id beyond the
        vocabulary, :class:`UserError` on a document too long for an Arrow list.
        """
        longest = int(lengths.max(initial=0))
        if longest > _MAX_DOCUMENT_TOKENS:
            raise UserError(f"a document has {longest} tokens, more than {_MAX_DOCUMENT_TOKENS}; cut it up")
        largest = int((plain(tokens) if self._answers else tokens).max(initial=0))
        if largest >= self._vocab_size or int(tokens.min(initial=0)) < 0:
            raise ValueError(f"token id {largest} outside a vocabulary of {self._vocab_size}")
        tokens = tokens.astype(self._dtype, copy=False)
        ends = np.cumsum(lengths)
        first = start = 0
        while first < len(lengths):
            room = TOKENS_PER_RECORD_BATCH - self._pending_tokens
            stop = count_fitting(ends, first, room)
            if stop == first:  # not one fits
                if self._pending:
                    self._write_batch()
                    continue
                stop = first + 1
            end = int(ends[stop - 1])
            self._pending.append(tokens[start:end])
            self._pending_lengths.append(lengths[first:stop])
            self._pending_tokens += end - start
            first, start = stop, end
        self.tokens += start
        self.documents += len(lengths)

    def pop(self) -> npt.NDArray[Any]:
        """Take the document that was added last back; its ids, `[n]`. Not twice in a row."""
        tokens, lengths = self._pending.pop(), self._pending_lengths.pop()
        cut = len(tokens) - int(lengths[-1])
        if cut:
            self._pending.append(tokens[:cut])
            self._pending_lengths.append(lengths[:-1])
        self._pending_tokens -= len(tokens) - cut
        self.tokens -= len(tokens) - cut
        self.documents -= 1
        return tokens[cut:]

    def _write_batch(self) -> None:
        lengths = np.concatenate(self._pending_lengths)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        values = np.concatenate(self._pending)
        self._max_token_id = max(self._max_token_id, int((plain(values) if self._answers else values).max()))
        # pa.array() would give the same, and import pandas on the way.
        offsets_column, values_column = (
            pa.Array.from_buffers(pa.from_numpy_dtype(part.dtype), len(part), [None, pa.py_buffer(part)])
            for part in (offsets, values)
        )
        column = pa.ListArray.from_arrays(offsets_column, values_column)
        self._writer.write_batch(pa.record_batch([column], schema=self._schema))
        self._pending, self._pending_lengths, self._pending_tokens = [], [], 0

    def close(self) -> ShardEntry:
        """Finish the file under its final name and return its manifest entry."""
        try:
            if self._pending:
                self._write_batch()
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self.path)
        except BaseException:
            self.discard()
            raise
        self.entry = ShardEntry(
            name=self.path.name,
            split=self.split,
            documents=self.documents,
            tokens=self.tokens,
            bytes=self._sink.bytes,
            max_token_id=self._max_token_id,
            sha256=self._sink.sha256.hexdigest(),
        )
        return self.entry

    def discard(self) -> None:
        """Give up: close and remove the temporary file. Never raises over the error that led here."""
        with contextlib.suppress(OSError):  # a full disk fails again when closing flushes; the file goes anyway
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
        else:
            self.close()


@dataclass(frozen=True)
class MappedShard:
    """An open shard, memory-mapped: nothing is read until it is touched.

    Record batch `b` holds tokens `starts[b]` to `starts[b + 1]` of the shard in `values[b]`; `offsets[b]` are its
    documents' bounds within `values[b]` (`[documents + 1]`, first 0).
    """

    path: Path
    starts: npt.NDArray[np.int64]
    values: tuple[npt.NDArray[Any], ...]
    offsets: tuple[npt.NDArray[np.int32], ...]


def check_shard(path: Path, entry: ShardEntry) -> None:
    """Compare a shard's size and first and last bytes with its manifest entry; no token is read.

    Raises :class:`UserError` naming the file when it is missing, empty, truncated, of another size or not Arrow.
    """
    try:
        check_size(path, entry, path.stat().st_size)
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
            file.seek(-len(_MAGIC), os.SEEK_END)
            tail = file.read()
    except FileNotFoundError:
        check_size(path, entry, None)
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check its permissions and its disk") from None
    if head != _MAGIC or tail != _MAGIC:
        raise UserError(f"{path} is not an Arrow file; copy it again or {_repack()}")


def open_shard(path: Path, entry: ShardEntry, manifest: Manifest) -> MappedShard:
    """Map a shard. Raises :class:`UserError` naming the file if it is damaged, or another corpus' or split's."""
    check_shard(path, entry)
    try:
        with pa.memory_map(str(path)) as file:
            mapped = file.read_buffer()  # outlives the file: thousands of shards hold no descriptor
        reader = pa.ipc.open_file(pa.BufferReader(mapped))
        _check_schema(reader.schema, entry, manifest)
        values, offsets = [], []
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate()
            column = batch.column("tokens")
            flat, bounds = _in_place(column.values), _in_place(column.offsets)
            if bounds[0] != 0 or bounds[-1] != len(flat):
                raise pa.ArrowInvalid(f"record batch {number} is inconsistent")
            values.append(flat)
            offsets.append(bounds)
    except (pa.ArrowException, OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged ({reason}); copy it again or {_repack()}") from None
    starts = np.cumsum([0, *(len(flat) for flat in values)], dtype=np.int64)
    if int(starts[-1]) != entry.tokens:
        raise UserError(f"{path} holds {starts[-1]} tokens, {entry.tokens} expected; copy it again or {_repack()}")
    return MappedShard(path=path, starts=starts, values=tuple(values), offsets=tuple(offsets))


def _check_schema(schema: pa.Schema, entry: ShardEntry, manifest: Manifest) -> None:
    """What a shard says of itself against the manifest's word. Raises ValueError."""
    tokens = schema.field("tokens").type
    if not pa.types.is_list(tokens) or str(tokens.value_type) != manifest.dtype:
        raise ValueError(f"its tokens are {tokens}, not lists of {manifest.dtype}")
    held = schema.metadata or {}
    for key, said in (("split", entry.split), ("tokenizer_fingerprint", manifest.tokenizer_fingerprint)):
        value = held.get(f"deconattn.{key}".encode(), b"nothing")
        if value != said.encode():
            raise ValueError(f"its {key} is {value.decode(errors='replace')}, {said} in the manifest")


def _in_place(array: pa.Array) -> npt.NDArray[Any]:
    """The values where they lie. Arrow's own to_numpy imports pandas, which takes longer than mapping all shards."""
    if array.null_count:
        raise pa.ArrowInvalid("it has nulls")
    dtype = np.dtype(str(array.type))
    if not len(array):
        return np.empty(0, dtype=dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def verify_checksums(folder: Path) -> Manifest:
    """Read every shard of a packed folder and compare it with its SHA-256; UserError names the first that differs."""
    manifest = read_manifest(folder)
    for entry in manifest.shards:
        path = folder / entry.name
        check_shard(path, entry)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry.sha256:
            raise UserError(f"{path} does not match its checksum; copy it again or {_repack()}")
    return manifest


def _repack() -> str:
    return f"pack the corpus again with {command('pack')}"
