"""Clipping and skipping on the device: what AdamW does is what a host that waits would have it do."""

import math

import pytest
import torch
from torch import Tensor, nn

from deconattn.train.update import Readback, Update

LIMIT = 0.5


def made(stage: int, norm: Tensor) -> tuple[nn.Parameter, torch.optim.Optimizer, Update]:
    parameter = nn.Parameter(torch.ones(6))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    return parameter, optimizer, Update(optimizer, None, stage, LIMIT, lambda: norm)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [0.01, 3.0])
def test_the_gradient_is_clipped(stage: int, size: float) -> None:
    gradient = torch.full((6,), size)
    norm = gradient.norm()
    parameter, optimizer, update = made(stage, norm)
    update.begin(lambda: torch.tensor([7.0, 8.0], dtype=torch.float64))
    parameter.grad = gradient.clone()
    optimizer.step()
    assert update.outcome() == [7.0, 8.0, float(norm)]
    torch.testing.assert_close(parameter.grad, gradient * min(1.0, LIMIT / float(norm)), rtol=1e-5, atol=0)
    if float(norm) <= LIMIT:
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_changes_nothing(bad: float) -> None:
    parameter, optimizer, update = made(2, torch.tensor(bad))
    for norm, expected in ((bad, 1.0), (2.0, 0.9)):
        update._current_norm = lambda norm=norm: torch.tensor(norm)
        update.begin(lambda: torch.zeros(1))
        parameter.grad = torch.full((6,), norm)
        optimizer.step()
        assert math.isfinite(update.outcome()[-1]) is math.isfinite(norm)
        torch.testing.assert_close(parameter.detach(), torch.full((6,), expected), rtol=1e-2, atol=0)
    assert optimizer.state[parameter]["step"] == 1


def test_sums_are_asked_for_once_a_step() -> None:
    """ZeRO steps its groups one by one; DeepSpeed may leave a step out."""
    parameter, optimizer, update = made(2, torch.tensor(1.0))
    asked: list[int] = []

    def sums() -> Tensor:
        asked.append(1)
        return torch.ones(1)

    update.begin(sums)
    for _ in range(2):
        parameter.grad = torch.ones(6)
        optimizer.step()
    assert update.outcome() == [1.0, 1.0] and len(asked) == 1
    update.begin(sums)
    assert update.outcome() == [1.0, math.inf] and len(asked) == 2


def test_what_is_read_back_is_what_was_sent() -> None:
    assert Readback(torch.tensor([1.5, math.inf])).read() == [1.5, math.inf]
