"""SwiGLU's kernels against the formula in float64: on a GPU, or in Triton's interpreter."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from deconattn.ops.kernels import swiglu as kernel
from deconattn.ops.linears import side_by_side
from deconattn.ops.swiglu import swiglu

pytestmark = pytest.mark.usefixtures("interpreter")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(dtype: torch.dtype, shape: tuple[int, ...] = (2, 3), width: int = 40) -> tuple[Tensor, ...]:
    """Gate and up as parts of one product, and a gradient that does not lie densely."""
    generator = torch.Generator().manual_seed(0)
    joined = 3 * torch.randn(*shape, 2 * width, generator=generator)
    upstream = torch.randn(*shape, 2 * width, generator=generator)
    gate, up = joined.to(DEVICE, dtype).split(width, dim=-1)
    return gate.detach().requires_grad_(), up.detach().requires_grad_(), upstream.to(DEVICE, dtype)[..., :width]


@pytest.mark.parametrize("width", [1, 40, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_against_float64(dtype: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "BLOCK", 64)
    gate, up, upstream = inputs(dtype, width=width)
    exact = [tensor.detach().double().requires_grad_() for tensor in (gate, up)]
    expected = silu(exact[0]) * exact[1]
    output = swiglu(gate, up)
    got = [output, *torch.autograd.grad(output, (gate, up), upstream)]
    wanted = [expected, *torch.autograd.grad(expected, exact, upstream.double())]
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        error = (ours.double() - theirs).abs()
        assert (error <= max(torch.finfo(dtype).eps, 1e-6) * theirs.abs() + 1e-6).all()


def test_gradients_come_side_by_side():
    gate, up, upstream = inputs(torch.float32)
    gradients = torch.autograd.grad(swiglu(gate, up), (gate, up), upstream)
    assert side_by_side(gradients, dim=2) is not None


def test_extremes_stay_finite():
    gate, up, upstream = inputs(torch.float32)
    with torch.no_grad():
        gate[..., 0], gate[..., 1] = 200, -200
    output = swiglu(gate, up)
    assert all(one.isfinite().all() for one in (output, *torch.autograd.grad(output, (gate, up), upstream)))


@pytest.mark.parametrize("broken_pass", ["forward", "backward"])
def test_without_kernels(broken_pass: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """PyTorch's numbers, gradients side by side as before, and one warning."""

    def broken(*arguments: Tensor) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.delenv("DECONATTN_BACKEND")
    monkeypatch.setattr("deconattn.ops.swiglu.fused", lambda gate: True)
    monkeypatch.setattr(kernel._ATTEMPTS, "_closed", set())
    monkeypatch.setattr(kernel, broken_pass, broken)
    gate, up, upstream = inputs(torch.float32)
    expected = silu(gate) * up
    wanted = [expected, *torch.autograd.grad(expected, (gate, up), upstream)]
    for _ in range(2):
        output = swiglu(gate, up)
        gradients = torch.autograd.grad(output, (gate, up), upstream)
        torch.testing.assert_close([output, *gradients], wanted)
        assert side_by_side(gradients, dim=2) is not None
    said = capsys.readouterr().err
    assert (
        said.startswith("warning: the Triton kernels of SwiGLU (torch.float32) cannot run: ") and said.count("\n") == 1
    )
