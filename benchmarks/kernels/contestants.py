"""Who takes part in a case: our backends, PyTorch's attention, flash-attn, flash-linear-attention."""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.kernels.cases import BESIDE_FLA, Case, Operation, Problem, whole_logits_loss
from deconattn.ops import flash
from deconattn.ops.backend import VARIABLE, choose

NARROW_KEYS = 16
"""The widest keys that flash-linear-attention's `fused_chunk_based` takes."""


@dataclass(frozen=True)
class Contestant:
    """An implementation that takes part in a case.

    Attributes:
        call: from what `prepare` made of the case's problem to the output.
        note: which backend and why, or how its work differs from the case's.
        ours: whether its failure is a failure of the case.
        same_formula: whether the case's formula tells its errors.
        baseline: whether times are given as ratios to it; to the fastest where several are.
    """

    name: str
    call: Operation
    note: str = ""
    ours: bool = False
    same_formula: bool = True
    baseline: bool = False
    prepare: Callable[[Problem], Problem] = lambda problem: problem


def fla_runs(device: str) -> bool:
    """Whether flash-linear-attention is installed, and Triton can run its kernels."""
    return importlib.util.find_spec("fla") is not None and (
        device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    )


def contestants(case: Case, problem: Problem) -> list[Contestant]:
    """Those that are installed; one that cannot take such tensors says so when it is called."""
    found = _ours(case, problem)
    if problem.labels is not None:
        return [*found, Contestant("PyTorch, all logits", whole_logits_loss, baseline=True)]
    softmax = case.name.startswith("softmax") and problem.documents is None
    note = "mixes across documents" if problem.documents else ""
    found += [replace(peer, same_formula=softmax, note=note) for peer in pytorch_attention(problem.inputs[-1].is_cuda)]
    if softmax:
        found += _flash_packages(problem)
    if case.name == BESIDE_FLA:
        found += _flash_linear_attention(problem)
    return found


def _ours(case: Case, problem: Problem) -> list[Contestant]:
    values = problem.inputs[-1]
    if not case.kernels:
        package = flash.package(values) if case.name.startswith("softmax") else None
        return [Contestant("ours", case.ours, note=package or "PyTorch operations: no kernels of our own", ours=True)]
    choice = choose(values)
    found = [Contestant("ours", case.ours, note=f"{choice.backend}: {choice.reason}", ours=True)]
    if choice.backend == "triton":
        found.append(Contestant("ours, torch", partial(_in_torch, case.ours), ours=True))
    if choice.backend == "triton" and len(case.kernels) > 1:
        found += [Contestant(f"ours, {name}", partial(_kernel, name), ours=True) for name in case.kernels]
    return found


def pytorch_attention(on_gpu: bool) -> list[Contestant]:
    """PyTorch's own softmax attention, by each kernel that may be the fastest."""
    if not on_gpu:
        return [Contestant("SDPA", _sdpa, baseline=True, prepare=_per_row)]
    found = []
    for backend, name in ((SDPBackend.FLASH_ATTENTION, "flash"), (SDPBackend.CUDNN_ATTENTION, "cuDNN")):
        call = partial(_sdpa, backend=backend)
        found.append(Contestant(f"SDPA, {name}", call, baseline=True, prepare=_per_row))
    return found


def _flash_packages(problem: Problem) -> list[Contestant]:
    best = flash.package(problem.inputs[0])
    return [Contestant(best, partial(_flash, best))] if best else []


def _flash_linear_attention(problem: Problem) -> list[Contestant]:
    head_dim = problem.inputs[0].shape[-1]
    keys = min(NARROW_KEYS, head_dim)
    return [
        Contestant("fla parallel_based", partial(_fla, "based", "parallel_based"), note=f"keys of {head_dim}"),
        Contestant(
            "fla fused_chunk_based",
            partial(_fla, "based", "fused_chunk_based"),
            note=f"keys of {keys}, the widest it takes",
            same_formula=keys == head_dim,
            prepare=_narrow_keys,
        ),
        Contestant(
            "fla chunk_simple_gla",
            partial(_fla, "simple_gla", "chunk_simple_gla"),
            note="linear attention of the first order, not normalised",
            same_formula=False,
        ),
    ]


def _in_torch(ours: Operation, problem: Problem) -> Tensor:
    with _backend("torch"):
        return ours(problem)


def _kernel(name: str, problem: Problem) -> Tensor:
    module = importlib.import_module(f"deconattn.ops.kernels.{name}")
    output = getattr(module, f"{name}_attention")(*problem.inputs, problem.document_ids)
    assert isinstance(output, Tensor)
    return output


def _sdpa(problem: Problem, backend: SDPBackend | None = None) -> Tensor:
    queries, keys, values = problem.inputs
    grouped = queries.shape[1] != keys.shape[1]
    attend = partial(scaled_dot_product_attention, queries, keys, values, is_causal=True, enable_gqa=grouped)
    if backend is None:
        return attend()
    with sdpa_kernel(backend):
        return attend()


def _flash(package: str, problem: Problem) -> Tensor:
    queries, keys, values = (tensor.transpose(1, 2) for tensor in problem.inputs)
    return flash.attention(package, queries, keys, values).transpose(1, 2)


def _fla(module: str, function: str, problem: Problem) -> Tensor:
    """flash-linear-attention takes and gives [R, L, heads, head_dim]."""
    operation = getattr(importlib.import_module(f"fla.ops.{module}"), function)
    output = operation(*(tensor.transpose(1, 2) for tensor in problem.inputs))
    mixed = output[0] if isinstance(output, tuple) else output  # some return a final state as well
    assert isinstance(mixed, Tensor)
    return mixed.transpose(1, 2)


def _per_row(problem: Problem) -> Problem:
    """Attention of its own for every row, where the case has one map for all."""
    queries, keys, values = problem.inputs
    if queries.ndim == values.ndim:
        return problem
    rows = values.shape[0]
    # [rows, L, heads, head_dim] memory, as the other tensors have
    repeated = (tensor.transpose(0, 1).repeat(rows, 1, 1, 1).transpose(1, 2) for tensor in (queries, keys))
    return replace(problem, inputs=(*repeated, values))


def _narrow_keys(problem: Problem) -> Problem:
    queries, keys, values = problem.inputs
    narrow = (tensor[..., :NARROW_KEYS].transpose(1, 2).contiguous().transpose(1, 2) for tensor in (queries, keys))
    return replace(problem, inputs=(*narrow, values))


@contextmanager
def _backend(name: str) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
