"""`manifest.json`, the list of a packed folder's shards; written last: where it is, the folder is whole."""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from deconattn import durable
from deconattn.errors import UserError
from deconattn.program import command

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
FINGERPRINT = "v2:"
"""Beginning of a tokenizer's fingerprint; those of earlier versions have none."""
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model")
SETTINGS_NAME = "tokenizer_config.json"
"""File beside a tokenizer, here with the two keys of Hugging Face's that say how a corpus was packed."""
TABLES_NAME = ".best-fit"
"""Folder, within a corpus's or a run's, of the tables of best-fit packing."""
SPLITS = ("train", "val")
SpecialTokens = Literal["text", "token"]
"""What a special token that a text spells is read as."""
_MOST = 2**53  # of whatever is counted, and far more than there is


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest lists it; `bytes` and `sha256` are those of the whole file."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

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
        answers: the documents are conversations, with marks on what is no answer (:mod:`deconattn.data.answers`).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    format_version: int
    tokenizer_fingerprint: str
    vocab_size: int
    eos_token_id: int
    bos_token_id: int | None = None
    special_tokens: SpecialTokens | None = None
    dtype: str
    source: str
    shards: tuple[ShardEntry, ...]
    answers: bool = False

    def of_split(self, split: str) -> tuple[ShardEntry, ...]:
        """The shards of one split, in reading order."""
        return tuple(shard for shard in self.shards if shard.split == split)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json` atomically and durably."""
    content = dataclasses.asdict(manifest)
    if not manifest.answers:  # what has no marks is as it was in earlier versions, which can read it
        del content["answers"]
    durable.write_json(folder / MANIFEST_NAME, content)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a packed folder.

    Raises :class:`UserError` if there is none, if it is damaged, or if a newer version wrote it.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; pack a corpus with {command('pack')}")
    try:
        if os.path.lexists(path) and not path.is_file():  # a pipe would never end
            raise UserError(f"{path} is no file; pack the corpus again with {command('pack')}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{folder} is not a packed corpus (pack with {command('pack')})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check its permissions") from None
    try:
        manifest: Manifest = _adapter().validate_json(content, strict=True)
        _check(manifest)
    except ValueError as error:
        version = _version(content)
        if version > FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {version}, newer than {FORMAT_VERSION}; update deconattn"
            ) from None
        raise UserError(f"{path} is damaged ({_reason(error)}); pack the corpus again with {command('pack')}") from None
    return manifest


def read_checked(folder: Path) -> Manifest:
    """Read a folder's manifest and compare the sizes of all its shards with it, see :func:`check_sizes`."""
    manifest = read_manifest(folder)
    check_sizes(folder, manifest.shards)
    return manifest


def _version(content: bytes) -> int:
    """The version that a manifest names which is not one of this version; 0 where none is named."""
    try:
        version = json.loads(content)["format_version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return 0
    return version if type(version) is int else 0


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter  # takes long to import, and those who only write need none of it

    return TypeAdapter(Manifest)


def _reason(error: ValueError) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join([*([".".join(map(str, first["loc"]))] if first["loc"] else []), first["msg"].splitlines()[0]])


def _check(manifest: Manifest) -> None:
    """What types do not tell. Raises ValueError."""
    if manifest.format_version != FORMAT_VERSION:
        raise ValueError(f"format_version is {manifest.format_version}")
    if manifest.dtype not in ("uint16", "uint32"):
        raise ValueError(f"dtype is {manifest.dtype!r}")
    for name, token_id in (("eos_token_id", manifest.eos_token_id), ("bos_token_id", manifest.bos_token_id)):
        if token_id is not None and not 0 <= token_id < manifest.vocab_size <= 2**32:
            raise ValueError(f"{name} is {token_id} of a vocabulary of {manifest.vocab_size}")
    if manifest.tokenizer_fingerprint.startswith(FINGERPRINT) and manifest.special_tokens is None:
        raise ValueError("special_tokens is missing")
    if not manifest.shards:
        raise ValueError("it lists no shard")
    seen: set[str] = set()
    for shard in manifest.shards:
        if shard.split not in SPLITS or not re.fullmatch(rf"{shard.split}-[0-9]+\.arrow", shard.name):
            raise ValueError(f"shard {shard.name!r} of split {shard.split!r}")
        if shard.name in seen:
            raise ValueError(f"it lists {shard.name} twice")
        seen.add(shard.name)
        for field, least in (("documents", 1), ("tokens", 1), ("bytes", 1), ("max_token_id", 0)):
            if not least <= getattr(shard, field) <= _MOST:
                raise ValueError(f"{field} of {shard.name} is {getattr(shard, field)}")
        if not re.fullmatch(r"[0-9a-f]{64}", shard.sha256):
            raise ValueError(f"sha256 of {shard.name} is {shard.sha256!r}")


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
