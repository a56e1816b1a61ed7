"""A model without some of its layers is the model whose other layers let the residual stream pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deconattn.checkpoint.without_layers import check_skip, layer_numbers, variant_layers, without_layers
from deconattn.errors import UserError
from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.layers.config import ModelConfig
from tests.hf.models import MIXED, exported, small_config, tokens, trained


def load(config: ModelConfig, folder: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(exported(trained(config), folder)).eval()


def pass_by(model: PreTrainedModel, skipped: set[int]) -> None:
    """Make these layers give back what they get."""

    def block(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        hidden: Tensor = inputs[0]
        return hidden[: len(output)]  # the last layer that reads a fixed stream drops its rows

    for number in skipped:
        model.model.layers[number - 1].register_forward_hook(block)


@pytest.mark.parametrize(
    ("config", "skipped"),
    [
        (small_config(*MIXED), {1}),
        (small_config(*MIXED), {2, 4}),
        (small_config(*MIXED), {1, 2, 3, 4}),
        (small_config(*MIXED), {5}),
        (small_config("fixedseq", "standard", "fixedseq", "approximate"), {1, 4}),
        (small_config("standard", "nonapproximate", tie_word_embeddings=True), {2}),
        (small_config("rndemb", "standard", qk_norm=True, num_key_value_heads=2), {1}),
        (small_config("standard", "standard", "standard"), {2}),
        (small_config("standard", "standard", qk_norm=True, attention_bias=False), {1}),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_residual_stream_passes(config: ModelConfig, skipped: set[int], tmp_path: Path) -> None:
    model = load(config, tmp_path / "model")
    ids = tokens(2, 60)
    whole = model(ids).logits
    remaining = without_layers(model, skipped)
    got = remaining(ids).logits
    assert torch.equal(model(ids).logits, whole)  # it is as it was
    pass_by(model, skipped)
    torch.testing.assert_close(got, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, whole, atol=1e-2)


def test_a_fixed_stream_goes_with_its_last_layer(tmp_path: Path) -> None:
    model = load(small_config(*MIXED), tmp_path / "model")
    names = {name for name, _ in model.named_buffers()}
    assert names == {"model.fixed_embeddings", "model.fixed_ids"}
    assert {name for name, _ in without_layers(model, {1}).named_buffers()} == {"model.fixed_ids"}
    remaining = without_layers(model, {1, 2, 3, 4})
    assert not list(remaining.named_buffers())
    assert remaining.model.streams == []
    assert remaining.config.to_model_config() == small_config("standard")
    long = tokens(1, 2 * model.config.max_position_embeddings)
    assert remaining(long).logits.shape[1] == long.shape[1]  # nothing sets an end any more


def test_memory_is_not_shared_and_precision_stays(tmp_path: Path) -> None:
    model = load(small_config("mlp", "standard"), tmp_path / "model").to(torch.bfloat16)
    remaining = without_layers(model, {1})
    assert remaining.dtype == torch.bfloat16
    before = model.model.embed_tokens.weight.clone()
    with torch.no_grad():
        remaining.model.embed_tokens.weight.zero_()
    assert torch.equal(model.model.embed_tokens.weight, before)


def test_which_layers_are_variants() -> None:
    config = DeconAttnConfig.of(small_config("standard", "mlp", "standard", "fixedseq"))
    assert variant_layers(config) == {2, 4}
    assert variant_layers(DeconAttnConfig.of(small_config("standard"))) == set()


@pytest.mark.parametrize(
    ("skipped", "message"),
    [
        (set(), "toy has standard layers only"),
        ({0}, "toy has no layer 0 to skip: its layers are 1 to 5"),
        ({2, 6}, "toy has no layer 6"),
        ({1, 2, 3, 4, 5}, "skipping all 5 layers of toy leaves no model"),
    ],
)
def test_what_cannot_be_skipped(skipped: set[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_skip(DeconAttnConfig.of(small_config(*MIXED)), skipped, "toy")


def test_layer_lists() -> None:
    assert layer_numbers("1, 3,5") == {1, 3, 5}
    for wrong in ("", "1,", "1-3", "x", "-1"):
        with pytest.raises(UserError, match="--skip"):
            layer_numbers(wrong)
