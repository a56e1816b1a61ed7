"""Merging corpora that one tokenizer packed: their shards under new names, linked or copied."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from deconattn.data.corpus_tools.new_corpus import check_new, copy_tokenizer, schema_of, shard_name
from deconattn.data.manifest import SPLITS, Manifest, ShardEntry, read_manifest, write_manifest
from deconattn.data.progress_bars import Advance, progress_bar
from deconattn.data.shards import check_shard
from deconattn.durable import staged_folder
from deconattn.errors import UserError

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
    for field in ("tokenizer_fingerprint", "vocab_size", "eos_token_id", "dtype"):
        if getattr(manifest, field) != getattr(other, field):
            raise UserError(
                f"{folder} and {other_folder} have different tokenizers ({field} {getattr(manifest, field)} and "
                f"{getattr(other, field)}); pack one of them again with the other's tokenizer"
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
