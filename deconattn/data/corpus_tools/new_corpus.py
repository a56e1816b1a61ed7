"""A packed corpus that is being written: shards of both splits, the tokenizer and, at the end, the manifest."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.manifest import SETTINGS_NAME, SPLITS, TOKENIZER_NAMES, Manifest, ShardEntry, write_manifest
from deconattn.data.shards import ShardSchema, ShardWriter, count_fitting
from deconattn.durable import staged_folder
from deconattn.errors import UserError

_TOGETHER = 1 << 18  # tokens, or documents, that are written at once


class NewCorpus:
    """Corpus under construction, see :func:`new_corpus`; filled by `append` or `extend`, then has a `manifest`."""

    manifest: Manifest

    def __init__(self, folder: Path, schema: ShardSchema, shard_tokens: int) -> None:
        self.folder = folder
        self._schema = schema
        self._shard_tokens = shard_tokens
        self._open: dict[str, ShardWriter] = {}
        self._entries: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
        self._waiting: dict[str, list[npt.NDArray[Any]]] = {split: [] for split in SPLITS}
        self._waiting_tokens = dict.fromkeys(SPLITS, 0)

    def append(self, split: str, document: npt.NDArray[Any]) -> None:
        """Add one document: ids `[n]`, separator included."""
        waiting = self._waiting[split]
        waiting.append(document)
        self._waiting_tokens[split] += len(document)
        if self._waiting_tokens[split] >= _TOGETHER or len(waiting) >= _TOGETHER:
            self._write_waiting(split)

    def extend(self, split: str, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> None:
        """Add documents laid end to end: ids `[n]`, separators included, and each one's count, `[documents]`.

        A document that would overfill a shard begins the next one.
        """
        ends = np.cumsum(lengths, dtype=np.int64)
        first = start = 0
        while first < len(lengths):
            writer = self._open.get(split)
            room = self._shard_tokens - (writer.tokens if writer is not None else 0)
            stop = count_fitting(ends, first, room)
            if stop == first:
                if writer is not None:
                    self._close(split)
                    continue
                stop = first + 1  # larger than a shard is to be
            if writer is None:
                path = self.folder / shard_name(split, len(self._entries[split]))
                writer = self._open[split] = ShardWriter(path, split, self._schema)
            end = int(ends[stop - 1])
            writer.extend(tokens[start:end], lengths[first:stop])
            first, start = stop, end

    def finish(self) -> None:
        """Close all shards and write the manifest. Raises :class:`UserError` if there was no document at all."""
        for split in SPLITS:
            self._write_waiting(split)
            if split in self._open:
                self._close(split)
        shards = tuple(entry for split in SPLITS for entry in self._entries[split])
        if not shards:
            raise UserError("no document to write; check the input and the flags")
        self.manifest = self._schema.manifest(shards)
        write_manifest(self.folder, self.manifest)

    def discard(self) -> None:
        """Give up what is open."""
        for writer in self._open.values():
            writer.discard()

    def _write_waiting(self, split: str) -> None:
        documents = self._waiting[split]
        if documents:
            lengths = np.array([len(document) for document in documents], dtype=np.int64)
            self.extend(split, np.concatenate(documents), lengths)
            self._waiting[split], self._waiting_tokens[split] = [], 0

    def _close(self, split: str) -> None:
        self._entries[split].append(self._open.pop(split).close())


@contextmanager
def new_corpus(out: Path, schema: ShardSchema, shard_tokens: int) -> Iterator[NewCorpus]:
    """A corpus to fill; it appears as `out` on a clean exit, and nothing does after an exception.

    The caller saves the tokenizer into its `folder`.

    Raises:
        UserError: `out` exists and is not an empty folder, no document came, a full disk, no permission.
    """
    if shard_tokens < 1:
        raise UserError(f"--shard-tokens {shard_tokens}: must be at least 1")
    with staged_folder(out, check_new) as staging:
        corpus = NewCorpus(staging, schema, shard_tokens)
        try:
            yield corpus
            corpus.finish()
        except BaseException:
            corpus.discard()
            raise


def check_new(out: Path) -> None:
    """Raise :class:`UserError` unless `out` is free: absent or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists; name a new folder, or remove it yourself")
    if out.is_mount():  # nothing can be renamed over it, which would show only at the very end
        raise UserError(f"{out} is a mount point; name a folder below it")


def shard_name(split: str, number: int) -> str:
    """The file name of a split's shard, counted from 0."""
    return f"{split}-{number:05d}.arrow"


def schema_of(manifest: Manifest, source: str) -> ShardSchema:
    """The schema of shards that hold the same kind of ids."""
    return ShardSchema(
        manifest.tokenizer_fingerprint,
        manifest.vocab_size,
        manifest.eos_token_id,
        source,
        manifest.bos_token_id,
        manifest.special_tokens,
        answers=manifest.answers,
    )


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy a packed folder's tokenizer and its settings. Raises :class:`UserError` if it has none."""
    found = [name for name in TOKENIZER_NAMES if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} has lost its {' or '.join(TOKENIZER_NAMES)}; copy it again or pack again")
    for name in (found[0], SETTINGS_NAME):
        if (folder / name).is_file():  # earlier versions wrote no settings
            shutil.copyfile(folder / name, out / name)
