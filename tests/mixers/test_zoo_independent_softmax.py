"""The zoo's softmax mixers against the models of transformers that have them: same weights, same outputs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.mixers import Mixer, MixerContext, mixer_class
from tests.mixers.models import BASE
from tests.mixers.test_contract import build_inputs, build_mixer

LENGTH = 70
PLAIN = {"num_key_value_heads": 2, "attention_bias": False}
DIMENSIONS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "attention_bias": False,
    "num_hidden_layers": 4,
    "vocab_size": 61,
    "attn_implementation": "eager",
}


def rotary(config: ModelConfig) -> Rotary:
    return Rotary.of(config, torch.arange(LENGTH)[None], torch.double)


def compare(mixer: Mixer, theirs: nn.Module, weights: dict[str, Tensor], *arguments: object) -> None:
    """Weights that `theirs` has beside those named alike come from `weights`."""
    theirs = theirs.double().eval()
    own = {name: tensor for name, tensor in mixer.state_dict().items() if name not in weights}
    theirs.load_state_dict({name: own.get(name, weights.get(name)) for name in theirs.state_dict()})
    hidden, _, _ = build_inputs(2, LENGTH)
    with torch.no_grad():
        ours = mixer(hidden, None, MixerContext(rotary(mixer.config), None, {}))
        assert_close(ours, theirs(hidden, *arguments)[0], rtol=1e-5, atol=1e-5)


def angles(config: ModelConfig, width: int) -> tuple[Tensor, Tensor]:
    turned = rotary(config).narrowed(width)
    return turned.cos[:, 0], turned.sin[:, 0]


def future() -> Tensor:
    return torch.full((1, 1, LENGTH, LENGTH), -torch.inf, dtype=torch.double).triu(1)


def test_nope_is_smollm3s_layer_without_rotary():
    from transformers.models.smollm3.modeling_smollm3 import SmolLM3Attention, SmolLM3Config

    mixer = build_mixer("nope", **PLAIN)
    theirs = SmolLM3Attention(SmolLM3Config(**DIMENSIONS, no_rope_layers=[0, 1, 1, 1], pad_token_id=0), 0)
    compare(mixer, theirs, {}, angles(mixer.config, 8), future())


def test_gated_attention_is_qwen3_nexts(monkeypatch: pytest.MonkeyPatch):
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention, Qwen3NextConfig

    monkeypatch.setattr(mixer_class("gated-attention"), "widths", classmethod(lambda cls, config: (8, 8)))
    mixer = build_mixer("gated-attention", **PLAIN, qk_norm=True)
    joined = [layer.weight.unflatten(0, (4, 8)) for layer in (mixer.q_proj, mixer.g_proj)]
    weights = {
        "q_proj.weight": torch.cat(joined, dim=1).flatten(0, 1),
        "q_norm.weight": mixer.q_norm.weight - 1,  # theirs are added to one
        "k_norm.weight": mixer.k_norm.weight - 1,
    }
    compare(mixer, Qwen3NextAttention(Qwen3NextConfig(**DIMENSIONS), 0), weights, angles(mixer.config, 8), future())


@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_is_mpts(heads: int):
    from transformers.models.mpt.modeling_mpt import MptAttention, MptConfig, build_mpt_alibi_tensor

    size = 8 * heads
    config = replace(BASE, hidden_size=size, num_attention_heads=heads, num_key_value_heads=heads, attention_bias=False)
    mixer = mixer_class("alibi")(config).double()
    theirs = MptAttention(MptConfig(d_model=size, n_heads=heads)).double()
    hidden = torch.randn(2, LENGTH, size, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    with torch.no_grad():
        for layer in (mixer.q_proj, mixer.k_proj):
            layer.weight.mul_(8)  # for scores that matter
        theirs.Wqkv.weight.copy_(torch.cat([layer.weight for layer in (mixer.q_proj, mixer.k_proj, mixer.v_proj)]))
        theirs.out_proj.weight.copy_(mixer.o_proj.weight)
        expected = theirs(hidden, build_mpt_alibi_tensor(heads, LENGTH), attention_mask=future() < 0)[0]
        ours = mixer(hidden, None, MixerContext(rotary(config), None, {}))
    assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_window_is_mistrals(monkeypatch: pytest.MonkeyPatch):
    from transformers.masking_utils import create_sliding_window_causal_mask
    from transformers.models.mistral.modeling_mistral import MistralAttention, MistralConfig

    mixer = build_mixer("sliding-window", **PLAIN)
    monkeypatch.setattr(type(mixer), "sinks", 0)
    config = MistralConfig(**{**DIMENSIONS, "sliding_window": mixer.window})
    hidden = torch.zeros(2, LENGTH, 32, dtype=torch.double)
    mask = create_sliding_window_causal_mask(config, hidden, None, None, torch.arange(LENGTH)[None])
    assert mixer.window + 1 < LENGTH
    compare(mixer, MistralAttention(config, 0), {}, angles(mixer.config, 8), mask)


def test_differential_is_diffllamas():
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaConfig

    mixer = build_mixer("differential", **PLAIN)
    with torch.no_grad():
        mixer.mixed_norm.weight.fill_(1)
    sizes = {**DIMENSIONS, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
    theirs = DiffLlamaAttention(DiffLlamaConfig(**sizes, rms_norm_eps=BASE.rms_norm_eps), 0)
    theirs.lambda_init = 0.8

    def apart(weight: Tensor) -> Tensor:
        """Theirs are first the heads of one map and then the other's, or of the values' halves."""
        return weight.unflatten(0, (-1, 2, 4)).transpose(0, 1).flatten(0, 2)

    weights = {f"{name}.weight": apart(getattr(mixer, name).weight) for name in ("q_proj", "k_proj", "v_proj")}
    compare(mixer, theirs, weights, angles(mixer.config, 4), future())


def test_mla_is_deepseek_v3s():
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3Config

    mixer = build_mixer("mla", **PLAIN)
    content, turning, latent = mixer.widths
    sizes = {"kv_lora_rank": latent, "qk_nope_head_dim": content, "qk_rope_head_dim": turning, "v_head_dim": content}
    config = DeepseekV3Config(**{**DIMENSIONS, "num_key_value_heads": 4}, **sizes, q_lora_rank=None)
    config.rope_interleave = False
    config.rope_parameters = {"rope_type": "default", "rope_theta": BASE.rope_theta}
    joined = [layer.weight.unflatten(0, (4, content)) for layer in (mixer.k_b_proj, mixer.v_b_proj)]
    weights = {
        "kv_a_proj_with_mqa.weight": torch.cat([mixer.kv_a_proj.weight, mixer.k_proj.weight]),
        "kv_a_layernorm.weight": mixer.kv_a_norm.weight,
        "kv_b_proj.weight": torch.cat(joined, dim=1).flatten(0, 1),
    }
    compare(mixer, DeepseekV3Attention(config, 0), weights, angles(mixer.config, turning), future())
