"""Removal of layers from a trained model, as in the paper's skip ablation: no further training."""

import copy
import re
from collections.abc import Collection

from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from deconattn.errors import UserError

STANDARD = "standard"
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")
_A_LAYER_EACH = ("layer_variants", "layer_types")
"""Fields of a configuration with one entry a layer."""


def layer_numbers(text: str) -> set[int]:
    """Parse layer numbers such as `1,3,5` (UserError if it is no such list)."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--skip {text}: give layers as numbers from 1, comma-separated, such as 1,3,5")
    return {int(word) for word in words}


def variant_layers(config: PreTrainedConfig) -> set[int]:
    """Return the numbers, from 1, of the layers whose mixer is not standard attention."""
    variants = getattr(config, "layer_variants", None) or []
    return {number for number, variant in enumerate(variants, start=1) if variant != STANDARD}


def check_skip(config: PreTrainedConfig, skipped: Collection[int], name: str) -> None:
    """Check that a model can do without these layers.

    Raises:
        UserError: no layer named, a layer that it does not have, or none left.
    """
    layers = config.num_hidden_layers
    if not skipped:
        raise UserError(f"{name} has standard layers only, so none to skip: leave --skip-variant-layers out")
    for number in sorted(skipped):
        if not 1 <= number <= layers:
            raise UserError(f"{name} has no layer {number} to skip: its layers are 1 to {layers}")
    if len(set(skipped)) == layers:
        raise UserError(f"skipping all {layers} layers of {name} leaves no model: keep one")


def without_layers(model: PreTrainedModel, skipped: Collection[int]) -> PreTrainedModel:
    """Return a model of the remaining layers with their weights, in order; the residual stream skips the others.

    A fixed stream passes the remaining layers only, and is left out where none of them reads it.

    Args:
        model: any whose layers are `model.layers.N`; it is left as it is, and shares no memory with the result.
        skipped: numbers from 1, as :func:`check_skip` wants them.
    """
    kept = [index for index in range(model.config.num_hidden_layers) if index + 1 not in skipped]
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    for field in _A_LAYER_EACH:
        if (entries := getattr(config, field, None)) is not None:
            setattr(config, field, [entries[index] for index in kept])
    with no_init_weights():
        remaining = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    new_index = {old: new for new, old in enumerate(kept)}
    weights = {}
    for name, tensor in model.state_dict().items():
        match = _LAYER.fullmatch(name)
        if match is None:
            weights[name] = tensor
        elif int(match[1]) in new_index:
            weights[f"model.layers.{new_index[int(match[1])]}.{match[2]}"] = tensor
    expected = remaining.state_dict()
    remaining.load_state_dict({name: weights[name] for name in expected})
    return remaining.to(model.device).eval()
