"""The models that are looked into, opened and named."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deconattn.checkpoint.format import CHECKPOINTS, steps_in
from deconattn.checkpoint.hf_config import MODEL_TYPES, read_model_config
from deconattn.checkpoint.kinds import kind_of
from deconattn.checkpoint.stored_model import StoredModel, open_model
from deconattn.errors import UserError
from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.layers.config import ModelConfig
from deconattn.model.decoder import Decoder


@dataclass(frozen=True)
class Subject:
    """A model of which all is known but its weights.

    Attributes:
        label: what pictures and tables call it.
        run: the name of the run that holds it, where it is a `step-N` folder; `step` is that N.
    """

    label: str
    path: Path
    stored: StoredModel
    config: ModelConfig
    run: str | None
    step: int | None

    def decoder(self) -> Decoder:
        """Read the weights, in fp32 whatever the model was trained in: its layers, on the GPU where there is one.

        Raises:
            UserError: weights that are not this configuration's.
        """
        model = self.stored.load("fp32")
        if isinstance(self.stored.config, DeconAttnConfig):
            return model.model
        decoder = Decoder(self.config)  # of a stock model, whose tensors have the same names
        decoder.load_state_dict(model.model.state_dict())
        return decoder.to(model.device).eval()


def open_subjects(paths: Sequence[Path], all_steps: bool = False, plugins: Sequence[Path] = ()) -> list[Subject]:
    """Find out what each of `paths` is, and check it.

    Args:
        all_steps: open every checkpoint of a run folder, first ones first, and not only the newest good one.

    Raises:
        UserError: see :func:`~deconattn.checkpoint.stored_model.open_model`; a model that mixes in ways that are not
            ours, a folder given twice, or `all_steps` of what is no run.
    """
    if not paths:
        raise UserError("there is no model: give the folders of runs, checkpoints or Hugging Face models")
    folders = [folder for path in paths for folder in (_steps(path) if all_steps else [path])]
    for folder, times in Counter(folder.resolve() for folder in folders).items():
        if times > 1:
            raise UserError(f"{folder} is given {times} times: give it once")
    homes = {folder: _run_of(folder) or folder.resolve() for folder in folders}
    alike = Counter(home.name for home in set(homes.values()))
    names = {home: home.name if alike[home.name] == 1 else str(home) for home in homes.values()}
    return [_open(folder, names[home], plugins) for folder, home in homes.items()]


def _steps(path: Path) -> list[Path]:
    if kind_of(path) != "checkpoint" or _is_step(path):
        raise UserError(f"--all-steps: {path} is no run folder: give one, or leave the flag out")
    steps = steps_in(path)[::-1]
    if not steps:
        raise UserError(f"--all-steps: {path} has no checkpoint yet: train it first")
    return steps


def _is_step(path: Path) -> bool:
    return re.fullmatch(r"step-\d+", path.resolve().name) is not None


def _run_of(folder: Path) -> Path | None:
    folder = folder.resolve()
    return folder.parents[1] if _is_step(folder) and folder.parent.name == CHECKPOINTS else None


def _open(folder: Path, name: str, plugins: Sequence[Path]) -> Subject:
    stored = open_model(folder, plugins)
    if isinstance(stored.config, DeconAttnConfig):
        config = stored.config.to_model_config()
    elif stored.config.model_type in MODEL_TYPES:
        config = read_model_config(folder)
    else:
        raise UserError(
            f"{folder} is a {stored.config.model_type}, whose layers are not ours to look into: give a run, a "
            "checkpoint, an export, or a Qwen2 or Qwen3 model"
        )
    if _run_of(folder) is None:
        return Subject(name, folder, stored, config, None, None)
    step = folder.resolve().name
    return Subject(f"{name}/{step}", folder, stored, config, name, int(step.removeprefix("step-")))
