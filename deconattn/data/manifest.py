"""`manifest.json`, the list of a packed folder's shards; written last: where it is, the folder is whole."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deconattn import durable
from deconattn.errors import UserError
from deconattn.program import command

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model")
SETTINGS_NAME = "tokenizer_config.json"
"""File beside a tokenizer, here with the two keys of Hugging Face's that say how a corpus was packed."""
SPLITS = ("train", "val")
SpecialTokens = Literal["text", "token"]
"""What a special token that a text spells is read as."""


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest lists it; `bytes` and `sha256` are those of the whole file."""

    name: str
    split: str
    documents: int
    tokens: int
    bytes: int
    max_token_id: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Manifest of a packed corpus.

    Attributes:
        dtype: the token column's, `uint16` or `uint32`.
        bos_token_id: what every document begins with; None for nothing.
        special_tokens: whether special tokens that a text spells were read as "text" or as such a "token"; None in
            corpora of earlier versions, which took the library's own way.
    """

    format_version: int
    tokenizer_fingerprint: str
    vocab_size: int
    eos_token_id: int
    bos_token_id: int | None = None
    special_tokens: SpecialTokens | None = None
    dtype: str
    source: str
    shards: tuple[ShardEntry, ...]

    def of_split(self, split: str) -> tuple[ShardEntry, ...]:
        """The shards of one split, in reading order."""
        return tuple(shard for shard in self.shards if shard.split == split)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json` atomically and durably."""
    durable.write_json(folder / MANIFEST_NAME, dataclasses.asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a packed folder.

    Raises :class:`UserError` if there is none, if it is damaged, or if a newer version wrote it.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; pack a corpus with {command('pack')}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a packed corpus (pack with {command('pack')})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check its permissions") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); pack the corpus again with {command('pack')}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}, newer than {FORMAT_VERSION}; update deconattn")
    try:
        shards = tuple(ShardEntry(**shard) for shard in content.pop("shards"))
        manifest = Manifest(shards=shards, **content)
        _check_types(manifest)
        for shard in shards:
            _check_types(shard)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); pack the corpus again with {command('pack')}") from None
    return manifest


def check_sizes(folder: Path, entries: Sequence[ShardEntry]) -> None:
    """Compare the sizes of a folder's shards with the manifest's in one scan of the folder; no file is opened.

    Raises :class:`UserError` naming the first shard that is missing, empty or of another size, or a folder that
    cannot be read.
    """
    wanted = {entry.name for entry in entries}
    try:
        with os.scandir(folder) as files:
            sizes = {file.name: file.stat().st_size for file in files if file.name in wanted and file.is_file()}
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}; check its permissions and its disk") from None
    for entry in entries:
        check_size(folder / entry.name, entry, sizes.get(entry.name))


def check_size(path: Path, entry: ShardEntry, size: int | None) -> None:
    """Raises :class:`UserError` unless a shard's size is the manifest's; None is a shard that is not there."""
    remedy = f"copy it again or pack the corpus again with {command('pack')}"
    if size is None:
        raise UserError(f"{path} is missing (its manifest lists it); {remedy}")
    if size == 0:
        raise UserError(f"{path} is empty, {entry.bytes} bytes expected; {remedy}")
    if size != entry.bytes:
        fault = "truncated" if size < entry.bytes else "too long"
        raise UserError(f"{path} is {fault}: {size} bytes, {entry.bytes} expected; {remedy}")


def _check_types(entry: Manifest | ShardEntry) -> None:
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        if field.type in (int, str) and type(value) is not field.type:
            raise TypeError(f"{field.name} is {value!r}")
    if isinstance(entry, Manifest):
        if entry.bos_token_id is not None and type(entry.bos_token_id) is not int:
            raise TypeError(f"bos_token_id is {entry.bos_token_id!r}")
        if entry.special_tokens not in (None, "text", "token"):
            raise TypeError(f"special_tokens is {entry.special_tokens!r}")
    if isinstance(entry, ShardEntry) and (os.path.basename(entry.name) != entry.name or entry.split not in SPLITS):
        raise TypeError(f"shard {entry.name!r} of split {entry.split!r}")
    if isinstance(entry, Manifest) and entry.dtype not in ("uint16", "uint32"):
        raise TypeError(f"dtype is {entry.dtype!r}")
