"""The bytes of an input: opening local files, URLs and stdin, decompression, and what can go wrong with them."""

import gzip
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import takewhile
from select import select
from typing import Any

import pyarrow as pa

from deconattn.data.reading.encodings import MARK_BYTES, as_utf8, marked_encoding
from deconattn.data.reading.input_files import STDIN, Input, is_url, open_remote, stamp_of, unreachable
from deconattn.data.reading.json_layout import BadJson, find_layout, one_a_line
from deconattn.data.reading.kinds import is_json
from deconattn.data.reading.lines import LIMIT
from deconattn.errors import UserError

_CHUNK = 1 << 18
_STDIN_WAIT = 0.1  # seconds after which a pipe that says nothing lets its reader look around
_BROKEN = (
    pa.ArrowException,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    MemoryError,
    lzma.LZMAError,
    zlib.error,
)
_WINDOW = "requires too much memory"  # zstd's words


def read_chunks(source: Input, skip: int, stopped: Callable[[], bool]) -> Generator[tuple[bytes, int], None, None]:
    """The lines of a file, in UTF-8, from byte `skip` on, in pieces, each with the file bytes consumed so far.

    They are the file's decompressed bytes, unless a mark says that it is UTF-16 or UTF-32, or it is a JSON array or
    objects that span lines. What is skipped of a plain file is not read. Ends early where `stopped` says so, even if
    stdin is silent.

    Raises:
        UserError: a file that is damaged, not to be read, or that changed since it was found.
    """
    if source.name == STDIN:
        yield from _after(_lines_of(source, _stdin(stopped)), skip)
        return
    with opened(source) as raw:
        if source.codec is not None:
            chunks = _lines_of(source, _decompressed(source, raw))
        elif source.size and skip and _lies_as_read(source, raw):  # some servers tell no size, and then cannot seek
            raw.seek(skip)
            chunks, skip = _plain(source, raw), 0
        else:
            chunks = _lines_of(source, _plain(source, raw))
        yield from _after(takewhile(lambda _: not stopped(), chunks), skip)


def _lines_of(source: Input, chunks: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    """A whole file's lines out of its bytes."""
    try:
        chunks = as_utf8(chunks)
        if is_json(source.name):
            layout, chunks = find_layout(chunks, LIMIT)
            chunks = one_a_line(chunks, layout)
        yield from chunks
    except (UnicodeDecodeError, BadJson) as error:
        raise _damaged(source, error, "") from None


def _lies_as_read(source: Input, raw: Any) -> bool:
    """Whether a plain file's lines are its bytes; asked at its beginning, and left there."""
    try:
        if is_json(source.name):
            return find_layout(as_utf8(_plain(source, raw)), LIMIT)[0] == "lines"
        return marked_encoding(raw.read(MARK_BYTES)) is None
    finally:
        raw.seek(0)


@contextmanager
def opened(source: Input) -> Iterator[Any]:
    """The input as a pyarrow file, compressed bytes where compressed.

    Errors of reading inside the context become :class:`UserError`; a local file must be the one that was found,
    before and after.
    """
    remote = is_url(source.name)
    try:
        with pa.PythonFile(open_remote(source.name), "r") if remote else pa.OSFile(source.name, "rb") as raw:
            _check_unchanged(source)
            yield raw
            _check_unchanged(source)
    except FileNotFoundError:
        raise UserError(f"{source.name}: vanished while the inputs were read; put it back or leave it out") from None
    except PermissionError:
        raise UserError(f"{source.name}: no permission to read it; change its mode or leave it out") from None
    except UserError:
        raise
    except Exception as error:
        if remote:  # each protocol's package raises its own
            raise unreachable(source.name, error) from None
        if isinstance(error, _BROKEN):
            raise _damaged(source, error, "") from None
        raise


@contextmanager
def damage_named(source: Input, place: str) -> Iterator[None]:
    """Raise :class:`UserError` that names the place for what the libraries say about the input's content."""
    try:
        yield
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # about the file, not its content
        if _WINDOW in str(error):
            raise UserError(
                f"{source.name}: compressed with a window above 128 MiB; compress it again with zstd --long=27"
            ) from None
        raise _damaged(source, error, place) from None


def _plain(source: Input, raw: Any) -> Iterator[tuple[bytes, int]]:
    while chunk := raw.read(_CHUNK):
        yield chunk, raw.tell()
    if source.size and raw.tell() < source.size:
        raise UserError(
            f"{source.name}: cut short while it was read (byte {raw.tell():,} of {source.size:,}); "
            "run again when it is whole"
        )


def _decompressed(source: Input, raw: Any) -> Iterator[tuple[bytes, int]]:
    done = 0
    with closing(_decompressor(source, raw)) as stream:
        while True:
            with damage_named(source, f"after {done:,} decompressed bytes"):
                chunk = stream.read(_CHUNK)
                if not chunk and raw.tell() == 0:
                    raise pa.ArrowInvalid("the file is empty")
            if not chunk:
                return
            done += len(chunk)
            yield chunk, raw.tell()


def _decompressor(source: Input, raw: Any) -> Any:
    if source.codec == "gzip":
        return gzip.GzipFile(fileobj=raw, mode="rb")  # Arrow's takes no padding of zeros
    return _Xz(raw) if source.codec == "xz" else pa.CompressedInputStream(raw, source.codec)


class _Xz:
    """The content of an .xz file: all its streams, and zeros after any. `lzma.LZMAFile` ends at a broken second one."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._stream: lzma.LZMADecompressor | None = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end. Raises EOFError for a file that ends within a stream."""
        while True:
            if self._stream is None:
                self._rest = self._rest.lstrip(b"\0") or self._raw.read(_CHUNK)
                if not self._rest:
                    return b""
                if not self._rest[0]:
                    continue
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            given = b""
            if self._stream.needs_input:
                given, self._rest = self._rest or self._raw.read(_CHUNK), b""
                if not given:
                    raise EOFError("it ends within a stream")
            content = self._stream.decompress(given, size)
            if self._stream.eof:
                self._rest = self._stream.unused_data
                self._stream = None
            if content:
                return content

    def close(self) -> None:
        """Nothing is held; the raw file is another's."""


def _stdin(stopped: Callable[[], bool]) -> Iterator[tuple[bytes, int]]:
    position = 0
    try:
        # Not sys.stdin: its lock, held by a thread in a read, would stop the interpreter from ending.
        with open(0, "rb", buffering=0, closefd=False) as file:
            while not stopped():
                if not select([file], [], [], _STDIN_WAIT)[0]:
                    continue
                chunk = file.read(_CHUNK)
                if not chunk:
                    return
                position += len(chunk)
                yield chunk, position
    except OSError as error:
        raise UserError(f"stdin: cannot be read ({error.strerror}); pipe JSON lines into it") from None


def _after(chunks: Iterator[tuple[bytes, int]], skip: int) -> Iterator[tuple[bytes, int]]:
    for chunk, position in chunks:
        if skip >= len(chunk):
            skip -= len(chunk)
        else:
            yield chunk[skip:], position
            skip = 0


def _check_unchanged(source: Input) -> None:
    if not is_url(source.name) and stamp_of(source.name)[1] != source.stamp:
        raise UserError(f"{source.name}: changed while the inputs were read; run again when it is finished")


def _damaged(source: Input, error: Exception, place: str) -> UserError:
    lines = str(error).splitlines() or [type(error).__name__]
    reason = lines[0].rstrip(":. ")
    return UserError(f"{source.name} is truncated or damaged{place and ' ' + place} ({reason}); fetch it again")
