"""Trained weights of any kind, read in parts: of a run, of a checkpoint, or of a Hugging Face folder."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from deconattn.checkpoint.format import Checkpoint, open_checkpoint, read_checkpoint
from deconattn.checkpoint.hf_config import read_model_config
from deconattn.checkpoint.hf_weights import HEAD, HFWeights
from deconattn.checkpoint.kinds import kind_of
from deconattn.checkpoint.origin import origin_of
from deconattn.checkpoint.origins import STREAMS, Origins
from deconattn.checkpoint.slice_file import Part
from deconattn.checkpoint.tensors import expected_headers
from deconattn.data.manifest import TOKENIZER_NAMES
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.mixers.plugins import load_plugins

FREE = ("layer_variants", "max_position_embeddings", "initializer_range", "rope_scaling", "rope_theta")
"""Fields of a model's configuration in which the model that begins with another's weights may differ from it."""
_FLAGS = {"tie_word_embeddings": "tie_embeddings"}


class Source(ABC):
    """Trained weights.

    Attributes:
        folder: where they lie; of a run, its checkpoint that is read.
        config: the model's configuration.
        shapes: of the tensors, by canonical name.
        origin: what a run that begins with them says of their model in its configuration.
    """

    folder: Path
    config: ModelConfig
    shapes: Mapping[str, tuple[int, ...]]
    origin: dict[str, Any]

    @abstractmethod
    def read(self, name: str, part: Part | None, first: int, last: int) -> Tensor:
        """Read elements `first` to `last` of a part of a tensor, or of the whole, in row-major order: 1-D, on the CPU.

        Raises:
            UserError: naming what is damaged or cannot be read.
        """

    @property
    @abstractmethod
    def tokenizer(self) -> Path | None:
        """The folder that has the model's tokenizer; None where there is none."""

    @abstractmethod
    def close(self) -> None:
        """Close the files; what is read later opens them again."""


class OfCheckpoint(Source):
    """Weights of a checkpoint of ours, in fp32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        checkpoint.check("weights")
        self._checkpoint = checkpoint
        self.folder, self.config = checkpoint.folder, checkpoint.model_config
        entries = checkpoint.reader.tensors.items()
        self.shapes = {name: tuple(entry.shape) for name, entry in entries if "weights" in entry.kinds}
        self.origin = {name: value for name, value in checkpoint.origin.items() if not name.startswith("taken")}

    def read(self, name: str, part: Part | None, first: int, last: int) -> Tensor:
        return self._checkpoint.reader.read("weights", name, part, first, last)

    @property
    def tokenizer(self) -> Path | None:
        return self._checkpoint.tokenizer_folder

    def close(self) -> None:
        self._checkpoint.reader.close()


class OfFolder(Source):
    """Weights of a Hugging Face folder, in the format that they are stored in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, read_model_config(folder)
        self._weights = HFWeights(folder)
        self._weights.check(self.config)
        self.shapes = {name: tuple(shape) for name, shape in self._weights.shapes.items()}
        if self.config.tie_word_embeddings:  # a copy of the embedding may be stored for the head
            self.shapes = {name: shape for name, shape in self.shapes.items() if name != HEAD}
        self.origin = origin_of(folder)

    def read(self, name: str, part: Part | None, first: int, last: int) -> Tensor:
        whole = self._weights.read(name)
        if part is not None:
            whole = whole.narrow(part.dim, part.start, part.stop - part.start)
        return whole.flatten()[first:last]

    @property
    def tokenizer(self) -> Path | None:
        return self.folder if any((self.folder / name).is_file() for name in TOKENIZER_NAMES) else None

    def close(self) -> None:
        """Do nothing: each reading opens and closes its file."""


def open_source(path: Path, plugins: Sequence[Path] = ()) -> Source:
    """Open a run (its newest good checkpoint), a checkpoint, or a Hugging Face folder that can be converted.

    Args:
        plugins: files that register the variants of third parties.

    Raises:
        UserError: it is none of these, damaged, or has layers that are not known here.
    """
    if kind_of(path) == "checkpoint":
        return OfCheckpoint(open_checkpoint(path).with_plugins(plugins))
    load_plugins(plugins)
    return OfFolder(path)


def reopen_source(folder: Path, plugins: Sequence[Path] = ()) -> Source:
    """Open what :func:`open_source` has found in this folder on another rank, with no look for a newer checkpoint."""
    if kind_of(folder) == "checkpoint":
        return OfCheckpoint(read_checkpoint(folder).with_plugins(plugins))
    return open_source(folder, plugins)


def shared_tensors(config: ModelConfig, source: Source, keep: frozenset[str] = frozenset()) -> Origins:
    """Return which tensors a model takes: those that have name and shape in common; nothing is read.

    Of a fixed stream that is longer than the source's, its first rows.

    Args:
        keep: tensors of the model that stay as a fresh run has them.

    Raises:
        UserError: the model differs in what its layers do not decide.
    """
    check_dimensions(config, source)
    parameters, buffers = expected_headers(config)
    shapes = {name: shape for name, (_, shape) in (parameters | buffers).items()}
    taken, continued = [], {}
    for name, shape in shapes.items():
        stored = source.shapes.get(name)
        if stored is None or name in keep:
            continue
        if name in STREAMS:
            if stored[0] < shape[0]:
                continued[name] = (stored[0], shape[0])
            stored = (shape[0], *stored[1:])  # its first rows are the stream of a shorter sequence
        if stored == shape:
            taken.append(name)
    return Origins(
        taken=taken,
        initialised=[name for name in shapes if name not in taken],
        unused=[name for name in source.shapes if name not in taken],
        continued=continued,
    )


def check_dimensions(config: ModelConfig, source: Source) -> None:
    """Raise UserError where a model differs from the weights in more than its layers' variants, naming the flag."""
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(config, field.name), getattr(source.config, field.name)
        if field.name not in FREE and ours != theirs:
            flag = "--" + _FLAGS.get(field.name, field.name).replace("_", "-")
            raise UserError(
                f"--init-from {source.folder} has {field.name} {theirs} but the flags say {ours}: leave {flag} out"
            )
