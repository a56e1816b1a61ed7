"""The models that are looked into, opened and named."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deconattn.checkpoint.format import steps_in
from deconattn.checkpoint.kinds import kind_of
from deconattn.checkpoint.stored_model import StoredModel, open_model, run_of
from deconattn.errors import UserError


def open_models(
    paths: Sequence[Path], all_steps: bool = False, plugins: Sequence[Path] = (), trust_plugins: bool = False
) -> list[StoredModel]:
    """Find out what each of `paths` is, and check it; runs of one name are told apart by their paths.

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
    homes = {folder: run_of(folder) or folder.resolve() for folder in folders}
    alike = Counter(home.name for home in set(homes.values()))
    models = []
    for folder, home in homes.items():
        stored = open_model(folder, plugins, trust_plugins)
        _ = stored.model_config  # raises where its layers are not ours
        if alike[home.name] > 1:
            stored = replace(stored, label=f"{home}/{folder.resolve().name}" if run_of(folder) else str(home))
        models.append(stored)
    return models


def _steps(path: Path) -> list[Path]:
    if kind_of(path) != "checkpoint" or run_of(path) is not None:
        raise UserError(f"--all-steps: {path} is no run folder: give one, or leave the flag out")
    steps = steps_in(path)[::-1]
    if not steps:
        raise UserError(f"--all-steps: {path} has no checkpoint yet: train it first")
    return steps
