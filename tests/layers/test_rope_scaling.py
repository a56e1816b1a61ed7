"""Rotary scaling: transformers' own numbers, and the flag that asks for it."""

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from deconattn.errors import UserError
from deconattn.layers.rope_scaling import RopeScaling, ntk_theta, parse, with_original
from deconattn.layers.rotary import Rotary, scaled

FLAGS = [
    "linear:3",
    "yarn:8,original=256",
    "yarn:2.5,original=64,beta_fast=16,beta_slow=2",
    "yarn:40,original=4096,attention=1.0",
    "llama3:8,original=128",
    "llama3:32,original=8192,low=1.5,high=5",
]
"""The original lengths put the ramps over some pairs, over none, and over all."""


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 10_000.0), (128, 500_000.0)])
def test_frequencies_are_transformers(flag, head_dim, theta):
    scaling = parse(flag, 1024)
    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=1024, rope_parameters=scaling.parameters(theta))
    expected, attention = ROPE_INIT_FUNCTIONS[scaling.rope_type](config)
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2) / head_dim)
    assert_close(scaled(plain, scaling, theta), expected, rtol=1e-6, atol=0)
    assert scaling.attention_factor == pytest.approx(attention, rel=1e-12)
    assert not torch.allclose(expected, plain, rtol=1e-3, atol=0)
    assert RopeScaling.of(config.rope_parameters) == scaling
    assert parse(str(scaling), 1) == scaling


@pytest.mark.parametrize("flag", FLAGS)
def test_cosines_and_sines_are_transformers(flag, tiny_config):
    scaling = parse(flag, 1024)
    ours = Rotary.of(tiny_config("standard", head_dim=32, rope_scaling=scaling), torch.arange(50)[None], torch.float32)
    theta = tiny_config("standard").rope_theta
    config = LlamaConfig(head_dim=32, max_position_embeddings=1024, rope_parameters=scaling.parameters(theta))
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(50)[None])
    assert_close(ours.cos[:, 0], cos, atol=1e-5, rtol=0)
    assert_close(ours.sin[:, 0], sin, atol=1e-5, rtol=0)


def test_static_ntk_is_transformers_dynamic_at_its_length():
    """Dynamic scaling of factor f has, at n times the length, the base of ntk:(f n - f + 1)."""
    parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    config = LlamaConfig(head_dim=64, max_position_embeddings=100, rope_parameters=parameters)
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=400)
    theta = ntk_theta("ntk:7", 10_000.0, 64)
    assert_close(1 / theta ** (torch.arange(0, 64, 2) / 64), expected, rtol=2e-6, atol=0)
    assert parse("ntk:7", 400) is None
    assert ntk_theta("yarn:7", 10_000.0, 64) == 10_000.0


def test_the_original_length():
    assert parse("yarn:8", 4096).original_max_position_embeddings == 512
    assert with_original("yarn:8", 2048) == str(parse("yarn:8,original=2048", 1))
    assert with_original("llama3:8,original=64", 2048) == "llama3:8,original=64"
    assert [with_original(text, 9) for text in ("none", "ntk:2", "linear:2")] == ["none", "ntk:2", "linear:2"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("yarm:8", "unknown type 'yarm': give none, or TYPE:FACTOR"),
        ("yarn", "the factor is '': give a number"),
        ("yarn:0.5", "the factor is 0.5: it must be a number >= 1"),
        ("yarn:nan", "the factor is nan"),
        ("linear:2,original=64", "linear has no setting 'original': it has none"),
        ("llama3:2,beta_fast=64", "llama3 has no setting 'beta_fast': it has original, low, high"),
        ("yarn:2,beta_fast=x", "beta_fast is 'x': give a number"),
        ("yarn:2,beta_fast=1,beta_slow=2", "beta_slow 2 and beta_fast 1: the first must be more than 0 and less"),
        ("yarn:2,attention=0", "attention_factor is 0: it must be more"),
        ("yarn:200", "sequences of 100 tokens are shorter than the factor"),
        ("llama3:200", "original_max_position_embeddings is missing"),
    ],
)
def test_flags_that_describe_no_scaling(flag, message):
    with pytest.raises(UserError) as caught:
        parse(flag, 100)
    assert str(caught.value).startswith(f"--rope-scaling {flag}")
    assert message in str(caught.value)
