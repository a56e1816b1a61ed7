"""Linear mixers of the zoo against the same layers of transformers, from the same weights."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from deconattn.mixers import mixer_class
from tests.mixers.models import BASE
from tests.mixers.test_contract import build_inputs, build_mixer
from tests.mixers.test_zoo import plain_context


@pytest.mark.parametrize("length", [1, 70, 150])
def test_mamba2_is_that_of_transformers(length: int, monkeypatch: pytest.MonkeyPatch):
    """Whose B and C are given to each head's group, which makes its norm one of each head, too."""
    widths = staticmethod(lambda config: (16, config.hidden_size // 4))  # a whole number for `expand`
    monkeypatch.setattr(mixer_class("mamba2"), "widths", widths)
    ours = build_mixer("mamba2", attention_bias=False).float()
    heads, keys, values = BASE.num_attention_heads, ours.key_width, ours.value_width
    theirs = Mamba2Mixer(
        Mamba2Config(
            num_heads=heads,
            head_dim=values,
            hidden_size=BASE.hidden_size,
            state_size=keys,
            expand=1,
            conv_kernel=4,
            n_groups=heads,
            use_bias=False,
            use_conv_bias=True,
            num_hidden_layers=1,
            chunk_size=64,
            layer_norm_epsilon=BASE.rms_norm_eps,
        ),
        layer_idx=0,
    ).eval()
    given = dict(ours.named_parameters())

    def repeated(name: str) -> torch.Tensor:
        return given[name].repeat(heads, *[1] * (given[name].ndim - 1))

    with torch.no_grad():
        projections = repeated("k_proj.weight"), repeated("q_proj.weight")
        parts = given["g_proj.weight"], given["v_proj.weight"], *projections, given["step_proj.weight"]
        theirs.in_proj.weight.copy_(torch.cat(parts))
        taps = torch.cat([given["v_conv"], repeated("k_conv"), repeated("q_conv")])
        theirs.conv1d.weight.copy_(taps[:, None])
        theirs.conv1d.bias.copy_(torch.cat([given["v_conv_bias"], repeated("k_conv_bias"), repeated("q_conv_bias")]))
        theirs.A_log.copy_(ours.A_log)
        theirs.dt_bias.copy_(ours.step_bias)
        theirs.D.copy_(ours.D)
        theirs.norm.weight.copy_(repeated("o_norm"))
        theirs.out_proj.weight.copy_(ours.o_proj.weight)
    hidden = build_inputs(2, length, torch.float)[0].detach()
    context = plain_context(replace(BASE, attention_bias=False), length)
    with torch.no_grad():
        assert_close(ours(hidden, None, context), theirs(hidden), rtol=1e-5, atol=1e-5)
