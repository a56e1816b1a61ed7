"""An operation that is computed again: its gradients, and what it keeps."""

import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.ops.recompute import recomputed


def _function(first: Tensor, absent: Tensor | None, second: Tensor, unused: Tensor) -> Tensor:
    assert absent is None
    return (first.exp() * second.sin()).cumsum(dim=-1)


def test_gradients_are_those_of_the_function_and_only_inputs_are_kept():
    generator = torch.Generator().manual_seed(0)
    first, second, unused, constant = (
        torch.randn(3, 5, dtype=torch.double, generator=generator, requires_grad=name < 3) for name in range(4)
    )
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        results = [
            recomputed(_function, first, None, second, unused),
            recomputed(_function, first, None, constant, unused),
        ]
    inputs = {tensor.data_ptr() for tensor in (first, second, unused, constant)}
    assert {tensor.data_ptr() for tensor in kept} == inputs
    for result, other in zip(results, (second, constant), strict=True):
        expected = _function(first, None, other, unused)
        assert torch.equal(result, expected)
        wanted = [first, unused, *([other] if other.requires_grad else [])]
        options = {"grad_outputs": torch.ones_like(result), "allow_unused": True}
        got = torch.autograd.grad(result, wanted, **options)
        for ours, theirs in zip(got, torch.autograd.grad(expected, wanted, **options), strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert_close(ours, theirs)
    with torch.no_grad():
        assert recomputed(_function, first, None, second, unused).grad_fn is None
