"""Initial weights depend on the seed and the parameter's name, and on nothing else."""

import pytest
import torch
from torch import Tensor

from deconattn.errors import UserError
from deconattn.mixers import variant_names
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import FIXED_EMBEDDINGS_SIGMA, initialize

TEXT = torch.arange(100) % 61


def weights(config, seed: int = 0) -> dict[str, Tensor]:
    model = CausalLM(config)
    initialize(model, seed, TEXT)
    return model.state_dict()


def test_shared_names_share_weights_whatever_the_variant_or_depth(tiny_config):
    models = [weights(tiny_config(*variants)) for variants in [(name, "standard") for name in variant_names()]]
    models += [weights(tiny_config(*["standard"] * 5)), weights(tiny_config("rndemb", "fixedseq", "mlp"))]
    first = models[0]
    shared = 0
    for other in models[1:]:
        for name in first.keys() & other.keys():
            assert torch.equal(first[name], other[name]), name
            shared += 1
    assert shared > 100
    assert torch.equal(models[4]["model.fixed_embeddings"], models[-1]["model.fixed_embeddings"])


def test_weights_do_not_depend_on_the_global_generator(tiny_config):
    torch.manual_seed(1)
    one = weights(tiny_config("standard", "rndemb"))
    torch.manual_seed(2)
    other = weights(tiny_config("standard", "rndemb"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_seeds_and_names_give_different_weights(tiny_config):
    one, other = weights(tiny_config("rndemb", "rndemb"), 0), weights(tiny_config("rndemb", "rndemb"), 1)
    drawn = [name for name in one if "norm" not in name and not name.endswith(".bias")]
    assert "model.fixed_embeddings" in drawn
    for name in drawn:
        assert not torch.equal(one[name], other[name]), name
    layers = [one[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in (0, 1)]
    assert not torch.equal(*layers)
    assert not torch.equal(one["model.embed_tokens.weight"], one["lm_head.weight"])


def test_distributions(tiny_config):
    # Five standard errors, of a deviation estimated from n numbers and of their mean. Query and key norms included.
    config = tiny_config("rndemb", "mlp", hidden_size=64, vocab_size=200, initializer_range=0.05, qk_norm=True)
    for name, tensor in weights(config).items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif name.endswith(".bias"):
            assert not tensor.any(), name
        else:
            sigma = FIXED_EMBEDDINGS_SIGMA if name == "model.fixed_embeddings" else 0.05
            assert abs(tensor.std().item() / sigma - 1) < 5 / (2 * tensor.numel()) ** 0.5, name
            assert abs(tensor.mean().item()) < 5 * sigma / tensor.numel() ** 0.5, name


def test_precision_only_rounds(tiny_config):
    config = tiny_config("rndemb", "standard")
    model = CausalLM(config).bfloat16()
    initialize(model, 0)
    for name, tensor in weights(config).items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16()), name


def test_a_longer_random_stream_begins_with_the_shorter(tiny_config):
    long, short = (
        weights(tiny_config("standard", "rndemb", max_position_embeddings=length))["model.fixed_embeddings"]
        for length in (80, 33)
    )
    assert len(long) == 80 and torch.equal(long[:33], short)


def test_fixed_text_is_cut_to_the_stream(tiny_config):
    assert torch.equal(weights(tiny_config("fixedseq"))["model.fixed_ids"], TEXT[:80])


@pytest.mark.parametrize(("text", "got"), [(None, 0), (TEXT[:79], 79)])
def test_short_fixed_text(tiny_config, text: Tensor | None, got: int):
    with pytest.raises(UserError, match=f"the fixed text has {got} tokens but the sequence length is 80"):
        initialize(CausalLM(tiny_config("standard", "fixedseq")), 0, text)


def test_no_text_is_needed_where_no_layer_reads_it(tiny_config):
    initialize(CausalLM(tiny_config("standard", "rndemb")), 0)
