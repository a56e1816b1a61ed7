"""`checkpoint.json`: a step folder's files with their checksums, where each tensor's slices lie; written last."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import NonNegativeInt, TypeAdapter

from deconattn import durable
from deconattn.checkpoint.slice_file import DamagedError, Part, SliceFile
from deconattn.config.run_config import RUN_CONFIG
from deconattn.errors import UserError
from deconattn.json_files import open_regular, parse_json, read_bytes, reason

FORMAT_VERSION = 3
MANIFEST = "checkpoint.json"
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True)
class Progress:
    """Progress of training at a checkpoint.

    Attributes:
        step: optimiser steps begun, skipped ones included; the schedule's clock.
        optimizer_steps: steps that changed the weights.
        skipped_steps: steps whose loss or gradient was not finite.
        frozen_steps: of `optimizer_steps`, those in which parameters that are frozen until a step were so, by that
            step: AdamW's own count of theirs began after them.
    """

    step: int = 0
    optimizer_steps: int = 0
    skipped_steps: int = 0
    frozen_steps: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """Size and checksum of a file; of a slice file's first `header_bytes`, where they are given."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    bytes: NonNegativeInt
    sha256: str
    header_bytes: NonNegativeInt | None = None

    def fits(self, path: Path) -> bool:
        """Whether size and checksum are those of what was written; OSError if it cannot be read."""
        return path.stat().st_size == self.bytes and _sha256(path, self.header_bytes) == self.sha256


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a checkpoint.

    Attributes:
        dtype: `F32` or `I64`.
        shape: of the whole.
        kinds: what is stored of it: `weights`, and of a parameter the optimiser's moments; all in the same slices.
        slices: each is [file, first, elements], and [.., dim, start, stop] where it counts in that part of the tensor:
            elements `first` to `first + elements` lie in the file of this number, under `KIND/NAME`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    dtype: str
    shape: tuple[NonNegativeInt, ...]
    kinds: tuple[str, ...]
    slices: tuple[tuple[NonNegativeInt, ...], ...]


@dataclass(frozen=True)
class Manifest:
    """Manifest of a step folder.

    Attributes:
        files: by their paths in it.
        slice_files: those that slices give by number.
        tensors: by canonical name; formats 1 and 2 had whole tensors only, and did not list them.
        sha256: of all the rest; format 1 did not have it.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    format_version: int
    progress: Progress
    files: dict[str, Entry]
    slice_files: tuple[str, ...] = ()
    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    sha256: str | None = None


_MANIFESTS = TypeAdapter(Manifest)


def is_step_name(name: str) -> bool:
    """Whether a folder of this name is a checkpoint: `step-N`."""
    return _STEP.fullmatch(name) is not None


def step_of(folder: Path) -> int:
    """Return the N of a `step-N` folder."""
    return int(folder.name.removeprefix("step-"))


def write_manifest(folder: Path, progress: Progress, written: Mapping[str, Any] | None = None) -> None:
    """Seal a checkpoint folder: list every file with its checksum, and every tensor with its slices.

    Args:
        written: entries of slice files by name, as their writers have them; the disk must agree. By default those
            that are there are taken as they are.

    Raises:
        OSError: a file cannot be read, or is not what its writer says.
        DamagedError: a slice file is none, or the slices do not make whole tensors.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    slice_files = sorted(path.name for path in folder.glob("*.safetensors")) if written is None else sorted(written)
    files: dict[str, Any] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(slice_files):
        header = None if written is None else (written[name]["header_bytes"], written[name]["sha256"])
        try:
            with SliceFile(folder / name, header) as file:
                size, digest = file.header
                files[name] = {"bytes": (folder / name).stat().st_size, "sha256": digest, "header_bytes": size}
                _collect(tensors, number, file)
        except DamagedError as error:
            raise OSError(f"{folder / name}: {error}") from error
        if written is not None and files[name] != written[name]:
            raise OSError(f"{folder / name} is not what was written")
    for name, tensor in tensors.items():
        if sum(piece[2] for piece in tensor["slices"]) != math.prod(tensor["shape"]):
            raise DamagedError(f"the slices do not make the whole of {name}")
    for path in paths:
        if path.name not in files or path.parent != folder:
            files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    content = {
        "format_version": FORMAT_VERSION,
        "progress": vars(progress),
        "files": files,
        "slice_files": slice_files,
        "tensors": tensors,
    }
    durable.write_text(folder / MANIFEST, json.dumps(content | {"sha256": _digest(content)}) + "\n")


def _collect(tensors: dict[str, dict[str, Any]], number: int, file: SliceFile) -> None:
    """Add the slices of a file to the manifest's tensors."""
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for stored in file.slices.values():
        key = (stored.name, stored.dtype, stored.shape, stored.part, stored.first, stored.elements)
        kinds.setdefault(key, []).append(stored.kind)
    for (name, dtype, shape, part, first, elements), of in kinds.items():
        entry = tensors.setdefault(name, {"dtype": dtype, "shape": shape, "kinds": sorted(of), "slices": []})
        if (entry["dtype"], tuple(entry["shape"]), entry["kinds"]) != (dtype, shape, sorted(of)):
            raise DamagedError(f"{name} is not stored alike everywhere")
        cut = () if part is None else (part.dim, part.start, part.stop)
        entry["slices"].append((number, first, elements, *cut))


def part_of(piece: tuple[int, ...]) -> Part | None:
    """Return the part that a slice of the manifest counts in."""
    return Part(*piece[3:]) if len(piece) > 3 else None


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
    counts = progress.step, progress.optimizer_steps, progress.skipped_steps, *progress.frozen_steps.values()
    if min(counts) < 0 or max(counted, *counts) > progress.step or (number and int(number[1]) != progress.step):
        raise UserError(f"{path} says step {progress.step}: {remedy}")
    missing = [name for name in (RUN_CONFIG,) if name not in manifest.files]
    if missing or not (manifest.tensors or any(name.startswith("weights-") for name in manifest.files)):
        raise UserError(f"{path} lists no {(missing or ['weights'])[0]}: {remedy}")
    if not _is_consistent(manifest):
        raise UserError(f"{path} lists slices that cannot be: {remedy}")
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


def _is_consistent(manifest: Manifest) -> bool:
    """Whether slices lie in files that are listed, and are runs of their tensors."""
    entries = [manifest.files.get(name) for name in manifest.slice_files]
    if any(entry is None or not 0 < (entry.header_bytes or 0) <= entry.bytes for entry in entries):
        return False
    try:
        for tensor in manifest.tensors.values():
            for piece in tensor.slices:
                number, first, elements, *cut = piece
                box = Part(*cut).of(tensor.shape) if cut else tensor.shape
                if number >= len(entries) or first + elements > math.prod(box):
                    return False
    except (ValueError, TypeError):
        return False
    return True


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path, first: int | None = None) -> str:
    with open_regular(path) as file:
        if first is not None:
            return hashlib.sha256(file.read(first)).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()
