"""Linear mixers of the zoo against the same layers of transformers, from the same weights."""

from dataclasses import replace
from inspect import signature

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import Mamba2Config, MiniMaxConfig
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer, MambaRMSNormGated
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from deconattn.mixers import mixer_class
from deconattn.ops.gated_linear import gated_linear
from tests.mixers.models import BASE
from tests.mixers.test_contract import build_inputs, build_mixer
from tests.mixers.test_zoo import plain_context


@pytest.mark.parametrize("length", [1, 70, 150])
def test_mamba2_is_that_of_transformers(length: int, monkeypatch: pytest.MonkeyPatch):
    """Whose B and C are given to each head's group, which makes its norm one of each head, too."""
    if "group_size" not in signature(MambaRMSNormGated).parameters:
        pytest.skip("this transformers' norm is over all groups together")
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

    def repeated(name: str) -> Tensor:
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


@pytest.mark.parametrize("length", [1, 70, 300])
def test_a_fixed_decay_is_that_of_lightning_attention(length: int):
    """What retention has before its norm; transformers' MiniMax has the same with other decays."""
    size, heads, width = BASE.hidden_size, BASE.num_attention_heads, BASE.head_dim
    config = MiniMaxConfig(hidden_size=size, num_attention_heads=heads, head_dim=width, num_hidden_layers=4)
    theirs = MiniMaxLightningAttention(config, layer_idx=1)
    theirs.norm, theirs.out_proj = nn.Identity(), nn.Identity()
    with torch.no_grad():
        theirs.output_gate.weight.zero_()  # a gate of one half
        hidden = build_inputs(2, length, torch.float)[0]
        projected = nn.functional.silu(theirs.qkv_proj(hidden)).unflatten(-1, (heads, 3 * width)).transpose(1, 2)
        decay = -theirs.get_slope_rate().expand(2, heads, length, 1)[..., 0]
        expected = 2 * theirs(hidden, (hidden, hidden), None)[0]
        mixed = gated_linear(*projected.chunk(3, dim=-1), decay)[0]
        assert_close(mixed.transpose(1, 2).flatten(-2), expected, rtol=1e-5, atol=1e-5)
