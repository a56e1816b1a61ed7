"""Several linear layers of one input, as one operation, against one by one in float64."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from deconattn.ops.linears import linears, side_by_side

WIDTHS = (5, 3, 3)


class Calls(TorchDispatchMode):
    """While active, counts calls of operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def count(self, *names: str) -> int:
        return sum(name in names for name in self.names)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers(flat: bool, bias: bool) -> tuple[list[Tensor], list[Tensor | None]]:
    """Weights and biases, each kind in one memory or every tensor in its own."""

    def cut(whole: Tensor) -> list[Tensor]:
        parts = whole.split(WIDTHS)
        return [(part if flat else part.clone()).detach().requires_grad_() for part in parts]

    return cut(drawn(sum(WIDTHS), 6, seed=1)), [*cut(drawn(sum(WIDTHS), seed=2))] if bias else [None] * len(WIDTHS)


@pytest.mark.parametrize("joint_gradients", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("groups", [(3,), (2, 1), (1, 1, 1)], ids=str)
def test_outputs_and_gradients(groups: tuple[int, ...], flat: bool, bias: bool, joint_gradients: bool):
    inputs = drawn(2, 4, 6, seed=0).transpose(0, 1).requires_grad_()
    weights, biases = layers(flat, bias)
    given = [inputs, *weights, *(one for one in biases if one is not None)]
    exact = [linear(inputs, weight, one) for weight, one in zip(weights, biases, strict=True)]
    ours = linears(inputs, weights, biases, groups)
    assert_close(list(ours), exact)
    upstream = drawn(4, 2, sum(WIDTHS), seed=3).split(WIDTHS, dim=-1)
    if not joint_gradients:
        upstream = tuple(part.clone() for part in upstream)
    with Calls() as calls:
        got = torch.autograd.grad(ours, given, upstream)
    assert_close(got, torch.autograd.grad(exact, given, upstream))
    assert calls.count("add", "add_", "cat") == 0
    products = 2 if joint_gradients and flat else 1 + len(WIDTHS) if joint_gradients else 2 * len(WIDTHS)
    assert calls.count("mm", "addmm", "addmm_") == products


@pytest.mark.parametrize(("groups", "products"), [((3,), 1), ((2, 1), 2), ((1, 1, 1), 3)])
def test_products_of_weights_side_by_side(groups: tuple[int, ...], products: int):
    weights, biases = layers(flat=True, bias=True)
    with Calls() as calls:
        outputs = linears(drawn(4, 6, seed=0), weights, biases, groups)
    assert calls.count("mm", "addmm") == products and not calls.count("cat", "clone", "copy_")
    memories = {output.untyped_storage().data_ptr() for output in outputs}
    assert len(memories) == len(groups)


def test_what_is_not_asked_for_is_not_computed():
    """Frozen layers, inputs without gradients, and outputs that nothing is made of."""
    weights, biases = layers(flat=True, bias=True)
    frozen, inputs = weights[1].requires_grad_(False), drawn(4, 6, seed=0)
    first, _, last = linears(inputs, weights, biases, [3])
    upstream = drawn(4, WIDTHS[0], seed=3)
    (first * upstream).sum().backward()
    assert_close(weights[0].grad, upstream.T @ inputs)
    assert_close(biases[0].grad, upstream.sum(dim=0))
    assert frozen.grad is None and weights[2].grad is None and biases[2].grad is None
    first, middle, last = linears(inputs, weights, biases, [3])
    (first.sum() + middle.sum() + 2 * last.sum()).backward()
    assert frozen.grad is None
    assert_close(weights[2].grad, 2 * inputs.sum(dim=0).expand(3, 6))
    assert_close(biases[1].grad, torch.full((3,), 4.0, dtype=torch.float64))


def test_the_view_of_neighbours():
    whole = torch.arange(24).view(4, 6)
    for dim, cut in ((0, (1, 3)), (1, (2, 3, 1))):
        joined = side_by_side(whole.split(cut, dim=dim), dim)
        assert joined is not None
        assert torch.equal(joined, whole) and joined.data_ptr() == whole.data_ptr()
    left, middle, right = whole.split(2, dim=1)
    assert side_by_side([left, right], 1) is None
    assert side_by_side([middle, left], 1) is None
    assert side_by_side([left, middle.clone()], 1) is None
    assert side_by_side([left, middle], 0) is None
    for one, other in pairwise([whole[:2], whole[2:].T.contiguous().T]):
        assert side_by_side([one, other], 0) is None
