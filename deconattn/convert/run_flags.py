"""The flags of the run that a Hugging Face model begins: a training's, the model's own dimensions among them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from deconattn.checkpoint.hf_config import read_model_config
from deconattn.checkpoint.kinds import HF_CONFIG, kind_of
from deconattn.cli import complaints_in_one_line
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import TrainingFlags
from deconattn.config.presets import SIZES, Size
from deconattn.config.probe_source import is_probe
from deconattn.config.run_config import RUN_CONFIG, read_run_config
from deconattn.errors import UserError
from deconattn.json_files import reason
from deconattn.layers.config import ModelConfig
from deconattn.layers.rope_scaling import NONE, with_original

NAMES = {"tie_embeddings": "tie_word_embeddings"}
"""Flag fields whose names differ from those of :class:`ModelConfig`."""
DIMENSIONS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "attention_bias",
    "qk_norm",
    "tie_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "initializer_range",
)
"""The fields of ModelFlags that the model decides."""


@dataclass(frozen=True)
class _DecidingFlags:
    """Flags that decide the defaults of others, or are refused here."""

    size: str | None = None
    variant: str | None = None
    pattern: str | None = None
    config: Path | None = None
    save: Path | None = None
    resume: bool = False


def run_flags(arguments: Sequence[str], folder: Path, config: ModelConfig) -> TrainingFlags:
    """Parse a training's flags as of a run whose model has the dimensions of `config`, the model in `folder`.

    Training defaults are those of the size that comes nearest. Without `--variant` and `--pattern` the layers are
    the model's own. So is the rotary scaling, unless `--rope-scaling` gives another in its place, which counts from the
    length that the model had before any.

    Raises:
        UserError: what a training would complain about, a flag that contradicts the model, or no `--data`.
    """
    with complaints_in_one_line():
        given, _ = tyro.cli(_DecidingFlags, args=arguments, return_unknown_args=True, add_help=False)
    if given.save is not None or given.resume:
        flag = "--resume" if given.resume else "--save"
        raise UserError(f"{flag} has no place here, OUT is the new run's folder: leave it out")
    if given.config is not None:
        raise UserError("--config has no place here, the model decides most of what it may say: give flags instead")
    values: dict[str, Any] = {name: getattr(config, NAMES.get(name, name)) for name in DIMENSIONS}
    ours = [word for name, value in values.items() for word in _flag(name, value)]
    if given.size is None:
        ours += ["--size", nearest_size(config)]
    if given.variant is None and given.pattern is None:
        ours += ["--pattern", ",".join(config.layer_variants)]
    own_scaling = NONE if config.rope_scaling is None else str(config.rope_scaling)
    ours += ["--rope-scaling", own_scaling]
    flags = parse_training_flags([*ours, *arguments])  # of a flag given twice the last counts
    for name, value in values.items():
        if getattr(flags.model, name) != value:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} {getattr(flags.model, name)} contradicts {folder / HF_CONFIG}, which has {value}: "
                f"leave {flag} out"
            )
    if flags.model.rope_scaling != own_scaling:
        scaling = with_original(flags.model.rope_scaling, _original_length(config))
        flags = replace(flags, model=replace(flags.model, rope_scaling=scaling))
    if not flags.data.data:
        raise UserError("--data is missing: name the packed corpora that the run trains on")
    if is_probe(flags.data.data):
        raise UserError(f"--data {flags.data.data[0]} has no text, which the model was trained on: name packed corpora")
    flags.accumulation_steps(1)  # raises where no number of ranks would do
    return flags


def model_defaults(folder: Path) -> dict[str, Any]:
    """Return the fields of ModelFlags that describe a run's, a checkpoint's or a Hugging Face folder's model.

    Among them `size`, the one that comes nearest, and `pattern`, the layers one by one; beside them `original_length`,
    the longest sequence before any rotary scaling. A run's are read of its configuration alone.

    Raises:
        UserError: it is none of these, or cannot be converted.
    """
    if kind_of(folder) == "checkpoint":
        try:
            config = read_run_config(folder, "restore it").model
        except OSError as error:
            raise UserError(f"{folder / RUN_CONFIG} cannot be read ({reason(error)}): restore it") from error
    else:
        config = read_model_config(folder)
    values: dict[str, Any] = {name: getattr(config, NAMES.get(name, name)) for name in DIMENSIONS}
    values |= {"size": nearest_size(config), "pattern": ",".join(config.layer_variants)}
    scaling = NONE if config.rope_scaling is None else str(config.rope_scaling)
    return values | {"rope_scaling": scaling, "original_length": _original_length(config)}


def _original_length(config: ModelConfig) -> int:
    """Return the longest sequence that a model had before any rotary scaling."""
    before = config.rope_scaling.original_max_position_embeddings if config.rope_scaling else 0
    return before or config.max_position_embeddings


def nearest_size(config: ModelConfig) -> str:
    """The preset whose layers have most nearly as many weights."""

    def weights(model: ModelConfig | Size) -> float:
        return math.log(model.hidden_size**2 * model.num_hidden_layers)

    return min(SIZES, key=lambda name: abs(weights(SIZES[name]) - weights(config)))


def _flag(name: str, value: Any) -> list[str]:
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{words}" if value else f"--no-{words}"]
    return [f"--{words}", str(value)]
