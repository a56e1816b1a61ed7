"""Documents out of text, JSON lines and Parquet files, one at a time, bad lines counted and named."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from os import walk
from pathlib import Path

import pyarrow as pa

from deconattn.errors import UserError

EXTENSIONS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_CODECS = {".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_EXAMPLES = 5
_SURROGATE = re.compile("[\ud800-\udfff]")
_PARQUET_ROWS = 256


@dataclass
class Tally:
    """What was skipped and why. `max_bad` is how many bad lines are tolerated; one more is fatal."""

    max_bad: int
    bad: int = 0
    empty: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add_bad(self, path: Path, line: int, reason: str) -> None:
        """Count one bad line (1-based; a row, for Parquet). Raises :class:`UserError` beyond `max_bad`."""
        self.bad += 1
        self.reasons[reason] += 1
        place = f"{path}:{line}: {reason}"
        if len(self.examples) < _EXAMPLES:
            self.examples.append(place)
        if self.bad > self.max_bad:
            first = f", first {self.examples[0]}" if self.bad > 1 else ""
            raise UserError(f"{place}: bad line {self.bad}{first}; mend the input or raise --max-bad ({self.max_bad})")


def find_files(inputs: Sequence[str]) -> list[Path]:
    """Expand files, folders (recursive, sorted, hidden entries left out) and globs into files, each once.

    Raises :class:`UserError` for a missing input, an empty match, or a file of an unknown kind.
    """
    files: dict[Path, None] = {}
    for given in inputs:
        path = Path(given)
        if path.is_file():
            found = [path]
        elif path.is_dir():
            found = _files_below(path)
        elif any(mark in given for mark in "*?["):
            matches = [Path(match) for match in sorted(glob(given, recursive=True))]
            if not matches:
                raise UserError(f"{given}: the pattern matches nothing; check the path")
            found = [file for match in matches for file in ([match] if match.is_file() else _files_below(match))]
        else:
            raise UserError(f"{given}: no such file or folder; check the path")
        for file in found:
            if _extension(file) is None:
                raise UserError(f"{file}: unknown kind of file; give one of {', '.join(EXTENSIONS)}")
        files.update(dict.fromkeys(found))
    return list(files)


def _files_below(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".") and _extension(Path(name))]
    if not found:
        raise UserError(f"{folder}: the folder holds no {', '.join(EXTENSIONS)} file; check the path")
    return sorted(found)


def _extension(path: Path) -> str | None:
    return next((extension for extension in EXTENSIONS if path.name.lower().endswith(extension)), None)


class _BadLine(Exception):
    """A line or row to skip; the message is the reason."""


class DocumentReader:
    """Iterate over the texts of all documents in `files`, in order.

    A `.txt` file is one document; a line of JSON or a row of Parquet is one otherwise, its text under `text_field`.
    Only a `.txt` document is ever whole in memory. `bytes_read`, of `bytes_total`, is the progress in file bytes.
    Iterating raises :class:`UserError` for a damaged file or more bad lines than the tally tolerates.
    """

    def __init__(self, files: Sequence[Path], text_field: str, tally: Tally) -> None:
        self.files = tuple(files)
        self.text_field = text_field
        self.tally = tally
        self.bytes_total = sum(file.stat().st_size for file in files)
        self._bytes_before = 0  # of the files already finished
        self._position = 0  # within the present file

    @property
    def bytes_read(self) -> int:
        """Bytes of the input files consumed so far (compressed bytes where compressed)."""
        return self._bytes_before + self._position

    def __iter__(self) -> Iterator[str]:
        self._bytes_before = self._position = 0
        for path in self.files:
            try:
                yield from self._documents(path)
                self._bytes_before += path.stat().st_size
            except PermissionError:
                raise UserError(f"{path}: no permission to read it") from None
            except (pa.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0].rstrip(":. ")
                raise UserError(f"{path} is truncated or damaged ({reason}); fetch it again") from None
            self._position = 0

    def _documents(self, path: Path) -> Iterator[str]:
        extension = _extension(path)
        if extension == ".txt":
            texts = iter([self._text(path)])
        elif extension == ".parquet":
            texts = self._parquet(path)
        else:
            texts = self._json_lines(path, _CODECS.get(extension or ""))
        for text in texts:
            if text.strip():
                yield text
            else:
                self.tally.empty += 1

    def _text(self, path: Path) -> str:
        content = path.read_bytes().removeprefix(_BOM)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            kept = []
            for number, line in enumerate(content.splitlines(keepends=True), start=1):
                try:
                    kept.append(line.decode("utf-8"))
                except UnicodeDecodeError:
                    self.tally.add_bad(path, number, "not UTF-8")
            return "".join(kept)

    def _json_lines(self, path: Path, codec: str | None) -> Iterator[str]:
        for number, line in enumerate(self._lines(path, codec), start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if line.strip():
                try:
                    yield self._parse(line)
                except _BadLine as reason:
                    self.tally.add_bad(path, number, str(reason))

    def _lines(self, path: Path, codec: str | None) -> Iterator[bytes]:
        with pa.OSFile(str(path), "rb") as raw:
            if codec and raw.size() == 0:
                raise pa.ArrowInvalid("the file is empty")
            stream = pa.CompressedInputStream(raw, codec) if codec else raw
            rest: list[bytes] = []  # a line may span many chunks
            while chunk := stream.read(_CHUNK):
                self._position = raw.tell()
                first, *others = chunk.split(b"\n")
                rest.append(first)
                if others:
                    yield b"".join(rest)
                    yield from others[:-1]
                    rest = [others[-1]]
            yield b"".join(rest)

    def _parse(self, line: bytes) -> str:
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise _BadLine("not UTF-8") from None
        except (ValueError, RecursionError):
            raise _BadLine("not JSON") from None
        if not isinstance(record, dict):
            raise _BadLine("not a JSON object")
        if self.text_field not in record:
            raise _BadLine(f"no field {self.text_field!r}")
        return self._checked(record[self.text_field])

    def _parquet(self, path: Path) -> Iterator[str]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path, buffer_size=_CHUNK) as file:
            columns = file.schema_arrow
            if self.text_field not in columns.names:
                raise UserError(
                    f"{path} has no column {self.text_field!r}; give --text-field one of {', '.join(columns.names)}"
                )
            kind = columns.field(self.text_field).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise UserError(f"{path}: column {self.text_field!r} is {kind}, not text; give another --text-field")
            size, rows = path.stat().st_size, max(file.metadata.num_rows, 1)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[self.text_field]):
                for value in batch.column(0):
                    number += 1
                    try:
                        yield self._checked(value.as_py())
                    except UnicodeDecodeError:
                        self.tally.add_bad(path, number, "not UTF-8")
                    except _BadLine as reason:
                        self.tally.add_bad(path, number, str(reason))
                self._position = size * number // rows

    def _checked(self, value: object) -> str:
        if not isinstance(value, str):
            raise _BadLine(f"field {self.text_field!r} is not text")
        if not value.isascii() and _SURROGATE.search(value):  # JSON can escape a lone one
            raise _BadLine("a lone surrogate, not UTF-8")
        return value
