"""Kinds of model folders."""

import os
from pathlib import Path
from typing import Any, Literal

from deconattn.checkpoint.format import CHECKPOINTS
from deconattn.checkpoint.manifest import MANIFEST, is_step_name
from deconattn.errors import UserError
from deconattn.json_files import read_json, reason

HF_CONFIG = "config.json"
Kind = Literal["checkpoint", "hugging face"]


def kind_of(path: Path) -> Kind:
    """Return `checkpoint` (a run folder or a `step-N` folder) or `hugging face`.

    Raises:
        UserError: neither.
    """
    try:
        return _kind(path)
    except OSError as error:
        place = error.filename or path
        raise UserError(f"{place} cannot be read ({reason(error)}): change its mode, or give another folder") from None


def _kind(path: Path) -> Kind:
    if not path.is_dir():
        raise UserError(f"{path} is {'a file' if path.exists() else 'not there'}: give the folder of a run or a model")
    if (path / CHECKPOINTS).is_dir() or (path / MANIFEST).is_file():
        return "checkpoint"
    config = read_config(path) if os.path.lexists(path / HF_CONFIG) else {}
    if "model_type" in config:
        return "hugging face"
    if is_step_name(path.name):  # a damaged one, which opening it will say
        return "checkpoint"
    if "flags" in config:
        raise UserError(f"{path} is a run without a checkpoint yet: train it first")
    raise UserError(
        f"{path} is neither a run folder ({CHECKPOINTS}/), nor a checkpoint (step-N), nor a Hugging Face model "
        f"({HF_CONFIG} with a model_type): give one of these"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read a Hugging Face folder's config.json (UserError if it is damaged)."""
    try:
        config = read_json(folder / HF_CONFIG)
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / HF_CONFIG} cannot be read ({reason(error)}): restore it") from None
    return config
