"""The rotation's kernel against the formula in float64: on a GPU, or in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from deconattn.layers.rotary import Rotary
from deconattn.ops import plain
from deconattn.ops.kernels import rotation as kernel
from deconattn.ops.linears import side_by_side
from deconattn.ops.rotation import rotate

pytestmark = pytest.mark.usefixtures("interpreter")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def angles(rows: int, length: int, head_dim: int, dtype: torch.dtype) -> Rotary:
    positions = torch.arange(rows * length).view(rows, length)
    exact = positions[..., None].double() / 10000 ** (torch.arange(0, head_dim, 2) / head_dim)
    exact = torch.cat([exact, exact], dim=-1)[:, None].to(DEVICE)
    return Rotary(exact.cos().to(dtype), exact.sin().to(dtype))


def heads_of(dtype: torch.dtype, rows: int, length: int, counts: tuple[int, int], head_dim: int) -> list[Tensor]:
    """Queries and keys as parts of one product."""
    joined = torch.randn(rows, length, sum(counts), head_dim, generator=torch.Generator().manual_seed(0))
    parts = joined.to(DEVICE, dtype).transpose(1, 2).split(counts, dim=1)
    return [part.detach().requires_grad_() for part in parts]


@pytest.mark.parametrize(
    ("rows", "length", "counts", "head_dim", "own_positions"),
    [(2, 37, (4, 2), 16, True), (1, 64, (3, 3), 64, False), (3, 1, (2, 1), 10, False), (2, 130, (2, 2), 40, True)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_float64(
    dtype: torch.dtype, rows: int, length: int, counts: tuple[int, int], head_dim: int, own_positions: bool,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(kernel, "ELEMENTS", 512)
    rotary = angles(rows if own_positions else 1, length, head_dim, dtype)
    leaves = heads_of(dtype, rows, length, counts, head_dim)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    upstream = [torch.randn_like(leaf).transpose(1, 2).contiguous().transpose(1, 2) for leaf in leaves]
    outputs = rotary(*leaves)
    expected = plain.rotate(*exact, rotary.cos.double(), rotary.sin.double())
    got = [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]
    wanted = [*expected, *torch.autograd.grad(expected, exact, [one.double() for one in upstream])]
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        assert ((ours.double() - theirs).abs() <= torch.finfo(dtype).eps * (theirs.abs() + 4)).all()


def test_gradients_come_side_by_side():
    leaves = heads_of(torch.float32, 2, 8, (4, 2), 16)
    rotary = angles(1, 8, 16, torch.float32)
    outputs = rotate(*leaves, rotary.cos, rotary.sin)
    gradients = torch.autograd.grad(outputs, leaves, [torch.randn_like(leaf) for leaf in leaves])
    assert side_by_side([one.transpose(1, 2).flatten(2) for one in gradients], dim=2) is not None


def test_without_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """PyTorch's numbers in the kernels' layout, and one warning."""

    def broken(*arguments: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.delenv("DECONATTN_BACKEND")
    monkeypatch.setattr("deconattn.ops.rotation.fused", lambda queries: True)
    monkeypatch.setattr(kernel._ATTEMPTS, "_closed", set())
    monkeypatch.setattr(kernel, "rotation", broken)
    leaves, rotary = heads_of(torch.float32, 2, 8, (4, 2), 16), angles(1, 8, 16, torch.float32)
    upstream = [torch.randn_like(leaf) for leaf in leaves]
    expected = plain.rotate(*leaves, rotary.cos, rotary.sin)
    outputs = rotary(*leaves)
    torch.testing.assert_close(outputs, expected)
    gradients = torch.autograd.grad(outputs, leaves, upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, upstream))
    assert side_by_side([one.transpose(1, 2).flatten(2) for one in gradients], dim=2) is not None
    assert capsys.readouterr().err.count("\n") == 1
