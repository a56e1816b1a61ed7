"""`checkpoint.json`, a step folder's list of its files with their checksums, and of itself; written last."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import NonNegativeInt, TypeAdapter

from deconattn import durable
from deconattn.config.run_config import RUN_CONFIG
from deconattn.errors import UserError
from deconattn.json_files import open_regular, parse_json, read_bytes, reason

FORMAT_VERSION = 2
MANIFEST = "checkpoint.json"
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True)
class Progress:
    """Progress of training at a checkpoint.

    Attributes:
        step: optimiser steps begun, skipped ones included; the schedule's clock.
        optimizer_steps: steps that changed the weights.
        skipped_steps: steps whose loss or gradient was not finite.
    """

    step: int = 0
    optimizer_steps: int = 0
    skipped_steps: int = 0


@dataclass(frozen=True)
class Entry:
    """Size and checksum of a file."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    bytes: NonNegativeInt
    sha256: str

    def fits(self, path: Path) -> bool:
        """Whether the file is the one that was written; OSError if it cannot be read."""
        return path.stat().st_size == self.bytes and _sha256(path) == self.sha256


@dataclass(frozen=True)
class Manifest:
    """Manifest of a step folder; `files` are paths in it, `sha256`, which format 1 did not have, is of all the rest."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    format_version: int
    progress: Progress
    files: dict[str, Entry]
    sha256: str | None = None


_MANIFESTS = TypeAdapter(Manifest)


def is_step_name(name: str) -> bool:
    """Whether a folder of this name is a checkpoint: `step-N`."""
    return _STEP.fullmatch(name) is not None


def step_of(folder: Path) -> int:
    """Return the N of a `step-N` folder."""
    return int(folder.name.removeprefix("step-"))


def describe(path: Path) -> dict[str, Any]:
    """Return size and checksum of a file."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def write_manifest(folder: Path, progress: Progress, known: Mapping[str, Any] | None = None) -> None:
    """Seal a checkpoint folder: list every file with its size and checksum.

    known: what :func:`describe` said of files at the top, where their writers have done it already.
    """
    known = known or {}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path for path in files}
    listed = {name: known.get(name) or describe(path) for name, path in names.items()}
    content = {"format_version": FORMAT_VERSION, "progress": vars(progress), "files": listed}
    durable.write_json(folder / MANIFEST, content | {"sha256": _digest(content)})


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a step folder, and no other file.

    Raises:
        OSError: it is not there, or not to be read.
        UserError: it is damaged, of another step, or of a newer version.
    """
    path = folder / MANIFEST
    text, remedy = read_bytes(path), "restore it or use an earlier checkpoint"
    try:
        content = parse_json(text)
        version = content.get("format_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise UserError(f"{folder} was written by a newer version of deconattn: update this one")
        manifest = _MANIFESTS.validate_json(text, strict=True)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): use an earlier checkpoint") from None
    progress = manifest.progress
    if manifest.sha256 is None and version != 1:
        raise UserError(f"{path} lacks its own checksum: {remedy}")
    if manifest.sha256 is not None and manifest.sha256 != _digest({k: v for k, v in content.items() if k != "sha256"}):
        raise UserError(f"{path} was changed after it was written: {remedy}")
    number = _STEP.fullmatch(folder.resolve().name)
    counted = progress.optimizer_steps + progress.skipped_steps
    if min(vars(progress).values()) < 0 or counted > progress.step or (number and int(number[1]) != progress.step):
        raise UserError(f"{path} says step {progress.step}: {remedy}")
    missing = [name for name in (RUN_CONFIG,) if name not in manifest.files]
    if missing or not any(name.startswith("weights-") for name in manifest.files):
        raise UserError(f"{path} lists no {(missing or ['weights'])[0]}: {remedy}")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in manifest.files):
        raise UserError(f"{path} names files outside the checkpoint: use an earlier one")
    return manifest


def is_whole(folder: Path) -> bool:
    """Whether a `step-N` folder has a sound manifest, and every file in its size; no other file is read."""
    try:
        manifest = read_manifest(folder)
        return all((folder / name).stat().st_size == entry.bytes for name, entry in manifest.files.items())
    except (UserError, OSError, ValueError):
        return False


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
