"""A corpus of any size out of a small one, as JSON lines: every document again and again, perturbed each time.

    python benchmarks/packing/synthetic_corpus.py --gb 20 --folder /data/synthetic --file-mb 1000 --compress
    python benchmarks/packing/synthetic_corpus.py --gb 20 | python tools/pack.py - --tokenizer T --out DIR

Pieces of a document of about 400 bytes change places, and before each come a number, a made-up word and a word of the
corpus. So no two documents are equal and words never seen keep coming, as they do on the web; the rest is the corpus's
own language. The same seed gives the same bytes.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.packing.corpus import default_corpus, read_lines
from deconattn.cli import parse, run
from deconattn.errors import UserError

PIECE_BYTES = 400
WORDS = 4096
"""Words of the corpus that are inserted."""
MADE_UP_LETTERS = 10
"""Of the longest made-up word; the shortest has three."""
DOCUMENTS_AT_ONCE = 256
BLOCK_BYTES = 2**20
Write = Callable[[bytes], Any]


@dataclass(frozen=True)
class Document:
    """A document's text, escaped for JSON and cut behind spaces; `text_bytes` is what it is unescaped, in UTF-8."""

    pieces: tuple[bytes, ...]
    text_bytes: int


@dataclass(frozen=True)
class Arguments:
    """Stream a synthetic corpus of any size, as JSON lines."""

    gb: float
    """Gigabytes (10^9 bytes) of text to make."""
    corpus: tuple[Path, ...] = field(default_factory=default_corpus)
    """What it is made of: .jsonl, .jsonl.zst or .jsonl.gz with a `text`; it is held in memory."""
    folder: Path | None = None
    """Where to write synthetic-00000.jsonl and so on; without it, everything goes to standard output."""
    file_mb: float = 1000
    """Megabytes of text in a file."""
    compress: bool = False
    """Write .jsonl.zst."""
    seed: int = 0
    """Another seed gives other documents."""

    def __post_init__(self) -> None:
        for name in ("gb", "file_mb"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be at least 0")
        if self.compress and self.folder is None:
            raise UserError("--compress: give --folder too; standard output is not compressed")


def cut(text: str) -> Document:
    """A document in pieces."""
    escaped = json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "replace")  # a lone surrogate has no UTF-8
    pieces, start = [], 0
    while start < len(escaped):
        end = escaped.find(b" ", start + PIECE_BYTES) + 1 or len(escaped)
        pieces.append(escaped[start:end])
        start = end
    return Document(tuple(pieces), len(text.encode("utf-8", "replace")))


def perturbed(documents: Sequence[Document], seed: int) -> Iterator[tuple[bytes, int]]:
    """Lines, each with the bytes of its text, without end: one pass over `documents` after the other."""
    words = _words(documents)
    for number in count():
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
            some = documents[start : start + DOCUMENTS_AT_ONCE]
            yield from _perturbed(some, words, np.random.default_rng([seed, number, start]))


def _perturbed(
    documents: Sequence[Document], words: list[bytes], generator: np.random.Generator
) -> Iterator[tuple[bytes, int]]:
    """Each of them once. A piece takes one draw of 60 bits, cut up, because a draw at a time would take longest."""
    total = sum(len(document.pieces) for document in documents)
    draws = generator.integers(2**60, size=total).tolist()
    letters = generator.integers(97, 123, size=total * MADE_UP_LETTERS, dtype=np.uint8).tobytes()
    drawn = 0
    for document in documents:
        pieces = list(document.pieces)
        inserted = 0
        for place, draw in enumerate(draws[drawn : drawn + len(pieces)], drawn):
            one, other = place - drawn, (draw >> 30) % len(pieces)
            if not draw & 3:
                pieces[one], pieces[other] = pieces[other], pieces[one]
            begin = place * MADE_UP_LETTERS
            made_up = letters[begin : begin + 3 + (draw >> 2) % (MADE_UP_LETTERS - 2)]
            new = b"%d %b %b " % ((draw >> 40) % 1_000_000, made_up, words[(draw >> 10) % len(words)])
            pieces[one] = new + pieces[one]
            inserted += len(new)
        drawn += len(pieces)
        yield b'{"text": "%b"}\n' % b"".join(pieces), document.text_bytes + inserted


def _words(documents: Iterable[Document]) -> list[bytes]:
    """Different words of ASCII letters, the first that come."""
    found: dict[bytes, None] = {}
    for document in documents:
        for piece in document.pieces:
            found |= dict.fromkeys(word for word in piece.split() if word.isalpha())
        if len(found) >= WORDS:
            break
    return list(found)[:WORDS] or [b"word"]


def write_text(lines: Iterator[tuple[bytes, int]], text_bytes: float, write: Write) -> int:
    """Write lines until they hold so many bytes of text; how many it has become."""
    waiting: list[bytes] = []
    waiting_bytes = written = 0
    while written < text_bytes:
        line, size = next(lines)
        waiting.append(line)
        waiting_bytes += size
        written += size
        if waiting_bytes >= BLOCK_BYTES:
            write(b"".join(waiting))
            waiting, waiting_bytes = [], 0
    write(b"".join(waiting))
    return written


def write_files(lines: Iterator[tuple[bytes, int]], arguments: Arguments) -> list[Path]:
    """Write the files of a folder, each under a temporary name until it is whole."""
    assert arguments.folder is not None, "the caller has asked"
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{arguments.folder}: {error.strerror or error}; give another --folder") from None
    left = 1e9 * arguments.gb
    paths: list[Path] = []
    while left > 0:
        name = f"synthetic-{len(paths):05d}.jsonl{'.zst' if arguments.compress else ''}"
        with _whole_file(arguments.folder / name, arguments.compress) as write:
            left -= write_text(lines, min(left, 1e6 * arguments.file_mb), write)
        paths.append(arguments.folder / name)
    return paths


@contextmanager
def _whole_file(path: Path, compress: bool) -> Iterator[Write]:
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with pa.CompressedOutputStream(str(temporary), "zstd") if compress else temporary.open("wb") as file:
            yield file.write
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; free some space or give another --folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    """Write it; files are named on standard output."""
    arguments = parse(Arguments)
    documents = [cut(text) for _, text in read_lines(arguments.corpus)]
    if not any(document.pieces for document in documents):
        raise UserError(f"{', '.join(map(str, arguments.corpus))}: no text; give others")
    lines = perturbed([document for document in documents if document.pieces], arguments.seed)
    if arguments.folder is None:
        write_text(lines, 1e9 * arguments.gb, sys.stdout.buffer.write)
        sys.stdout.buffer.flush()
        return
    for path in write_files(lines, arguments):
        print(path)


if __name__ == "__main__":
    run(main)
