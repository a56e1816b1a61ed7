"""Kinds of model folders."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from deconattn.checkpoint.format import CHECKPOINTS
from deconattn.checkpoint.manifest import MANIFEST, is_step_name
from deconattn.errors import UserError
from deconattn.json_files import read_json, reason

HF_CONFIG = "config.json"
_OPENED = (".json", ".safetensors", ".model", ".jinja", ".txt")
"""Endings of files that libraries open in a model's folder."""
_Size = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]


class _Sizes(TypedDict, total=False):
    """Fields of Hugging Face configurations, where they are given; others are for transformers to judge."""

    model_type: Annotated[str, Field(strict=True)]
    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: Annotated[int, Field(strict=True, ge=1, le=10_000)]
    num_attention_heads: _Size
    num_key_value_heads: _Size | None
    head_dim: _Size | None
    max_position_embeddings: _Size
    layer_variants: list[str] | None
    layer_types: list[str] | None
    rms_norm_eps: _Number
    rope_theta: _Number
    initializer_range: _Number
    tie_word_embeddings: Annotated[bool, Field(strict=True)]
    use_sliding_window: Annotated[bool, Field(strict=True)] | None


_SIZES = TypeAdapter(_Sizes)
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
    """Read a Hugging Face folder's config.json.

    Raises:
        UserError: it is damaged, has a size that no model has, or stands beside what would be opened as a file of the
            model and is none.
    """
    for path in folder.iterdir():
        if path.suffix in _OPENED and not path.is_file():  # a named pipe would be waited for
            raise UserError(f"{path} is not a file: restore it")
    config = read_object(folder / HF_CONFIG)
    try:
        _SIZES.validate_python(config)
    except ValidationError as error:
        fault = error.errors()[0]
        name, value = fault["loc"][0], json.dumps(fault["input"])[:40]
        kind = config.get("model_type")
        raise UserError(
            f"{folder / HF_CONFIG} is no configuration of {kind} ({name} is {value}: {fault['msg']}): correct it"
        ) from None
    return config


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model's folder.

    Raises:
        UserError: no file, or no JSON object in it.
    """
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): restore it") from None
    return content
