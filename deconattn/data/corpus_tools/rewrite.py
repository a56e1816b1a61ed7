"""Rewriting packed corpora: several merged into one, or one cut into shards of another size."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deconattn.data.corpus import read_batches
from deconattn.data.corpus_tokenizer import difference, has_old_fingerprint, renewed
from deconattn.data.corpus_tools.new_corpus import check_new, copy_tokenizer, new_corpus, schema_of, shard_name
from deconattn.data.manifest import SPLITS, Manifest, ShardEntry, read_manifest, write_manifest
from deconattn.data.shards import check_shard
from deconattn.durable import staged_folder
from deconattn.errors import UserError
from deconattn.program import command
from deconattn.progress import Advance, progress_bar

_PIECE = 1 << 24
_SOURCE_NAMES = 8


def merge(out: Path, folders: Sequence[Path]) -> Manifest:
    """Make `out` of the shards of `folders`, split by split, in the order of the folders.

    On one file system shards are hard links and take no room; otherwise they are copied, and compared with their
    checksums on the way.

    Raises:
        UserError: fewer than two folders, one given twice, other tokenizers, a damaged shard, an `out` that is not
            free.
    """
    if len(folders) < 2:
        raise UserError("nothing to merge; name two packed folders or more after OUT")
    places = [folder.resolve() for folder in folders]
    for number, folder in enumerate(folders):
        if places[number] in places[:number]:
            raise UserError(f"{folder} is given twice; name each folder once (--data takes weights)")
    manifests = [read_manifest(folder) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        _check_same(folder, manifest, folders[0], manifests[0])
    entries = [
        (folder, entry)
        for split in SPLITS
        for folder, manifest in zip(folders, manifests, strict=True)
        for entry in manifest.of_split(split)
    ]
    with (
        staged_folder(out, check_new) as staging,
        progress_bar("merging", sum(e.bytes for _, e in entries), "bytes") as advance,
    ):
        shards: list[ShardEntry] = []
        counts = dict.fromkeys(SPLITS, 0)
        for folder, entry in entries:
            name = shard_name(entry.split, counts[entry.split])
            counts[entry.split] += 1
            _take(folder / entry.name, staging / name, entry, advance)
            shards.append(dataclasses.replace(entry, name=name))
        copy_tokenizer(folders[0], staging)
        merged = schema_of(manifests[0], _source(manifests)).manifest(tuple(shards))
        write_manifest(staging, merged)
    return merged


def _check_same(folder: Path, manifest: Manifest, other_folder: Path, other: Manifest) -> None:
    different = difference(folder, manifest, other_folder, other)
    if different is not None:
        raise UserError(
            f"{folder} and {other_folder} have different tokenizers ({different}); pack one of them again with the "
            "other's tokenizer"
        )
    if manifest.answers != other.answers:
        raise UserError(
            f"of {folder} and {other_folder} one holds conversations and the other texts: leave them apart, and give "
            "both to --data"
        )
    if manifest.tokenizer_fingerprint != other.tokenizer_fingerprint:
        old = folder if has_old_fingerprint(folder, manifest) else other_folder
        raise UserError(
            f"{old} has the fingerprint of an earlier version in its shards; write it anew with {command('shards')} "
            f"split {old} OUT, and merge that"
        )


def _take(source: Path, target: Path, entry: ShardEntry, advance: Advance) -> None:
    check_shard(source, entry)
    try:
        os.link(source.resolve(), target)
        advance(entry.bytes)
        return
    except OSError:  # another file system, or one without links, or a file of another user
        pass
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("xb") as writing:
        while piece := reading.read(_PIECE):
            digest.update(piece)
            writing.write(piece)
            advance(len(piece))
    if digest.hexdigest() != entry.sha256:
        raise UserError(f"{source} does not match its checksum; copy it again or pack the corpus again")


def _source(manifests: Sequence[Manifest]) -> str:
    sources = list(dict.fromkeys(manifest.source for manifest in manifests))
    if len(sources) > _SOURCE_NAMES:
        sources[_SOURCE_NAMES:] = [f"and {len(sources) - _SOURCE_NAMES} more"]
    return ", ".join(sources)


def recut(
    folder: Path, out: Path, shard_tokens: int, documents: tuple[int, int | None] = (0, None), tokens: int | None = None
) -> Manifest:
    """Write the documents of `folder` into `out`, in order, in shards as the command `pack` cuts them.

    Args:
        shard_tokens: tokens after which a new shard begins; a document is never cut.
        documents: first document of the training split and the one after the last; None is the end. The validation
            split is always whole.
        tokens: stop the training split after the document that reaches so many.

    Raises:
        UserError: a damaged corpus, an `out` that is not free, a range that holds no document.
    """
    stored = read_manifest(folder)
    manifest = renewed(folder, stored)
    held = sum(entry.documents for entry in manifest.of_split("train"))
    first, end = documents[0], held if documents[1] is None else min(documents[1], held)
    if not 0 <= first < end:
        raise UserError(f"--documents: {folder} has training documents 0 to {held - 1}")
    if tokens is not None and tokens < 1:
        raise UserError(f"--tokens {tokens}: must be at least 1")
    total = sum(entry.tokens for entry in manifest.shards)
    with (
        new_corpus(out, schema_of(manifest, manifest.source), shard_tokens) as corpus,
        progress_bar("splitting", total, "tokens") as advance,
    ):
        for split in SPLITS:
            train = split == "train"
            stop = end if train else None
            left = tokens if train else None
            for number, values, bounds in read_batches(folder, stored, split, first if train else 0):
                bounds = _taken(bounds, None if stop is None else stop - number, left)
                count = int(bounds[-1] - bounds[0])
                corpus.extend(split, values[bounds[0] : bounds[-1]], np.diff(bounds).astype(np.int64))
                advance(count)
                if left is not None:
                    left -= count
                if (left is not None and left <= 0) or (stop is not None and number + len(bounds) - 1 >= stop):
                    break
        copy_tokenizer(folder, corpus.folder)
    return corpus.manifest


def parse_range(text: str) -> tuple[int, int | None]:
    """Read `A:B`, `A:` or `:B`. Raises :class:`UserError` for anything else."""
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if match is None:
        raise UserError(f"--documents {text}: write A:B, for example 0:1000")
    return int(match[1] or 0), int(match[2]) if match[2] else None


def _taken(bounds: npt.NDArray[np.int32], documents: int | None, tokens: int | None) -> npt.NDArray[np.int32]:
    """The bounds of the first documents: so many of them, and up to the one that reaches so many tokens."""
    if documents is not None:
        bounds = bounds[: documents + 1]
    if tokens is not None:
        reached = int(np.searchsorted(bounds[1:].astype(np.int64) - bounds[0], tokens))
        bounds = bounds[: reached + 2]
    return bounds
