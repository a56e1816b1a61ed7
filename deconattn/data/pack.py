"""Pack documents into a folder of shards: read, tokenize, split, write; the body of `tools/pack.py`."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro

from deconattn.data.encode import EncodedBatch, encode_documents
from deconattn.data.manifest import FORMAT_VERSION, SPLITS, Manifest, ShardEntry, write_manifest
from deconattn.data.output import check_output
from deconattn.data.readers import DocumentReader, Tally, find_files
from deconattn.data.shards import ShardSchema, ShardWriter
from deconattn.data.split import cut_if_single, split_documents
from deconattn.data.tokenizer import Tokenizer, load_tokenizer
from deconattn.data.tokenizer_training import train_sentencepiece
from deconattn.durable import leftovers, staged_folder
from deconattn.errors import UserError

_TRAINING_FILES = 64
_SOURCE_NAMES = 8


@dataclass(frozen=True)
class PackConfig:
    """Pack text into Arrow shards for training."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Files (.txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet), folders (searched recursively) or quoted patterns.
    A .txt file is one document; otherwise a line or row is one."""
    tokenizer: str
    """A tokenizer.json, a SentencePiece .model, a folder holding one of them, or train:VOCAB to train a
    SentencePiece model of VOCAB entries on the input."""
    out: Path
    """The folder to write. It appears when everything is in it."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Tokenizing processes. The output does not depend on it."""
    val_fraction: float = 0.01
    """Part of the documents held out as the validation split. 0 holds out none."""
    shard_tokens: int = 100_000_000
    """Tokens after which a new shard begins; a document is never cut."""
    text_field: str = "text"
    """The field of a JSON line, or column of a Parquet file, that holds the text."""
    max_bad: int = 100
    """Bad lines (not UTF-8, not JSON, no text) to skip and report before giving up."""
    overwrite: bool = False
    """Replace a packed corpus in the output folder. Nothing else is ever replaced."""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UserError("no input; name files, folders or patterns")
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be at least 1")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"--val-fraction {self.val_fraction}: must be at least 0 and below 1")
        if self.shard_tokens < 1:
            raise UserError(f"--shard-tokens {self.shard_tokens}: must be at least 1")
        if self.max_bad < 0:
            raise UserError(f"--max-bad {self.max_bad}: must be at least 0")


@dataclass(frozen=True)
class PackSummary:
    """What a pack did. `text_bytes` is the documents' UTF-8; tokens include a separator a document."""

    out: Path
    manifest: Manifest
    text_bytes: int
    tally: Tally
    leftovers: tuple[Path, ...]

    @property
    def documents(self) -> int:
        """Documents over all splits (a single input document that was cut counts as two)."""
        return sum(shard.documents for shard in self.manifest.shards)

    @property
    def tokens(self) -> int:
        """Tokens over all splits, separators included."""
        return sum(shard.tokens for shard in self.manifest.shards)

    def __str__(self) -> str:
        lines = [f"packed {self.out}: {self.documents:,} documents, {self.tokens:,} tokens"]
        lines[0] += f", {self.text_bytes / max(self.tokens, 1):.2f} bytes per token"
        for split in SPLITS:
            shards = self.manifest.of_split(split)
            documents, tokens = sum(s.documents for s in shards), sum(s.tokens for s in shards)
            lines.append(f"  {split}: {documents:,} documents, {tokens:,} tokens, {len(shards)} shards")
        if self.tally.empty:
            lines.append(f"  skipped {self.tally.empty:,} empty documents")
        if self.tally.bad:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.tally.reasons.most_common())
            lines.append(f"  skipped {self.tally.bad:,} bad lines: {reasons}")
            lines += [f"    {example}" for example in self.tally.examples]
        for folder in self.leftovers:
            lines.append(f"  note: {folder} is of an unfinished pack; delete it unless one is running")
        return "\n".join(lines)


def pack(config: PackConfig) -> PackSummary:
    """Pack the inputs into `config.out`; byte for byte the same for any number of workers.

    Raises :class:`UserError` for whatever the user can mend; `config.out` is then as it was before.
    """
    paths = find_files(config.inputs)
    tally = Tally(config.max_bad)
    vocab_size = _vocab_to_train(config.tokenizer)
    given = load_tokenizer(config.tokenizer) if vocab_size is None else None
    stale = leftovers(config.out)
    with staged_folder(config.out, lambda out: check_output(out, config.overwrite)) as staging:
        if given is None:
            train_sentencepiece(_sample_texts(paths, config.text_field), vocab_size or 0, staging / "tokenizer.model")
            tokenizer = load_tokenizer(staging)
        else:
            tokenizer = given
            given.save(staging)
        reader = DocumentReader(paths, config.text_field, tally)
        schema = _schema(tokenizer, paths)
        texts, was_cut = cut_if_single(reader, config.val_fraction)
        writers = {split: _SplitWriter(staging, split, schema, config.shard_tokens) for split in SPLITS}
        counter = _ByteCounter()
        batches = encode_documents(texts, staging / tokenizer.file_name, config.workers)
        documents = counter.documents(_with_progress(batches, reader))
        try:
            for split, document in split_documents(documents, config.val_fraction, was_cut):
                writers[split].append(document)
            shards = tuple(entry for split in SPLITS for entry in writers[split].finish())
        except BaseException:
            batches.close()  # stops the workers now, not when the garbage collector gets to it
            for writer in writers.values():
                writer.discard()
            raise
        if not shards:
            raise UserError(f"{', '.join(config.inputs)}: no document with text in it; check --text-field")
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            tokenizer_fingerprint=schema.tokenizer_fingerprint,
            vocab_size=schema.vocab_size,
            eos_token_id=schema.eos_token_id,
            dtype=schema.dtype,
            source=schema.source,
            shards=shards,
        )
        write_manifest(staging, manifest)
    return PackSummary(config.out, manifest, counter.bytes, tally, tuple(stale))


def pack_demo(out: Path) -> PackSummary:
    """Pack the bundled demo corpus (tiny Shakespeare, 1.1 MB) with a tokenizer of 2048 entries trained on it."""
    with as_file(files("deconattn.data") / "demo" / "shakespeare.jsonl") as demo:
        return pack(PackConfig(inputs=(str(demo),), tokenizer="train:2048", out=out, workers=1, val_fraction=0.05))


class _SplitWriter:
    """The shards of one split, one open at a time, begun when there is a document for it."""

    def __init__(self, folder: Path, split: str, schema: ShardSchema, shard_tokens: int) -> None:
        self._folder, self._split, self._schema, self._shard_tokens = folder, split, schema, shard_tokens
        self._writer: ShardWriter | None = None
        self._entries: list[ShardEntry] = []

    def append(self, document: npt.NDArray[Any]) -> None:
        if self._writer is not None and self._writer.tokens + len(document) > self._shard_tokens:
            self._close()
        if self._writer is None:
            path = self._folder / f"{self._split}-{len(self._entries):05d}.arrow"
            self._writer = ShardWriter(path, self._split, self._schema)
        self._writer.append(document)

    def finish(self) -> list[ShardEntry]:
        if self._writer is not None:
            self._close()
        return self._entries

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.discard()

    def _close(self) -> None:
        assert self._writer is not None
        self._entries.append(self._writer.close())
        self._writer = None


class _ByteCounter:
    """Counts the text bytes of the batches that pass by."""

    bytes = 0

    def documents(self, batches: Iterable[EncodedBatch]) -> Iterator[npt.NDArray[np.uint32]]:
        for batch in batches:
            self.bytes += batch.bytes
            yield from batch.documents()


def _with_progress(batches: Iterable[EncodedBatch], reader: DocumentReader) -> Iterator[EncodedBatch]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn("packing"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("packing", total=reader.bytes_total, note="")
        tokens = 0
        for batch in batches:
            tokens += len(batch.tokens)
            progress.update(task, completed=reader.bytes_read, note=f"{tokens / 1e6:.1f}M tokens")
            yield batch


def _schema(tokenizer: Tokenizer, paths: list[Path]) -> ShardSchema:
    names = [path.name for path in paths[:_SOURCE_NAMES]]
    if len(paths) > _SOURCE_NAMES:
        names.append(f"and {len(paths) - _SOURCE_NAMES} more")
    return ShardSchema(tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eos_token_id, ", ".join(names))


def _vocab_to_train(spec: str) -> int | None:
    if not spec.startswith("train:"):
        return None
    if not re.fullmatch(r"train:\d{1,9}", spec):
        raise UserError(f"--tokenizer {spec}: write train:VOCAB with a number, for example train:32000")
    return int(spec.removeprefix("train:"))


def _sample_texts(paths: list[Path], text_field: str) -> Iterator[str]:
    """Texts for tokenizer training, in turn from up to 64 files spread over the input, so that no source leads."""
    step = -(-len(paths) // _TRAINING_FILES)
    tolerant = Tally(max_bad=sys.maxsize)  # packing proper counts and judges bad lines
    readers = [DocumentReader([path], text_field, tolerant) for path in paths[::step]]
    for turn in zip_longest(*readers):
        yield from (text for text in turn if text is not None)
