"""What sets single variants apart: formulas written out again, and parameter matching."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.mixers import MixerContext, mixer_class
from deconattn.mixers.mlp import matched_width

SIZES = {  # table 10, with the biases and norms of the base models
    "70m": ModelConfig(50304, 512, 2048, 6, 8, 8, 64, 2048, ("mlp",) * 6),
    "160m": ModelConfig(50304, 768, 3072, 12, 12, 12, 64, 2048, ("mlp",) * 12),
    "500m": ModelConfig(50304, 896, 4864, 24, 14, 14, 64, 2048, ("mlp",) * 24),
    "500m_gqa": ModelConfig(50304, 896, 4864, 24, 14, 2, 64, 2048, ("mlp",) * 24),
    "1.7b": ModelConfig(50304, 2048, 6144, 28, 16, 16, 128, 2048, ("mlp",) * 28, attention_bias=False, qk_norm=True),
}
TINY = ModelConfig(61, 32, 48, 1, 4, 2, 8, 300, ("standard",))


def context_of(config: ModelConfig, length: int, dtype: torch.dtype = torch.double) -> MixerContext:
    return MixerContext(Rotary.of(config, torch.arange(length)[None], dtype), None, {})


@pytest.mark.parametrize("size", SIZES)
def test_mlp_matches_attention_within_a_thousandth_of_a_layer(size: str):
    config = SIZES[size]
    d, query_size, key_value_size = config.hidden_size, config.query_size, config.key_value_size
    attention = 2 * d * query_size + 2 * d * key_value_size
    attention += (query_size + 2 * key_value_size) if config.attention_bias else 0
    attention += 2 * config.head_dim if config.qk_norm else 0
    for variant in ("standard", "approximate", "nonapproximate", "rndemb", "fixedseq", "staticemb"):
        assert mixer_class(variant).num_parameters(config) == attention
    layer = attention + 3 * d * config.intermediate_size
    assert abs(mixer_class("mlp").num_parameters(config) - attention) <= layer / 1000
    assert mixer_class("mlp").num_parameters(config) == 3 * d * matched_width(config)


@pytest.mark.parametrize("size", SIZES)
def test_mlp_width_is_the_roundest_that_matches(size: str):
    config = SIZES[size]
    attention = mixer_class("standard").num_parameters(config)
    tolerance = (attention + 3 * config.hidden_size * config.intermediate_size) / 1000
    width = matched_width(config)
    power = width & -width  # the largest power of two that divides it
    rounder = range(2 * power, 4 * config.hidden_size, 2 * power) if power < 128 else ()
    assert all(abs(3 * config.hidden_size * other - attention) > tolerance for other in rounder)


def test_mlp_is_swiglu():
    mixer = mixer_class("mlp")(TINY).double()
    x = torch.randn(2, 5, 32, dtype=torch.double)
    gate, up = x @ mixer.gate_proj.weight.T, x @ mixer.up_proj.weight.T
    expected = (gate / (1 + torch.exp(-gate)) * up) @ mixer.down_proj.weight.T
    assert_close(mixer(x, None, context_of(TINY, 5)), expected, rtol=1e-12, atol=1e-12)
    assert mixer.attention_map(x, None, context_of(TINY, 5)) is None
    assert all("bias" not in name for name, _ in mixer.named_parameters())


def test_nonapproximate_ignores_rotation_and_gates_queries():
    mixer = mixer_class("nonapproximate")(TINY).double()
    x = torch.randn(1, 6, 32, dtype=torch.double)
    shifted = MixerContext(Rotary.of(TINY, torch.arange(100, 106)[None], torch.double), None, {})
    assert torch.equal(mixer(x, None, context_of(TINY, 6)), mixer(x, None, shifted))
    queries, keys = mixer.q_proj(x)[0].view(6, 4, 8), mixer.k_proj(x)[0].view(6, 2, 8)
    weights = mixer.attention_map(x, None, context_of(TINY, 6))[0]
    for head in range(4):
        gated = queries[:, head] / (1 + torch.exp(-queries[:, head]))
        scores = (gated * keys[:, head // 2]).sum(dim=-1) / 8**0.5
        for i in range(6):
            expected = scores[: i + 1].exp() / scores[: i + 1].exp().sum()
            assert_close(weights[head, i, : i + 1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", ["standard", "approximate"])
def test_maps_depend_on_relative_positions_only(variant: str):
    mixer = mixer_class(variant)(TINY).double()
    x = torch.randn(1, 9, 32, dtype=torch.double)
    shifted = MixerContext(Rotary.of(TINY, torch.arange(50, 59)[None], torch.double), None, {})
    stretched = MixerContext(Rotary.of(TINY, 3 * torch.arange(9)[None], torch.double), None, {})
    here = mixer.attention_map(x, None, context_of(TINY, 9))
    assert_close(mixer.attention_map(x, None, shifted), here, rtol=1e-10, atol=1e-10)
    assert (mixer.attention_map(x, None, stretched) - here).abs().max() > 1e-5


def test_qk_norm_comes_before_rotation_and_silu():
    config = ModelConfig(61, 32, 48, 1, 4, 2, 8, 300, ("standard",), qk_norm=True, attention_bias=False)
    x = torch.randn(1, 4, 32, dtype=torch.double)

    def normed(heads: Tensor, weight: Tensor) -> Tensor:
        return heads / (heads.square().mean(dim=-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    for variant in ("standard", "nonapproximate"):
        mixer = mixer_class(variant)(config).double()
        with torch.no_grad():
            mixer.q_norm.weight.uniform_(0.5, 2)
            mixer.k_norm.weight.uniform_(0.5, 2)
        queries = normed(mixer.q_proj(x).view(1, 4, 4, 8), mixer.q_norm.weight).transpose(1, 2)
        keys = normed(mixer.k_proj(x).view(1, 4, 2, 8), mixer.k_norm.weight).transpose(1, 2).repeat_interleave(2, 1)
        if variant == "standard":
            queries, keys = context_of(config, 4).rotary(queries, keys)
            scores = queries @ keys.transpose(-1, -2) / 8**0.5
        else:
            scores = (torch.nn.functional.silu(queries) * keys).sum(dim=-1)[..., None, :].expand(1, 4, 4, 4) / 8**0.5
        expected = scores.masked_fill(torch.ones(4, 4, dtype=torch.bool).triu(1), -torch.inf).softmax(dim=-1)
        assert_close(mixer.attention_map(x, None, context_of(config, 4)), expected, rtol=1e-12, atol=1e-12)


def test_nonapproximate_scores_are_not_rounded_to_bfloat16(monkeypatch: pytest.MonkeyPatch):
    """A score of some hundreds in bf16 would be off by one, its weight by e."""
    seen: list[Tensor] = []

    def spy(scores: Tensor, values: Tensor, document_ids: Tensor | None) -> Tensor:
        seen.append(scores)
        return values.repeat_interleave(scores.shape[1] // values.shape[1], dim=1)

    monkeypatch.setattr("deconattn.ops.blockwise.prefix_average.prefix_average", spy)
    mixer = mixer_class("nonapproximate")(TINY).bfloat16()
    x = 30 * torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    mixer(x, None, context_of(TINY, 20, torch.bfloat16))
    queries, keys = mixer.queries_keys(x)
    products = torch.nn.functional.silu(queries.double()) * mixer.per_query_head(keys).double()
    assert seen[0].dtype == torch.float32
    assert seen[0].abs().max() > 100
    assert_close(seen[0].double(), products.sum(dim=-1) / 8**0.5, rtol=1e-5, atol=1e-4)
