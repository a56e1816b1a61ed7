"""The one place that chooses how a mixing operation is computed, and says why.

Three backends give the same numbers: `reference`, the paper's formula with its whole map; `torch`, blocks of
PyTorch operations on any device; `triton`, fused kernels on a GPU. The environment variable `DECONATTN_BACKEND`
forces one for every operation that has it.
"""

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from deconattn.errors import UserError
from deconattn.ops.compiling import constant_in_graphs
from deconattn.ops.notes import said_of, say

Backend = Literal["reference", "torch", "triton"]
VARIABLE = "DECONATTN_BACKEND"
WIDEST_HEAD = 128
"""Largest head_dim of the Triton kernels."""
SLOWER = "going on by blocks of PyTorch operations, which is slower"
"""What a warning of kernels that cannot run ends with."""
_KERNELS = "deconattn.ops.kernels"
_OPERATIONS = (
    "cross_entropy",
    "fixed_map",
    "prefix_attention",
    "rms_norm",
    "rotation",
    "swiglu",
    "taylor_states",
    "taylor_tiles",
)
"""Modules of kernels."""


@dataclass(frozen=True)
class Choice:
    """A backend, and the reason in a few words."""

    backend: Backend
    reason: str


def choose(values: Tensor) -> Choice:
    """The backend for an operation on `values`, [.., head_dim].

    Raises:
        UserError: `DECONATTN_BACKEND` names no backend, or one that cannot run here.
    """
    return _choice(values.device.type, values.dtype, values.shape[-1])


@contextmanager
def preferring(backend: Backend) -> Iterator[None]:
    """Have operations take a backend while it is entered, where `DECONATTN_BACKEND` names none."""
    if os.environ.get(VARIABLE):
        yield
        return
    os.environ[VARIABLE] = backend
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def backend_for(values: Tensor) -> str:
    """The name of what :func:`choose` chooses, which torch.compile takes for a constant.

    Where it is `triton`, the kernels are operators: `torch.ops.deconattn.NAME`, whose first result is the output.
    torch.export gets the formulas: blocks are a loop whose turns depend on the length, which is to stay open.
    """
    if _exporting():
        return "reference"
    return _constant_backend(values.device.type, values.dtype, values.shape[-1])


def fused(values: Tensor) -> bool:
    """Whether an operation on `values` that has no heads is done by kernels, `torch.ops.deconattn.NAME`."""
    return _constant_backend(values.device.type, values.dtype, 0) == "triton"


@constant_in_graphs
def _exporting() -> bool:
    """Whether torch.export is at work. Asked by traced code, torch 2.11 says yes under torch.compile, too."""
    return torch.compiler.is_exporting()


@constant_in_graphs
def _constant_backend(device: str, dtype: torch.dtype, head_dim: int) -> str:
    backend = _choice(device, dtype, head_dim).backend
    return "torch" if backend == "triton" and not _register_kernels() else backend


def _choice(device: str, dtype: torch.dtype, head_dim: int) -> Choice:
    missing = _why_no_kernels(device, dtype, head_dim)
    forced = os.environ.get(VARIABLE)
    if forced:
        if forced not in get_args(Backend):
            raise UserError(f"{VARIABLE}={forced}: choose one of {', '.join(get_args(Backend))}, or unset it")
        if forced == "triton" and missing:
            raise UserError(f"{VARIABLE}=triton cannot be had: {missing}; use torch, or unset it")
        return Choice(forced, f"{VARIABLE} forces it")  # type: ignore[arg-type]
    if missing:
        return Choice("torch", missing)
    if device != "cuda":
        return Choice("torch", "tensors are not on a GPU")
    return Choice("triton", "tensors are on a GPU and Triton is installed")


def _why_no_kernels(device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    if dtype == torch.float64:
        return "Triton kernels do not compute in float64"
    if head_dim > WIDEST_HEAD:
        return f"head_dim {head_dim} is above {WIDEST_HEAD}, the Triton kernels' widest"
    if not _kernels_installed():
        return "Triton, or the deconattn package, is not installed"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "tensors are not on a GPU (on a CPU, TRITON_INTERPRET=1 runs Triton's interpreter)"
    return None


@cache
def _register_kernels() -> bool:
    """Import the kernels by name, because an exported model carries the other backends only.

    Triton is imported where it is used, and kernels are used where this package is installed beside the export. A
    Triton that cannot be imported is told of once, and done without unless it is forced.
    """
    try:
        for operation in _OPERATIONS:
            importlib.import_module(f"{_KERNELS}.{operation}")
    except (ImportError, OSError) as error:  # OSError: a library that it links is not there
        if os.environ.get(VARIABLE) == "triton":
            raise
        say(f"warning: the Triton kernels cannot be imported: {said_of(error)}; {SLOWER}")
        return False
    return True


@cache
def installed(module: str) -> bool:
    """Whether a module could be imported, as far as can be told without doing so."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its parent package is missing or broken
        return False


def _kernels_installed() -> bool:
    return installed("triton") and installed(_KERNELS)
