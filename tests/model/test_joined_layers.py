"""Layers of one input as one operation, as on a GPU in training, are the layers that they were."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.layers import linear as layers
from deconattn.layers.config import ModelConfig
from deconattn.mixers.standard import Standard
from deconattn.model.causal_lm import CausalLM


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("variant", ["standard", "staticemb", "fixedseq", "nonapproximate", "approximate", "mlp"])
def test_a_model_is_the_same(
    tiny_model: Callable[..., CausalLM], variant: str, qk_norm: bool, monkeypatch: pytest.MonkeyPatch
):
    ids = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(0))
    plain, joined = (tiny_model(variant, "standard", qk_norm=qk_norm) for _ in range(2))
    plain.model(ids).square().mean().backward()
    calls, linears = [], layers.linears
    monkeypatch.setattr(layers, "_is_step", lambda inputs: True)
    monkeypatch.setattr(layers, "linears", lambda *given: calls.append(given) or linears(*given))
    joined.model(ids).square().mean().backward()
    assert calls
    for expected, parameter in zip(plain.parameters(), joined.parameters(), strict=True):
        assert_close(parameter.grad, expected.grad)


def test_a_subclass_with_projections_of_its_own_is_asked_for_them(tiny_config: Callable[..., ModelConfig]):
    class Negated(Standard):
        def values(self, hidden: Tensor) -> Tensor:
            return -super().values(hidden)

    mixer, hidden = Negated(tiny_config("standard")), torch.ones(1, 3, 32)
    assert_close(mixer.queries_keys_values(hidden)[2], mixer.values(hidden))
