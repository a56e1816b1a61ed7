"""The table of a corpus packed best-fit: made once, in a file beside the corpus, and mapped by every rank.

A file is a header of 4096 bytes (JSON) and the arrays `full`, `starts`, `bounds` and `lengths` of :class:`Table`. What
a table depends on is hashed into its name and its header.

A table that is damaged, or not this corpus's, is made anew, and a line says so. Where the corpus's folder cannot be
written, the table is in the run folder. Of processes that want the same table at once the first makes it and the
others wait for its lock.
"""

import errno
import hashlib
import json
import mmap
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn import durable, locks
from deconattn.data.corpus import TokenCorpus
from deconattn.data.loading.best_fit_build import HEADER_BYTES, Counts, digest, write_arrays
from deconattn.data.manifest import TABLES_NAME
from deconattn.errors import of_the_disk

VERSION = 1
"""Of the algorithm and of the file; one higher makes every table anew."""
_KIND = "deconattn best-fit table"
_LONG = 10_000_000
"""Documents from which on making a table takes so long that a line says what goes on."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Header:
    """First bytes of a table.

    Attributes:
        key: hash of what the table depends on.
        documents, cut: how many there are, and how many are longer than a sequence.
        full, packed: sequences that are one piece of a longer document, and the others.
        pieces: in the packed sequences.
        sha256: of the arrays.
    """

    key: str
    documents: int
    cut: int
    full: int
    packed: int
    pieces: int
    sha256: str

    @classmethod
    def of(cls, key: str, counts: Counts, sha256: str) -> "Header":
        """Return the header of arrays that were written."""
        return cls(key, counts.documents, counts.cut, counts.full, counts.packed, counts.pieces, sha256)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return HEADER_BYTES + 8 * (self.full + self.pieces + self.packed + 1) + 4 * self.pieces

    def to_bytes(self) -> bytes:
        """Return the header as it is written, with a checksum of its own."""
        text = json.dumps({"kind": _KIND, "seal": self._seal(), **asdict(self)})
        return text.encode().ljust(HEADER_BYTES - 1) + b"\n"

    @classmethod
    def of_bytes(cls, content: bytes) -> "Header":
        """Read a header. Raises ValueError, saying why, for what is none."""
        try:
            found = json.loads(content)
            header = cls(**{field.name: found[field.name] for field in fields(cls)})
            whole = found["kind"] == _KIND and found["seal"] == header._seal()
        except (ValueError, LookupError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise ValueError("its header is damaged")
        return header

    def _seal(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class Table:
    """A table, mapped: nothing is read until it is touched.

    Attributes:
        full: `[full]`, twice a full piece's first token of the corpus, and 1 more where its document goes on.
        starts: `[pieces]`, first token of each piece of the packed sequences, one sequence after the other.
        bounds: `[packed + 1]`, first piece of each packed sequence, and the end.
        lengths: `[pieces]`, tokens of each piece.
    """

    def __init__(self, path: Path, key: str, verify: bool) -> None:
        """Map a table.

        Args:
            verify: read all of it and compare with its checksum.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or another's; the message says how.
            OSError: it cannot be read.
        """
        self.path = path
        with path.open("rb") as file:
            self.header = header = Header.of_bytes(file.read(HEADER_BYTES))
            size = os.fstat(file.fileno()).st_size
            if header.key != key:
                raise ValueError("it is of another corpus")
            if size != header.size:
                raise ValueError(f"it has {size} bytes in place of {header.size}")
            if verify and digest(file) != header.sha256:
                raise ValueError("its checksum is wrong")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        starts_at = HEADER_BYTES + 8 * header.full
        bounds_at = starts_at + 8 * header.pieces
        lengths_at = bounds_at + 8 * (header.packed + 1)
        self.full: npt.NDArray[np.int64] = np.frombuffer(mapped, np.int64, header.full, HEADER_BYTES)
        self.starts: npt.NDArray[np.int64] = np.frombuffer(mapped, np.int64, header.pieces, starts_at)
        self.bounds: npt.NDArray[np.int64] = np.frombuffer(mapped, np.int64, header.packed + 1, bounds_at)
        self.lengths: npt.NDArray[np.int32] = np.frombuffer(mapped, np.int32, header.pieces, lengths_at)


def key_of(corpus: TokenCorpus, seq_len: int) -> str:
    """Return the hash of what a corpus's table depends on: its shards in order, the length, and the algorithm."""
    shards = [[entry.name, entry.sha256, entry.documents, entry.tokens] for entry in corpus.entries]
    told: list[Any] = [_KIND, VERSION, seq_len, corpus.split, shards]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def open_table(corpus: TokenCorpus, seq_len: int, spare: Path | None, verify: bool) -> Table:
    """Map a corpus's table, which is made where there is none.

    Args:
        spare: folder for it where the corpus's cannot be written.
        verify: compare a table that is found with its checksum, and say what is done; one process of a job does.

    Raises:
        UserError: a damaged shard, or no folder that can be written.
    """
    key = key_of(corpus, seq_len)
    name = f"{corpus.split}-{seq_len}-{key[:16]}.table"
    paths = [folder / name for folder in (corpus.folder / TABLES_NAME, spare) if folder is not None]
    for path in paths:
        if (table := _found(path, key, verify)) is not None:
            return table
    for path, otherwise in zip(paths, [*paths[1:], None], strict=True):
        try:
            return _made(path, corpus, seq_len, key, verify)
        except OSError as error:
            if otherwise is None:
                raise of_the_disk(error, path) from error
            _say(f"{path.parent} cannot be written ({error.strerror}): the best-fit table is {otherwise}")
    raise AssertionError("there is a folder")


def _found(path: Path, key: str, verify: bool) -> Table | None:
    try:
        return Table(path, key, verify)
    except FileNotFoundError:
        return None
    except ValueError as error:
        _say(f"{path} is made anew: {error}")
    except OSError as error:
        _say(f"{path} cannot be read ({error.strerror}) and is made anew")
    return None


def _made(path: Path, corpus: TokenCorpus, seq_len: int, key: str, say: bool) -> Table:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _one_maker(path.with_name(f".{path.name}.lock"), corpus, say):
        table = None
        if path.exists():  # another has made it meanwhile, or it is damaged
            with suppress(OSError, ValueError):
                table = Table(path, key, True)
        if table is None:
            documents = sum(entry.documents for entry in corpus.entries)
            if documents >= _LONG and say:
                _say(f"{corpus.folder}: {documents:,} documents are packed, once; the table is {path}")
            _write(path, corpus, seq_len, key)
            table = Table(path, key, False)
    return table


@contextmanager
def _one_maker(lock: Path, corpus: TokenCorpus, say: bool) -> Iterator[None]:
    """Wait until no other process makes the same table; where there are no locks two may, which harms neither."""
    with ExitStack() as stack:
        try:
            if stack.enter_context(locks.hold_lock(lock)) is None:
                if say:
                    _say(f"{corpus.folder}: {locks.lock_holder(lock)} makes the best-fit table; waiting for it")
                stack.enter_context(locks.hold_lock(lock, wait=True))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


def _write(path: Path, corpus: TokenCorpus, seq_len: int, key: str) -> None:
    """Make a table and put it at `path`, atomically and durably."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        with partial.open("w+b") as file:
            counts = write_arrays(file, corpus, seq_len)
            header = Header.of(key, counts, digest(file))
            file.seek(0)
            file.write(header.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    durable.sync_folder(path.parent)


def _say(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)
