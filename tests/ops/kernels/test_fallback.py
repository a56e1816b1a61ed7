"""Operators whose kernels cannot run: the blocks' numbers in the kernels' layout, and one warning."""

import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from triton.runtime.errors import OutOfResources

from deconattn.ops import backend, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMULAS = {
    "fixed_map": reference.fixed_map_attention,
    "prefix_attention": reference.prefix_attention,
    "taylor_tiles": reference.taylor_attention,
    "taylor_states": reference.taylor_attention,
}


@pytest.fixture(autouse=True)
def unforced(forced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it, and nothing has failed yet."""
    monkeypatch.delenv("DECONATTN_BACKEND")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name in FORMULAS:
        monkeypatch.setattr(module(name)._DOOR, "_closed", set())


def module(name: str) -> Any:
    return importlib.import_module(f"deconattn.ops.kernels.{name}")


def broken(*arguments: object, **keywords: object) -> None:
    raise OutOfResources(131072, 101376, "shared memory")


def inputs(name: str, length: int = 37) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Queries, keys and values that want gradients, grouped, and documents where the operation has them."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, length, 4, 16, generator=generator).transpose(1, 2)
    keys, values = (torch.randn(2, length, 2, 16, generator=generator).transpose(1, 2) for _ in range(2))
    ids = torch.arange(length).div(15, rounding_mode="floor").expand(2, length).contiguous().to(DEVICE)
    if name == "fixed_map":
        queries, keys = queries[0], keys[0]
    leaves = [tensor.to(DEVICE).detach().requires_grad_() for tensor in (queries, keys, values)]
    return leaves, () if name == "fixed_map" else (ids,)


def gradients(function: Any, leaves: list[Tensor], others: tuple[Tensor, ...]) -> list[Tensor]:
    output = function(*leaves, *others)
    return [output, *torch.autograd.grad(output.square().sum(), leaves)]


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("broken_pass", ["forward", "backward"])
@pytest.mark.parametrize("name", FORMULAS)
def test_by_blocks_and_said_once(
    name: str, broken_pass: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Where the backward kernels fail, the forward ones had run."""
    monkeypatch.setattr(module(name), broken_pass, broken)
    leaves, others = inputs(name)
    exact = gradients(FORMULAS[name], leaves, others)
    operator = getattr(torch.ops.deconattn, name)
    for _ in range(2):
        found = gradients(lambda *given: operator(*given)[0], leaves, others)
        for one, other in zip(found, exact, strict=True):
            assert_close(one, other, rtol=1e-4, atol=1e-4)
            assert one.transpose(-3, -2).is_contiguous()
    said = capsys.readouterr().err
    assert said.startswith("warning: the Triton kernels of ") and said.count("\n") == 1
    assert "(torch.float32, head_dim 16) cannot run: OutOfResources: out of resource: shared memory" in said


def test_a_compiled_graph_and_a_checkpoint_do_not_see_it(monkeypatch: pytest.MonkeyPatch):
    """One operator with one layout, whatever computes it."""
    monkeypatch.setattr(module("prefix_attention"), "forward", broken)
    leaves, others = inputs("prefix_attention")

    def layer(*given: Tensor) -> Tensor:
        return 2 * torch.ops.deconattn.prefix_attention(*given)[0]

    exact = gradients(lambda *given: 2 * reference.prefix_attention(*given), leaves, others)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for function in (compiled, lambda *given: checkpoint(layer, *given, use_reentrant=False)):
        for one, other in zip(gradients(function, leaves, others), exact, strict=True):
            assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_what_is_forced_and_what_is_no_fault_of_kernels_is_raised(monkeypatch: pytest.MonkeyPatch):
    leaves, others = inputs("prefix_attention")
    monkeypatch.setattr(module("prefix_attention"), "forward", broken)
    monkeypatch.setenv("DECONATTN_BACKEND", "triton")
    with pytest.raises(OutOfResources):
        torch.ops.deconattn.prefix_attention(*leaves, *others)
    monkeypatch.delenv("DECONATTN_BACKEND")

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module("prefix_attention"), "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        torch.ops.deconattn.prefix_attention(*leaves, *others)


def test_triton_without_a_gpu_does_not_crash(monkeypatch: pytest.MonkeyPatch):
    """What Triton itself raises: here there is no driver, or tensors are not where it runs."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    script = """
import torch
import deconattn.ops.kernels.fixed_map
queries, values = torch.randn(2, 20, 16), torch.randn(3, 2, 20, 16)
print(torch.ops.deconattn.fixed_map(queries, queries, values)[0].isfinite().all().item())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert done.stderr.startswith(
        "warning: the Triton kernels of the fixed map (torch.float32, head_dim 16) cannot run"
    )
    assert done.stderr.count("\n") == 1


def test_a_triton_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def fails(name: str) -> None:
        raise ImportError("libtriton.so: undefined symbol")

    monkeypatch.setattr(backend, "_choice", lambda *_: backend.Choice("triton", "tensors are on a GPU"))
    monkeypatch.setattr(backend.importlib, "import_module", fails)
    backend._register_kernels.cache_clear()
    try:
        for _ in range(2):
            assert backend.backend_for(torch.zeros(1, 2, 8, 16)) == "torch"
        said = capsys.readouterr().err
        assert said.startswith("warning: the Triton kernels cannot be imported: ImportError: libtriton.so")
        assert said.count("\n") == 1
        monkeypatch.setenv("DECONATTN_BACKEND", "triton")
        backend._register_kernels.cache_clear()
        with pytest.raises(ImportError):
            backend.backend_for(torch.zeros(1, 2, 8, 16))
    finally:
        backend._register_kernels.cache_clear()
