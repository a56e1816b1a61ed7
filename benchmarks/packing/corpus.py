"""The corpus that all packers of a benchmark get: JSON lines with a `text`, plain and compressed."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from benchmarks.machine import ROOT
from deconattn.errors import UserError

STAGED = ROOT.parent / "shared" / "data"
DEMO = ROOT / "deconattn" / "data" / "demo" / "shakespeare.jsonl"
CODECS = {".zst": "zstd", ".gz": "gzip"}
Line = tuple[bytes, str]
"""As it stands in the file, with its end; and its text."""


@dataclass(frozen=True)
class Corpus:
    """The same documents twice, `.jsonl` and `.jsonl.zst`; `text_bytes` is their text's UTF-8."""

    plain: Path
    compressed: Path
    documents: int
    text_bytes: int


def default_corpus() -> tuple[Path, ...]:
    """The staged training corpus, or the bundled demo where there is none."""
    return tuple(sorted((STAGED / "corpus").glob("train-*.jsonl.zst"))) or (DEMO,)


def default_tokenizer() -> Path | None:
    """The staged Pythia tokenizer."""
    path = STAGED / "tokenizer" / "20B_tokenizer.json"
    return path if path.is_file() else None


def make_corpus(sources: Sequence[Path], folder: Path, limit_mb: float = 0) -> Corpus:
    """Write the documents of `sources` into `folder`, about the first `limit_mb` 10^6 bytes of text; 0 is all.

    Raises:
        UserError: a source cannot be read, is damaged, or a line of it has no text.
    """
    plain, compressed = folder / "corpus.jsonl", folder / "corpus.jsonl.zst"
    documents = text_bytes = 0
    with plain.open("wb") as file, pa.CompressedOutputStream(str(compressed), "zstd") as packed:
        for line, text in read_lines(sources):
            if limit_mb and text_bytes >= 1e6 * limit_mb:
                break
            file.write(line)
            packed.write(line)
            documents += 1
            text_bytes += len(text.encode())
    if not documents:
        raise UserError(f"{', '.join(map(str, sources))}: no documents; give others")
    return Corpus(plain, compressed, documents, text_bytes)


def read_lines(sources: Sequence[Path]) -> Iterator[Line]:
    """The lines of `.jsonl`, `.jsonl.zst` and `.jsonl.gz` files, one file after the other.

    Raises:
        UserError: as :func:`make_corpus`, naming the file and the line.
    """
    for source in sources:
        number = 1
        try:
            for line in _raw_lines(source):
                text = json.loads(line)["text"]
                if not isinstance(text, str):
                    raise TypeError("its text is no string")
                yield line, text
                number += 1
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{source}, line {number}: {reason}; give JSON lines with a text") from None


def _raw_lines(source: Path) -> Iterator[bytes]:
    codec = CODECS.get(source.suffix)
    with source.open("rb") as file:
        stream = io.BufferedReader(pa.CompressedInputStream(file, codec), 2**20) if codec else file
        for line in stream:
            yield line if line.endswith(b"\n") else line + b"\n"
