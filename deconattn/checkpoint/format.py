"""Checkpoint format: one folder a step, written atomically, free of topology and pickles.

    RUN/checkpoints/step-300/
        checkpoint.json               step, data position, size and SHA-256 of every other file; written last
        config.json                   the run's resolved configuration
        weights-00-00001.safetensors     canonical names, fp32 parameters, and the buffers
        exp_avg-00-00001.safetensors     AdamW's moments, same names, fp32
        exp_avg_sq-00-00001.safetensors
        random-00000.safetensors         generator states of rank 0
        tokenizer/

Whole tensors instead of each rank's partitions: any topology can load them, export reads them as they are, and
nothing needs converting. (DeepSpeed's own checkpoints are pickles tied to their topology; its universal form needs
a conversion for every move, knows the plain and the pipeline engine by different names, and is pickles still.)
The first number is the pipeline stage that wrote the file; it tells readers nothing. This module is the file side;
the collective side is :mod:`deconattn.train.saving`.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, contiguous_format

from deconattn import durable
from deconattn.config.command_line import RUN_CONFIG, from_json
from deconattn.config.flags import TrainingFlags
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.mixers.plugins import names_in_process

FORMAT_VERSION = 1
MANIFEST = "checkpoint.json"
CHECKPOINTS = "checkpoints"
BYTES_A_FILE = 2**30


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
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    progress: Progress
    config: dict[str, Any]
    files: tuple[str, ...]

    @property
    def step(self) -> int:
        return self.progress.step

    @cached_property
    def flags(self) -> TrainingFlags:
        return from_json(self.config["flags"])

    @cached_property
    def model_config(self) -> ModelConfig:
        """The model's configuration; the run's plugins are loaded, and its variants are those of its own."""
        names = names_in_process(self.plugins)
        values = dict(self.config["model"])
        variants = tuple(names.get(variant, variant) for variant in values["layer_variants"])
        return ModelConfig(**values | {"layer_variants": variants})

    @property
    def precision(self) -> str:
        return self.flags.engine.precision or "fp32"

    @property
    def plugins(self) -> tuple[Path, ...]:
        return self.flags.model.plugin

    @property
    def origin(self) -> dict[str, Any]:
        """The configuration's fields about the model that the run was converted from; empty if it was not."""
        return {name: self.config[name] for name in ("base_model", "kept") if name in self.config}

    def with_plugins(self, plugins: Sequence[Path]) -> "Checkpoint":
        """Return the checkpoint with these files in the place of the plugins it was trained with."""
        flags = self.config["flags"]
        model = flags["model"] | {"plugin": [str(plugin) for plugin in plugins]}
        return replace(self, config=self.config | {"flags": flags | {"model": model}})

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the corpora that the run read."""
        return tuple(Path(corpus["path"]).name for corpus in self.config["data"])

    @property
    def tokenizer_folder(self) -> Path | None:
        folder = self.folder / "tokenizer"
        return folder if folder.is_dir() else None

    def tensors(self, kind: str, wanted: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor), reading only the wanted ones; kind is `weights`, `exp_avg` or `exp_avg_sq`."""
        for path in self._files(kind):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if wanted is None or name in wanted:
                        yield name, file.get_tensor(name)

    def shapes(self, kind: str) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor without reading it."""
        found: dict[str, tuple[int, ...]] = {}
        for path in self._files(kind):
            with safe_open(path, framework="pt") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return found

    def weights(self) -> dict[str, Tensor]:
        """Read the canonical state dict: fp32 parameters and the buffers, Hugging Face names."""
        return dict(self.tensors("weights"))

    def _files(self, kind: str) -> list[Path]:
        return [self.folder / name for name in self.files if re.fullmatch(rf"{kind}-\d+-\d+\.safetensors", name)]


class TensorFiles:
    """Writes tensors of one kind into numbered safetensors files of bounded size; `stage` keeps writers apart."""

    def __init__(self, folder: Path, kind: str, stage: int = 0) -> None:
        self._folder, self._kind = folder, f"{kind}-{stage:02d}"
        self.paths: list[Path] = []
        """Files written so far."""
        self._pending: dict[str, Tensor] = {}
        self._bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        # A clone: the tensor may be a view of live weights, or share its storage with its neighbours.
        self._pending[name] = tensor.detach().cpu().clone(memory_format=contiguous_format)
        self._bytes += tensor.nbytes
        if self._bytes >= BYTES_A_FILE:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self.paths.append(self._folder / f"{self._kind}-{len(self.paths) + 1:05d}.safetensors")
            save_file(self._pending, self.paths[-1])
            durable.make_readable(self.paths[-1])
            self._pending, self._bytes = {}, 0


def describe(path: Path) -> dict[str, Any]:
    """Return size and checksum of a file."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def seal(
    folder: Path, progress: Progress, config: dict[str, Any], tokenizer: Path, known: Mapping[str, Any] | None = None
) -> None:
    """Complete a folder with a step's tensors to a checkpoint: configuration, tokenizer, and the manifest last.

    Args:
        tokenizer: the file that the corpus was packed with.
        known: see :func:`write_manifest`.
    """
    durable.write_json(folder / RUN_CONFIG, config)
    (folder / "tokenizer").mkdir()
    shutil.copy(tokenizer, folder / "tokenizer")
    write_manifest(folder, progress, known)


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


@dataclass(frozen=True)
class _Entry:
    bytes: NonNegativeInt
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    format_version: int
    progress: Progress
    files: dict[str, _Entry]
    sha256: str | None = None


_MANIFESTS = TypeAdapter(_Manifest)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify and open one `step-N` folder.

    Raises:
        UserError: naming the file that is missing or damaged, or that this user must not read.
    """
    remedy = "restore it or use an earlier checkpoint"
    try:
        manifest = _read_manifest(folder)
        for name, entry in manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise UserError(f"{path} is missing: {remedy}")
            if path.stat().st_size != entry.bytes or _sha256(path) != entry.sha256:
                raise UserError(f"{path} is damaged: {remedy}")
        config = json.loads((folder / RUN_CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not {"flags", "model"} <= config.keys():
            raise UserError(f"{folder / RUN_CONFIG} is no run's configuration: {remedy}")
    except PermissionError as error:
        raise UnreadableError(f"{error.filename}: no permission to read it: change its mode or owner") from error
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder} cannot be read ({_first_line(error)}): use an earlier checkpoint") from error
    return Checkpoint(folder, manifest.progress, config, tuple(manifest.files))


class UnreadableError(UserError):
    """A checkpoint that is no worse for this: nothing goes on from an earlier one in its place."""


def is_whole(folder: Path) -> bool:
    """Whether a `step-N` folder has a sound manifest, and every file in its size; no file is read."""
    try:
        manifest = _read_manifest(folder)
        return all((folder / name).stat().st_size == entry.bytes for name, entry in manifest.files.items())
    except (UserError, OSError, ValueError, RecursionError):
        return False


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file: restore it or use an earlier checkpoint")
    text = path.read_bytes()
    try:
        content = json.loads(text)
        version = content.get("format_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise UserError(f"{folder} was written by a newer version of deconattn: update this one")
        manifest = _MANIFESTS.validate_json(text, strict=True)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({_first_line(error)}): use an earlier checkpoint") from None
    progress = manifest.progress
    if manifest.sha256 is not None and manifest.sha256 != _digest({k: v for k, v in content.items() if k != "sha256"}):
        raise UserError(f"{path} was changed after it was written: restore it or use an earlier checkpoint")
    number = re.fullmatch(r"step-(\d+)", folder.resolve().name)
    counted = progress.optimizer_steps + progress.skipped_steps
    if min(vars(progress).values()) < 0 or counted > progress.step or (number and int(number[1]) != progress.step):
        raise UserError(f"{path} says step {progress.step}: restore it or use an earlier checkpoint")
    missing = [name for name in (RUN_CONFIG,) if name not in manifest.files]
    if missing or not any(name.startswith("weights-") for name in manifest.files):
        raise UserError(f"{path} lists no {(missing or ['weights'])[0]}: restore it or use an earlier checkpoint")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in manifest.files):
        raise UserError(f"{path} names files outside the checkpoint: use an earlier one")
    return manifest


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def step_of(folder: Path) -> int:
    """Return the N of a `step-N` folder."""
    return int(folder.name.removeprefix("step-"))


def steps_in(run: Path) -> list[Path]:
    """Return the `step-N` folders of a run, newest first."""
    folders = [path for path in (run / CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(folders, key=step_of, reverse=True)


def newest_good(run: Path) -> Checkpoint | None:
    """Open the newest checkpoint that verifies, None where there is none at all.

    One that is damaged is named on standard error and passed over.

    Raises:
        UserError: all are damaged, or one must not be read: nothing is begun anew over them.
    """
    reasons = []
    for folder in steps_in(run):
        try:
            return read_checkpoint(folder)
        except UnreadableError:
            raise
        except UserError as error:
            print(f"warning: passing over {folder.name}: {error}", file=sys.stderr)
            reasons.append(f"{folder.name}: {error}")
    if reasons:
        raise UserError(f"{run} has no checkpoint that can be read: {'; '.join(reasons)}")
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a run folder's newest good checkpoint, or a `step-N` folder.

    Raises:
        UserError: neither, or nothing good in it.
    """
    if (path / MANIFEST).is_file() or re.fullmatch(r"step-\d+", path.name):
        return read_checkpoint(path)
    if not (path / CHECKPOINTS).is_dir():
        raise UserError(f"{path} is neither a run folder nor a checkpoint: give a folder with {CHECKPOINTS}/ or step-N")
    checkpoint = newest_good(path)
    if checkpoint is None:
        raise UserError(f"{path} holds no checkpoint yet: train it further")
    return checkpoint


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
