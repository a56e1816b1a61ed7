"""Checkpoint format: one folder a step, written atomically, free of topology and pickles.

    RUN/checkpoints/step-300/
        checkpoint.json               step, data position, size and SHA-256 of every other file; written last
        config.json                   the run's resolved configuration
        weights-00-00001.safetensors     canonical names, fp32 parameters, and the buffers
        exp_avg-00-00001.safetensors     the optimiser's moments, same names, fp32 (:mod:`.moments`)
        exp_avg_sq-00-00001.safetensors
        tokenizer/

Whole tensors instead of each rank's partitions: any topology can load them, export reads them as they are, and
nothing needs converting. (DeepSpeed's own checkpoints are pickles tied to their topology; its universal form needs
a conversion for every move, knows the plain and the pipeline engine by different names, and is pickles still.)
The first number is the pipeline stage that wrote the file; it tells readers nothing. This module is the file side;
the collective side is :mod:`deconattn.train.saving`.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, contiguous_format

from deconattn import durable
from deconattn.checkpoint.in_use import Hold
from deconattn.checkpoint.manifest import MANIFEST, Progress, is_step_name, read_manifest, step_of, write_manifest
from deconattn.checkpoint.moments import moments_of
from deconattn.checkpoint.tensors import Header, expected_headers, first_difference, headers, open_tensors
from deconattn.config.flags import TrainingFlags
from deconattn.config.run_config import RUN_CONFIG, RunConfig, read_run_config
from deconattn.data.manifest import TOKENIZER_NAMES
from deconattn.errors import UserError
from deconattn.json_files import reason
from deconattn.layers.config import ModelConfig
from deconattn.mixers.plugins import changed_code, check_asked, load_plugins, names_in_process
from deconattn.shown import one_line

CHECKPOINTS = "checkpoints"
BYTES_A_FILE = 2**30
_TOKENIZER = "tokenizer"
_TOKENIZERS = tuple(f"{_TOKENIZER}/{name}" for name in TOKENIZER_NAMES)
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG, errno.ENXIO)
"""What an OSError says of a file that is not what was written; another says nothing of the checkpoint itself."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    progress: Progress
    config: RunConfig
    files: tuple[str, ...]
    trusted: bool = False
    """Its plugins are run unasked."""
    hold: Hold | None = field(default=None, repr=False, compare=False)
    """Keeps a training from deleting it while it is read."""

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
        variants = tuple(names.get(variant, variant) for variant in self.config.model.layer_variants)
        return replace(self.config.model, layer_variants=variants)

    @property
    def precision(self) -> str:
        return self.flags.engine.precision or "fp32"

    @property
    def plugins(self) -> tuple[Path, ...]:
        return self.flags.model.plugin

    @property
    def origin(self) -> dict[str, Any]:
        """The configuration's fields about the model that the run was converted from; empty if it was not."""
        config = self.config
        return {} if config.base_model is None else {"base_model": config.base_model, "kept": config.kept}

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
        named = any(name in self.files for name in _TOKENIZERS)
        return self.folder / _TOKENIZER if named else None

    def tensors(self, kind: str, wanted: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor), reading only the wanted ones; kind is `weights` or a moment's."""
        for path in self._files(kind):
            with open_tensors(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if wanted is None or name in wanted:
                        yield name, file.get_tensor(name)

    def check(self, *kinds: str) -> None:
        """Check that these kinds of tensors are those of the model, in number, type and shape; none is read.

        Raises:
            UserError: naming the first that is not.
        """
        parameters, buffers = expected_headers(self.model_config)
        for kind in kinds:
            found: dict[str, Header] = {}
            for path in self._files(kind):
                found |= headers(path)
            expected = parameters | buffers if kind == "weights" else self._with_moment(kind, parameters)
            if (name := first_difference(expected, found)) is not None:
                raise UserError(
                    f"{self.folder} does not fit the model ({kind} of {name}): restore it or use another checkpoint"
                )

    def _with_moment(self, kind: str, parameters: Mapping[str, Header]) -> dict[str, Header]:
        """Return the parameters of which the run's optimiser keeps this kind of moment."""
        optimizer = self.flags.optimization.optimizer
        with_it = (name for name, (_, shape) in parameters.items() if kind in moments_of(name, len(shape), optimizer))
        return {name: parameters[name] for name in with_it}

    def weights(self) -> dict[str, Tensor]:
        """Read the canonical state dict: fp32 parameters and the buffers, Hugging Face names.

        Raises:
            UserError: they are not the model's.
        """
        self.check("weights")
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


def seal(
    folder: Path,
    progress: Progress,
    config: dict[str, Any],
    write_tokenizer: Callable[[Path], object],
    known: Mapping[str, Any] | None = None,
) -> None:
    """Complete a folder with a step's tensors to a checkpoint: configuration, tokenizer, and the manifest last.

    Args:
        write_tokenizer: writes the tokenizer that the corpus was packed with into a folder.
        known: see :func:`write_manifest`.
    """
    durable.write_json(folder / RUN_CONFIG, config)
    (folder / "tokenizer").mkdir()
    write_tokenizer(folder / "tokenizer")
    write_manifest(folder, progress, known)


class UnreadableError(UserError):
    """A checkpoint that is no worse for this: nothing goes on from an earlier one in its place."""


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify and open one `step-N` folder.

    Raises:
        UserError: naming the file that is missing or damaged, or that this user must not read.
    """
    remedy = "restore it or use an earlier checkpoint"
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
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {remedy}") from None
    except OSError as error:
        place = error.filename or folder
        if error.errno in _DAMAGE:
            raise UserError(f"{place} cannot be read ({reason(error)}): {remedy}") from None
        what = "no permission to read it: change its mode or owner"
        if not isinstance(error, PermissionError):
            what = f"{reason(error)}: try again, or use another checkpoint (--resume-from step-N)"
        raise UnreadableError(f"{place}: {what}") from error
    except ValueError as error:  # a name that no file can have
        raise UserError(f"{folder / MANIFEST} cannot be read ({reason(error)}): {remedy}") from None
    return Checkpoint(folder, manifest.progress, config, tuple(manifest.files), hold=hold)


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


def newest_good(run: Path) -> Checkpoint | None:
    """Open the newest checkpoint that verifies, None where there is none at all.

    One that is damaged is named on standard error and passed over.

    Raises:
        UserError: all are damaged, or one must not be read: nothing is begun anew over them.
    """
    reasons: dict[str, str] = {}
    folders = steps_in(run)
    while folders:
        folder = folders.pop(0)
        try:
            return read_checkpoint(folder)
        except UnreadableError:
            raise
        except UserError as error:
            if not os.path.lexists(folder):  # the run's training has just deleted it, and has newer ones
                folders = [path for path in steps_in(run) if path.name not in reasons]
                continue
            print(f"warning: passing over {folder.name}: {one_line(error)}", file=sys.stderr)
            reasons[folder.name] = str(error)
    if reasons:
        listed = "; ".join(f"{name}: {error}" for name, error in reasons.items())
        raise UserError(f"{run} has no checkpoint that can be read: {listed}")
    return None


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
