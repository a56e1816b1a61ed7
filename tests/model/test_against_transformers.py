"""A `standard` model is Qwen2 (or, with query/key norms, Qwen3) as transformers has it, weight for weight."""

import pytest
import torch
from torch.testing import assert_close

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
def test_logits(tiny_model, family: str):
    qwen3 = family == "Qwen3"
    model = tiny_model("standard", "standard", qk_norm=qwen3, attention_bias=not qwen3)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=80,
        rms_norm_eps=model.config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.config.rope_theta},
        tie_word_embeddings=False,
    )
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).double().eval()
    theirs.load_state_dict(model.state_dict())
    tokens = torch.randint(61, (2, 70), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # transformers computes angles and norms in fp32 whatever the weights are.
        assert_close(model.logits(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)
