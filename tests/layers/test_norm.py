"""Norms of the residual stream: when they are fused."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from deconattn.layers import norm as layer
from deconattn.layers.norm import residual_norm
from deconattn.ops import rms_norm


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


CHANGES = {
    "a hook": lambda norm: norm.register_forward_hook(lambda _, given, out: 2 * out),
    "a hook before": lambda norm: norm.register_forward_pre_hook(lambda _, given: (given[0] + 1,)),
    "a hook backwards": lambda norm: norm.register_full_backward_hook(lambda _, into, out: None),
    "another forward": lambda norm: setattr(norm, "forward", torch.tanh),
    "a parametrisation": lambda norm: parametrize.register_parametrization(norm, "weight", Halved()),
    "another dtype": lambda norm: norm.double(),
}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """As on a GPU, whatever the size; the shapes of what kernels were asked for."""
    monkeypatch.setattr(layer, "fused", lambda _: True)
    monkeypatch.setattr(rms_norm, "WORTHWHILE", 0)
    asked, plain = [], rms_norm.add_rms_norm

    def noted(hidden: Tensor, *others: object) -> tuple[Tensor, Tensor]:
        asked.append(tuple(hidden.shape))
        return plain(hidden, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(rms_norm, "add_rms_norm", noted)
    return asked


@pytest.mark.parametrize("change", CHANGES)
def test_a_module_that_is_more_than_pytorchs_is_called(change: str, kernels: list[tuple[int, ...]]):
    norm, hidden = nn.RMSNorm(16, eps=1e-6), torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    CHANGES[change](norm)
    summed, normed = residual_norm(norm, hidden, hidden)
    assert_close(summed, 2 * hidden)
    assert_close(normed, norm(2 * hidden))
    assert not kernels


def test_small_tensors_cpus_and_compiled_graphs_keep_to_pytorch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rms_norm, "add_rms_norm", None)
    norm, hidden = nn.RMSNorm(16, eps=1e-6), torch.ones(2, 3, 16)
    residual_norm(norm, hidden)
    monkeypatch.setattr(rms_norm, "WORTHWHILE", 0)
    residual_norm(norm, hidden)
    monkeypatch.setattr(layer, "fused", lambda _: True)
    with monkeypatch.context() as compiling:
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        residual_norm(norm, hidden)
    with pytest.raises(TypeError):
        residual_norm(norm, hidden)
