"""Layers of one input as one operation, as on a GPU in training, are the layers that they were."""

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from deconattn.layers import linear as layers
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
