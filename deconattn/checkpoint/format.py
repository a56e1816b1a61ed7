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
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, contiguous_format

from deconattn import durable
from deconattn.config.command_line import RUN_CONFIG, from_json
from deconattn.config.flags import TrainingFlags
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.mixers.plugins import own_names

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

    @property
    def step(self) -> int:
        return self.progress.step

    @cached_property
    def flags(self) -> TrainingFlags:
        return from_json(self.config["flags"])

    @cached_property
    def model_config(self) -> ModelConfig:
        """The model's configuration; the run's plugins are loaded, and its variants are those of its own."""
        names = own_names(self.plugins)
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
    def base_model(self) -> str | None:
        """Name of the model that the run was converted from, if it was."""
        name: str | None = self.config.get("base_model")
        return name

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
        return sorted(self.folder.glob(f"{kind}-*.safetensors"))


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
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify and open one `step-N` folder.

    Raises:
        UserError: naming the file that is missing or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format_version"] > FORMAT_VERSION:
            raise UserError(f"{folder} was written by a newer version of deconattn: update this one")
        for name, entry in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                raise UserError(f"{path} is missing: restore it or use an earlier checkpoint")
            if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
                raise UserError(f"{path} is damaged: restore it or use an earlier checkpoint")
        config = json.loads((folder / RUN_CONFIG).read_text())
        return Checkpoint(folder, Progress(**manifest["progress"]), config)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: restore it or use an earlier checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be read ({error}): use an earlier checkpoint") from error


def steps_in(run: Path) -> list[Path]:
    """Return the `step-N` folders of a run, newest first."""
    folders = [path for path in (run / CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def newest_good(run: Path) -> Checkpoint | None:
    """Open the newest checkpoint that verifies; one that does not is named on standard error and passed over."""
    for folder in steps_in(run):
        try:
            return read_checkpoint(folder)
        except UserError as error:
            print(f"warning: passing over {folder.name}: {error}", file=sys.stderr)
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
        raise UserError(f"{path} holds no good checkpoint: train it further or restore one")
    return checkpoint


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
