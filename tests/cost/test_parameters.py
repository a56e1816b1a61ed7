"""Parameters per rank against those of the real modules."""

from dataclasses import replace

import pytest
import torch

from deconattn.cost.parameters import rank_parameters
from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import largest_part
from deconattn.mixers import variant_names
from deconattn.model.causal_lm import CausalLM
from deconattn.model.flops import count_parameters

BASE = ModelConfig(
    vocab_size=200,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=32,
    layer_variants=("standard",) * 3,
)


def numel(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CausalLM(config).parameters())


@pytest.mark.parametrize("variant", variant_names())
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "attention_bias": False}, {"tie_word_embeddings": True}])
def test_one_rank_holds_the_model(variant: str, changes: dict[str, bool]):
    config = replace(BASE, layer_variants=(variant, "standard", variant), **changes)
    whole = rank_parameters(config, range(3))
    assert whole.total == numel(config) == count_parameters(config).total
    assert whole.largest == 200 * 64


@pytest.mark.parametrize("variant", variant_names())
def test_stages_sum_to_the_model(variant: str):
    config = replace(BASE, layer_variants=(variant,) * 3)
    parts = [rank_parameters(config, span) for span in (range(1), range(1, 3))]
    assert sum(part.total for part in parts) == numel(config)
    assert parts[0].head == parts[1].embedding == 0


def test_a_tied_head_on_another_stage_is_a_copy():
    config = replace(BASE, tie_word_embeddings=True)
    parts = [rank_parameters(config, span) for span in (range(1), range(1, 3))]
    assert sum(part.total for part in parts) == numel(config) + 200 * 64


def test_tensor_ranks_share_heads_width_and_vocabulary():
    d, width, vocabulary = 64, 160, 200
    layer = rank_parameters(BASE, range(1), 4).layers[0]
    queries = 2 * 8 * (d + 1)
    keys_values = 2 * 8 * (d + 1)  # one of two heads each, which two ranks hold
    assert layer == queries + keys_values + 2 * 8 * d + 3 * d * width // 4 + 2 * d
    assert rank_parameters(BASE, range(1), 4).embedding == vocabulary // 4 * d


def test_the_largest_part_counts_where_parts_differ():
    assert largest_part(10, 10, 4) == 3
    assert largest_part(64, 8, 4) == 16
    assert largest_part(64, 8, 3) == 24
    assert largest_part(64, 2, 4) == 32
