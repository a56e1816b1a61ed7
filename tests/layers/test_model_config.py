"""What a configuration refuses, and how it says so."""

import pytest

from deconattn.errors import UserError
from deconattn.layers.rope_scaling import RopeScaling


def test_a_sound_configuration(tiny_config):
    config = tiny_config("standard", "mlp")
    assert config.query_size == 32
    assert config.key_value_size == 16
    assert config.attention_bias
    assert not config.qk_norm
    assert not config.tie_word_embeddings


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "name",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ],
)
def test_dimensions_are_positive(tiny_config, name: str, value: int):
    with pytest.raises(UserError, match=f"^{name} is {value}: it must be at least 1$"):
        tiny_config("standard", **{name: value})


def test_key_value_heads_divide_the_heads(tiny_config):
    with pytest.raises(UserError, match="num_key_value_heads 3 does not divide num_attention_heads 4"):
        tiny_config("standard", num_key_value_heads=3)
    with pytest.raises(UserError, match="num_key_value_heads 8 does not divide num_attention_heads 4"):
        tiny_config("standard", num_key_value_heads=8)


def test_head_dim_is_even(tiny_config):
    with pytest.raises(UserError, match="head_dim 7 is odd"):
        tiny_config("standard", head_dim=7)


def test_yarn_has_a_base_above_one(tiny_config):
    with pytest.raises(UserError, match="rope_theta is 1: YaRN needs a base above 1"):
        tiny_config("standard", rope_theta=1.0, rope_scaling=RopeScaling("yarn", 2.0, 64))


def test_one_variant_a_layer(tiny_config):
    with pytest.raises(UserError, match="layer_variants names 2 layers but num_hidden_layers is 3"):
        tiny_config("standard", "mlp", num_hidden_layers=3)


def test_a_refusal_is_one_line(tiny_config):
    with pytest.raises(UserError) as error:
        tiny_config("standard", head_dim=7)
    assert "\n" not in str(error.value)
