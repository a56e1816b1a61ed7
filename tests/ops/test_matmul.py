"""Products and linear layers, through oneDNN where PyTorch has it, against float64."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.ops import matmul as products
from deconattn.ops.matmul import linear, matmul


@pytest.fixture(params=["onednn", "pytorch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """oneDNN for products of any size, or never."""
    monkeypatch.setattr(products, "WORTHWHILE", 0 if request.param == "onednn" else 2**62)
    monkeypatch.setattr(products, "NARROW", 0)
    return request.param


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(ours: Tensor, exact: Tensor) -> None:
    assert ours.dtype == torch.float32
    assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [(), (1,), (3,)], ids=str)
def test_matmul_of_any_strides(path: str, heads: tuple[int, ...]):
    left, right = drawn(*heads, 20, 12), drawn(*heads, 12, 7, seed=1)
    strided = drawn(*heads, 20, 24)[..., ::2]
    for a in (left, left.mT.contiguous().mT, strided, left[..., 3:17, :]):
        for b in (right, right.mT.contiguous().mT, drawn(*heads, 12, 14)[..., ::2]):
            assert_near(matmul(a, b), a.double() @ b.double())


def test_matmul_fills_what_it_is_given():
    """The other precisions, and devices: here float64."""
    left, right, out = drawn(4, 5).double(), drawn(5, 6).double(), torch.empty(4, 6, dtype=torch.double)
    assert not products.ignores_out(left)
    assert matmul(left, right, out=out) is out
    assert torch.equal(out, left @ right)


@torch.no_grad()
def test_linear_without_gradients(path: str):
    """The way that generation takes, also for inputs that do not lie densely."""
    inputs, weight = drawn(2, 6, 9).transpose(1, 2), drawn(5, 6, seed=1)
    assert_near(linear(inputs, weight), inputs.double() @ weight.double().T)
    assert_near(linear(inputs[:, 3], weight), inputs[:, 3].double() @ weight.double().T)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients(path: str, bias: bool):
    inputs, weight = drawn(2, 9, 6).requires_grad_(), drawn(5, 6, seed=1).requires_grad_()
    offset = drawn(5, seed=2).requires_grad_() if bias else None
    given = [tensor for tensor in (inputs, weight, offset) if tensor is not None]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    ours, expected = linear(inputs, weight, offset), torch.nn.functional.linear(*exact)
    assert_near(ours, expected)
    # As attention hands it over: not in the order of its dimensions.
    upstream = drawn(9, 2, 5, seed=3).transpose(0, 1)
    got = torch.autograd.grad(ours, given, upstream)
    for one, other in zip(got, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
        assert_near(one, other)


def test_linear_of_frozen_weights(path: str):
    inputs, weight = drawn(3, 4).requires_grad_(), drawn(5, 4)
    (gradient,) = torch.autograd.grad(linear(inputs, weight).sum(), inputs)
    assert_near(gradient, weight.double().sum(dim=0).expand(3, 4))
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(linear(inputs.detach(), weight).sum(), weight)
    assert_near(gradient, inputs.detach().double().sum(dim=0).expand(5, 4))


@pytest.mark.parametrize(("width", "taken"), [(products.NARROW, False), (products.NARROW + 1, True)])
def test_narrow_weights_are_left_to_pytorch(width: int, taken: bool, monkeypatch: pytest.MonkeyPatch):
    calls = []
    real = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *operands: calls.append(operands) or real(*operands))
    monkeypatch.setattr(products, "WORTHWHILE", 0)
    linear(drawn(4, 200), drawn(width, 200))
    assert bool(calls) == (taken and products.ignores_out(drawn(1)))
