"""RMSNorm's kernels against its formula in float64: on a GPU, or in Triton's interpreter."""

import pytest
import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from deconattn.ops import backend
from deconattn.ops.kernels import rms_norm as kernel
from deconattn.ops.rms_norm import add_rms_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, WIDTH, EPSILON = (2, 5), 48, 1e-3


@pytest.fixture(autouse=True)
def few_programs(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three programs for ten rows, the last of which has two."""
    monkeypatch.setattr(kernel, "PROGRAMS", 3)
    assert backend._register_kernels()


def inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(*ROWS, WIDTH), (*ROWS, WIDTH), (WIDTH,)]
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_() for shape in shapes]


def formula(hidden: Tensor, branch: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    summed = hidden if branch is None else hidden + branch
    return summed, summed / (summed.square().mean(dim=-1, keepdim=True) + EPSILON).sqrt() * weight


def with_gradients(function, leaves: list[Tensor], adds: bool, read: tuple[int, ...]) -> list[Tensor]:
    """Results and gradients, where later layers read the results of those numbers."""
    hidden, branch, weight = leaves
    results = function(hidden, branch if adds else None, weight)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn((2, *ROWS, WIDTH), generator=generator).to(hidden)
    wanted = [hidden, *([branch] if adds else []), *([weight] if 1 in read else [])]
    outputs = [results[number] for number in read]
    return [*results, *torch.autograd.grad(outputs, wanted, [upstream[number] for number in read])]


def assert_near(found: list[Tensor], leaves: list[Tensor], adds: bool, read: tuple[int, ...]) -> None:
    precise = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for ours, theirs in zip(found, with_gradients(formula, precise, adds, read), strict=True):
        assert ours.dtype == leaves[0].dtype
        assert (ours.double() - theirs).norm() <= 2 * torch.finfo(ours.dtype).eps * theirs.norm()


def ours(hidden: Tensor, branch: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    return add_rms_norm(hidden, branch, weight, EPSILON)


@pytest.mark.parametrize("read", [(0, 1), (1,), (0,)])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradients(dtype: torch.dtype, adds: bool, read: tuple[int, ...]):
    leaves = inputs(dtype)
    assert_near(with_gradients(ours, leaves, adds, read), leaves, adds, read)


def test_other_layouts():
    """Rows that are not neighbours, and an upstream gradient that is one number."""
    hidden, branch, weight = inputs(torch.float32)
    turned = hidden.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    leaves = [turned, branch, weight]
    assert_near(with_gradients(ours, leaves, True, (0, 1)), leaves, True, (0, 1))
    found = torch.autograd.grad(sum(result.sum() for result in ours(turned, branch, weight)), leaves)
    wanted = torch.autograd.grad(sum(result.sum() for result in formula(turned, branch, weight)), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("broken_pass", ["forward", "backward"])
@pytest.mark.parametrize("adds", [True, False])
def test_kernels_that_cannot_run(
    adds: bool, broken_pass: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The same numbers by PyTorch's operations, and one warning."""

    def broken(*_: object) -> None:
        raise OutOfResources(131072, 101376, "shared memory")

    monkeypatch.setattr(kernel, broken_pass, broken)
    monkeypatch.setattr(kernel._ATTEMPTS, "_closed", set())
    monkeypatch.delenv("DECONATTN_BACKEND")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    leaves = inputs(torch.float32)
    for _ in range(2):
        assert_near(with_gradients(ours, leaves, adds, (0, 1)), leaves, adds, (0, 1))
    said = capsys.readouterr().err
    assert said.startswith("warning: the Triton kernels of RMSNorm (torch.float32) cannot run: OutOfResources")
    assert said.count("\n") == 1
