"""Checkpoint format: one folder a step, whole or not there, free of topology and pickles.

    RUN/checkpoints/step-300/
        checkpoint.json                the manifest: step, checksums of the files, where each tensor's slices lie
        config.json                    the run's resolved configuration
        slices-00000.safetensors       what rank 0 wrote: its slices of the fp32 parameters, the buffers and the
        slices-00001.safetensors       optimiser's moments, under canonical names (:mod:`.slice_file`)
        tokenizer/

Every rank writes what it holds, and no tensor is gathered. The manifest says of each slice which elements of the whole
tensor it has, so any topology reads what it needs, and export reads the whole. (DeepSpeed's own checkpoints are pickles
tied to their topology.) Formats 1 and 2 had whole tensors in files of one kind, and are read as slices that are whole.
This module is the file side; the collective side is :mod:`deconattn.train.saving`.
"""

import math
import os
import sys
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deconattn import durable
from deconattn.checkpoint.in_use import Hold
from deconattn.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    Progress,
    is_step_name,
    read_manifest,
    step_of,
    write_manifest,
)
from deconattn.checkpoint.moments import moments_of
from deconattn.checkpoint.slice_file import NAME, Slice, write_slices
from deconattn.checkpoint.slices import REMEDY, SliceReader, UnreadableError, unreadable
from deconattn.checkpoint.tensors import Header, expected_headers, first_difference
from deconattn.config.flags import TrainingFlags
from deconattn.config.run_config import RUN_CONFIG, RunConfig, read_run_config
from deconattn.data.manifest import TOKENIZER_NAMES
from deconattn.errors import UserError
from deconattn.json_files import reason
from deconattn.layers.config import ModelConfig
from deconattn.layers.head_parts import renamed
from deconattn.mixers.plugins import changed_code, check_asked, load_plugins, names_in_process
from deconattn.progress import progress_bar
from deconattn.shown import one_line

CHECKPOINTS = "checkpoints"
_TOKENIZER = "tokenizer"
_TOKENIZERS = tuple(f"{_TOKENIZER}/{name}" for name in TOKENIZER_NAMES)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk; what is read of its tensors is verified when it is read."""

    folder: Path
    manifest: Manifest = field(repr=False)
    config: RunConfig
    trusted: bool = False
    """Its plugins are run unasked."""
    hold: Hold | None = field(default=None, repr=False, compare=False)
    """Keeps a training from deleting it while it is read."""

    @cached_property
    def reader(self) -> SliceReader:
        """Reader of its tensors, or of parts of them."""
        return SliceReader(self.folder, self.manifest)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the reader, which has open files, to this process."""
        return {name: value for name, value in vars(self).items() if name != "reader"}

    @property
    def progress(self) -> Progress:
        return self.manifest.progress

    @property
    def step(self) -> int:
        return self.progress.step

    @property
    def flags(self) -> TrainingFlags:
        return self.config.flags

    @cached_property
    def model_config(self) -> ModelConfig:
        """The model's configuration; the run's plugins are loaded, and its variants are those of its own."""
        check_asked(self.plugins, self.trusted, str(self.folder))
        names = names_in_process(self.plugins)
        changed = changed_code(
            {names.get(variant, variant): digest for variant, digest in self.config.plugin_code.items()}
        )
        if changed is not None:
            print(
                f"note: the code of variant {changed!r} is not what {self.folder} was trained with: it has changed "
                "since, or another file was given",
                file=sys.stderr,
            )
        variants = tuple(renamed(variant, names) for variant in self.config.model.layer_variants)
        return replace(self.config.model, layer_variants=variants)

    @property
    def precision(self) -> str:
        return self.flags.engine.precision or "fp32"

    @property
    def plugins(self) -> tuple[Path, ...]:
        return self.flags.model.plugin

    @property
    def origin(self) -> dict[str, Any]:
        """The configuration's fields about the model that the run began with; empty if it began with none."""
        config = self.config
        named = {} if config.base_model is None else {"base_model": config.base_model, "kept": config.kept}
        taken = {"taken": list(config.taken), "taken_layers": list(config.taken_layers)}
        return named | (taken if config.taken else {})

    def with_plugins(self, plugins: Sequence[Path], trusted: bool = False) -> "Checkpoint":
        """Return the checkpoint with these files, which are run, in the place of the plugins it was trained with.

        Args:
            plugins: as they were given; none leaves the checkpoint its own.
            trusted: its own are run, which are refused otherwise.

        Raises:
            UserError: a file that is missing or fails.
        """
        if not plugins:
            return replace(self, trusted=trusted)
        load_plugins(plugins)
        flags = replace(self.flags, model=replace(self.flags.model, plugin=tuple(plugins)))
        return replace(self, config=replace(self.config, flags=flags))

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the corpora that the run read."""
        return tuple(Path(corpus.path).name for corpus in self.config.data)

    @property
    def tokenizer_folder(self) -> Path | None:
        named = any(name in self.manifest.files for name in _TOKENIZERS)
        return self.folder / _TOKENIZER if named else None

    def tensors(self, kind: str, wanted: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole tensor), reading only the wanted ones; kind is `weights` or a moment's.

        Raises:
            UserError: naming the file that is damaged or cannot be read.
        """
        for name, entry in self.reader.tensors.items():
            if kind in entry.kinds and (wanted is None or name in wanted):
                yield name, self.reader.read(kind, name).view(entry.shape)
        self.reader.close()

    def check(self, *kinds: str) -> None:
        """Check that these kinds of tensors are those of the model, in number, type and shape; none is read.

        Raises:
            UserError: naming the first that is not.
        """
        parameters, buffers = expected_headers(self.model_config)
        for kind in kinds:
            entries = self.reader.tensors.items()
            found = {name: (entry.dtype, tuple(entry.shape)) for name, entry in entries if kind in entry.kinds}
            expected = parameters | buffers if kind == "weights" else self._with_moment(kind, parameters)
            if (name := first_difference(expected, found)) is not None:
                raise self.unfit(kind, name)

    def unfit(self, kind: str, name: str) -> UserError:
        """Return the error that a tensor is not there, or not the model's."""
        return UserError(
            f"{self.folder} does not fit the model ({kind} of {name}): restore it or use another checkpoint"
        )

    def _with_moment(self, kind: str, parameters: Mapping[str, Header]) -> dict[str, Header]:
        """Return the parameters of which the run's optimiser keeps this kind of moment."""
        optimizer = self.flags.optimization.optimizer
        with_it = (name for name, (_, shape) in parameters.items() if kind in moments_of(name, len(shape), optimizer))
        return {name: parameters[name] for name in with_it}

    def weights(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Read the canonical state dict: parameters and the buffers, Hugging Face names; shows how far it is.

        Args:
            dtype: of what is floating-point; each tensor is converted when it has been read.

        Raises:
            UserError: they are not the model's, damaged, or cannot be read.
        """
        self.check("weights")
        entries = (entry for entry in self.reader.tensors.values() if "weights" in entry.kinds)
        total = sum(math.prod(entry.shape) * (8 if entry.dtype == "I64" else 4) for entry in entries)
        read: dict[str, Tensor] = {}
        with progress_bar("reading weights", total, "bytes") as advance:
            for name, tensor in self.tensors("weights"):
                read[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
                advance(tensor.nbytes)
        return read


def write_whole(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Write whole tensors into a step folder, by name and kind; returns the entry of their file, for :func:`seal`."""
    slices = [
        Slice(name, tuple(values["weights"].shape), None, 0, {kind: flat(value) for kind, value in values.items()})
        for name, values in tensors.items()
    ]
    return {NAME.format(0): write_slices(folder / NAME.format(0), slices)}


def flat(values: Tensor) -> Tensor:
    """Return values as a checkpoint holds them: 1-D, in fp32 or int64."""
    values = values.detach().flatten()
    return values.float() if values.is_floating_point() else values.long()


def seal(
    folder: Path,
    progress: Progress,
    config: dict[str, Any],
    write_tokenizer: Callable[[Path], object],
    written: Mapping[str, Any],
) -> None:
    """Complete a folder with a step's slices to a checkpoint: configuration, tokenizer, and the manifest last.

    Args:
        write_tokenizer: writes the tokenizer that the corpus was packed with into a folder.
        written: what :func:`~deconattn.checkpoint.slice_file.write_slices` returned, by file.
    """
    durable.write_json(folder / RUN_CONFIG, config)
    (folder / _TOKENIZER).mkdir(exist_ok=True)
    write_tokenizer(folder / _TOKENIZER)
    write_manifest(folder, progress, written)


def read_checkpoint(folder: Path, kinds: Collection[str] = ()) -> Checkpoint:
    """Open one `step-N` folder: the manifest, small files and the headers of the others are verified.

    Args:
        kinds: tensors that are verified here and now; others are when they are read.

    Raises:
        UserError: naming the file that is missing or damaged, or that this user must not read.
    """
    remedy = REMEDY
    try:
        hold = Hold(folder)
        manifest = read_manifest(folder)
        for name, entry in manifest.files.items():
            if not entry.fits(folder / name):
                raise UserError(f"{folder / name} is damaged: {remedy}")
        for name in _TOKENIZERS:
            if name not in manifest.files and os.path.lexists(folder / name):
                raise UserError(f"{folder / name} is no file of the checkpoint: move it away")
        config = read_run_config(folder, remedy)
        checkpoint = Checkpoint(folder, manifest, config, hold=hold)
        if kinds:
            checkpoint.reader.verify(kinds)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {remedy}") from None
    except OSError as error:
        raise unreadable(error.filename or folder, error) from error
    except ValueError as error:  # a name that no file can have
        raise UserError(f"{folder / MANIFEST} cannot be read ({reason(error)}): {remedy}") from None
    return checkpoint


def steps_in(run: Path) -> list[Path]:
    """Return the `step-N` folders of a run, newest first; UserError if that cannot be known."""
    folder = run / CHECKPOINTS
    try:
        found = [path for path in folder.iterdir() if is_step_name(path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({reason(error)}): change its mode, or restore it") from None
    return sorted(found, key=step_of, reverse=True)


def newest_good(
    run: Path, kinds: Collection[str] = ("weights",), damaged: Mapping[str, str] | None = None
) -> Checkpoint | None:
    """Open the newest checkpoint that verifies, None where there is none at all.

    One that is damaged is named on standard error and passed over.

    Args:
        kinds: what is verified of each tensor.
        damaged: those that are known to be, by name, with the reason.

    Raises:
        UserError: all are damaged, or one must not be read: nothing is begun anew over them.
    """
    reasons = dict(damaged or {})
    folders = [path for path in steps_in(run) if path.name not in reasons]
    while folders:
        folder = folders.pop(0)
        try:
            return read_checkpoint(folder, kinds)
        except UnreadableError:
            raise
        except UserError as error:
            if not os.path.lexists(folder):  # the run's training has just deleted it, and has newer ones
                folders = [path for path in steps_in(run) if path.name not in reasons]
                continue
            reasons[folder.name] = pass_over(folder, error)
    if reasons:
        listed = "; ".join(f"{name}: {error}" for name, error in reasons.items())
        raise UserError(f"{run} has no checkpoint that can be read: {listed}")
    return None


def pass_over(folder: Path, error: UserError) -> str:
    """Say on standard error that a checkpoint is damaged; return the reason."""
    print(f"warning: passing over {folder.name}: {one_line(error)}", file=sys.stderr)
    return str(error)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a run folder's newest good checkpoint, or a `step-N` folder.

    Raises:
        UserError: neither, or nothing good in it.
    """
    try:
        if (path / MANIFEST).is_file() or is_step_name(path.name):
            return read_checkpoint(path)
        is_run = (path / CHECKPOINTS).is_dir()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): change its mode, or give another folder") from None
    if not is_run:
        raise UserError(f"{path} is neither a run folder nor a checkpoint: give a folder with {CHECKPOINTS}/ or step-N")
    checkpoint = newest_good(path)
    if checkpoint is None:
        raise UserError(f"{path} holds no checkpoint yet: train it further")
    return checkpoint
