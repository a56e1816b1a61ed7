"""Mixers of the zoo with convolutions and delta rules against layers of transformers, from the same weights."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import Lfm2Config, Qwen3NextConfig
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from deconattn.mixers import Mixer, mixer_class
from deconattn.mixers.zoo.conv import TAPS
from tests.mixers.models import BASE
from tests.mixers.test_contract import build_inputs, build_mixer
from tests.mixers.test_zoo import plain_context

LENGTHS = (1, 70, 150)


@torch.no_grad()
def assert_equal(ours: Mixer, theirs: nn.Module, length: int) -> None:
    """Equal outputs for inputs of a length."""
    hidden = build_inputs(2, length, torch.float)[0]
    expected = theirs(hidden)
    assert_close(ours(hidden, None, plain_context(BASE, length)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_conv_is_that_of_lfm2_without_its_inner_gate(length: int):
    ours = build_mixer("conv", attention_bias=False).float()
    width = len(ours.conv_weight)
    theirs = Lfm2ShortConv(Lfm2Config(hidden_size=width, conv_L_cache=TAPS, conv_bias=True), layer_idx=0)
    with torch.no_grad():
        for bias in (theirs.conv.bias, theirs.in_proj.bias, theirs.out_proj.bias):
            bias.zero_()
        theirs.in_proj.bias[:width] = 1
        theirs.in_proj.weight.zero_()
        theirs.in_proj.weight[width:, : BASE.hidden_size] = torch.cat([ours.g_proj.weight, ours.v_proj.weight])
        theirs.conv.weight.copy_(ours.conv_weight[:, None])
        theirs.out_proj.weight.zero_()
        theirs.out_proj.weight[: BASE.hidden_size] = ours.o_proj.weight

    class Padded(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            widened = nn.functional.pad(hidden, (0, width - BASE.hidden_size))
            return theirs(widened)[..., : BASE.hidden_size]

    assert_equal(ours, Padded(), length)


@pytest.mark.parametrize("length", LENGTHS)
def test_gated_deltanet_is_that_of_qwen3_next(length: int):
    ours = build_mixer("gated-deltanet", attention_bias=False).float()
    heads, keys, values = BASE.num_attention_heads, ours.key_width, ours.value_width
    config = Qwen3NextConfig(
        hidden_size=BASE.hidden_size,
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=keys,
        linear_value_head_dim=values,
        linear_conv_kernel_dim=4,
        rms_norm_eps=BASE.rms_norm_eps,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    theirs = Qwen3NextGatedDeltaNet(config, layer_idx=0)

    def by_head(*layers: nn.Linear) -> Tensor:
        return torch.cat([layer.weight.unflatten(0, (heads, -1)) for layer in layers], dim=1).flatten(0, 1)

    with torch.no_grad():
        theirs.in_proj_qkvz.weight.copy_(by_head(ours.q_proj, ours.k_proj, ours.v_proj, ours.g_proj))
        theirs.in_proj_ba.weight.copy_(by_head(ours.b_proj, ours.a_proj))
        theirs.conv1d.weight.copy_(torch.cat([ours.q_conv, ours.k_conv, ours.v_conv])[:, None])
        theirs.A_log.copy_(ours.A_log)
        theirs.dt_bias.copy_(ours.a_bias)
        theirs.norm.weight.copy_(ours.o_norm)
        theirs.out_proj.weight.copy_(ours.o_proj.weight)
    assert_equal(ours, theirs, length)


@pytest.mark.parametrize("length", LENGTHS)
def test_kda_is_that_of_kimi_linear(length: int, monkeypatch: pytest.MonkeyPatch):
    """Whose keys and values are equally wide."""
    kimi = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear", exc_type=ImportError)
    monkeypatch.setattr(mixer_class("kda"), "widths", classmethod(lambda cls, config: (8, 8)))
    ours = build_mixer("kda", attention_bias=False).float()
    config = kimi.KimiLinearConfig(
        hidden_size=BASE.hidden_size,
        linear_num_heads=BASE.num_attention_heads,
        linear_head_dim=8,
        linear_conv_kernel_dim=4,
        rms_norm_eps=BASE.rms_norm_eps,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    theirs = kimi.KimiLinearDeltaAttention(config, layer_idx=0)
    gate = theirs.forget_gate
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "b_proj", "o_proj"):
            getattr(theirs, name).weight.copy_(getattr(ours, name).weight)
        theirs.conv1d.weight.copy_(torch.cat([ours.q_conv, ours.k_conv, ours.v_conv])[:, None])
        gate.f_a_proj.weight.copy_(ours.a1_proj.weight)
        gate.f_b_proj.weight.copy_(ours.a2_proj.weight)
        gate.dt_bias.copy_(ours.a_bias)
        gate.A_log.copy_(ours.A_log.view(1, 1, -1, 1))
        theirs.g_a_proj.weight.copy_(ours.g1_proj.weight)
        theirs.g_b_proj.weight.copy_(ours.g2_proj.weight)
        theirs.o_norm.weight.copy_(ours.o_norm)
    assert_equal(ours, theirs, length)
