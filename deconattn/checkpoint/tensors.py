"""Safetensors files, opened with their faults in one line, and compared with the model that they are to be of."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from deconattn.errors import UserError
from deconattn.json_files import open_regular, reason
from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM

Header = tuple[str, tuple[int, ...]]
"""Type, as safetensors spells it, and shape of a tensor."""


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file (UserError if it is damaged or not to be read)."""
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): restore it") from error


def headers(path: Path) -> dict[str, Header]:
    """Return type and shape of every tensor of a file, none of which is read."""
    with open_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return {name: (piece.get_dtype(), tuple(piece.get_shape())) for name, piece in slices.items()}


def expected_headers(config: ModelConfig) -> tuple[dict[str, Header], dict[str, Header]]:
    """Return type and shape of every parameter and of every buffer that a checkpoint of a model holds.

    Raises:
        UserError: a model that cannot be built.
    """
    try:
        with torch.device("meta"):
            model = CausalLM(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"a model of these dimensions cannot be built ({reason(error)}): correct them") from error
    parameters: dict[str, Header] = {
        name: ("F32", tuple(parameter.shape)) for name, parameter in model.canonical_parameters().items()
    }
    buffers: dict[str, Header] = {
        name: ("F32" if buffer.is_floating_point() else "I64", tuple(buffer.shape))
        for name, buffer in model.named_buffers()
    }
    return parameters, buffers


def first_difference(expected: Mapping[str, Header], found: Mapping[str, Header]) -> str | None:
    """Return the first name that two sets of tensors do not share, in type and shape; None if they are alike."""
    names = sorted(expected.keys() | found.keys())
    return next((name for name in names if expected.get(name) != found.get(name)), None)
