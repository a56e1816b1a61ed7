"""Hugging Face configurations read as :class:`ModelConfig`, or refused with the reason."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deconattn.checkpoint.kinds import HF_CONFIG, read_config
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.rope_scaling import RopeScaling

STOCK_TYPES = ("llama", "mistral", "smollm3", "qwen2", "qwen3")
MODEL_TYPES = (*STOCK_TYPES, "deconattn")
_GEMMA = "scales its embeddings by sqrt(hidden_size) and gates its feed-forward by GELU, where ours has SiLU"
_OLMO = (
    "normalises what attention and feed-forward give, not what they read, and queries and keys over all heads at once"
)
_REASONS = {
    "gemma": _GEMMA,
    "gemma2": f"{_GEMMA}; it caps scores and logits and has windows",
    "gemma3_text": f"{_GEMMA}; it has windows and two rotary bases",
    "gemma3": f"{_GEMMA}; it has windows and two rotary bases",
    "olmo2": _OLMO,
    "olmo3": f"{_OLMO}; it has windows",
    "qwen2_moe": "has experts",
    "qwen3_moe": "has experts",
    "mixtral": "has experts",
    "phi3": "joins its projections in one tensor and rotates a part of each head",
}
"""What our block cannot represent of near relatives."""


def read_model_config(folder: Path) -> ModelConfig:
    """Read the configuration of a Hugging Face folder: Llama's relatives (`MODEL_TYPES`), an export of ours among them.

    A Mistral's window must be as long as its positions. SmolLM3's layers without rotation are `nope`.

    Raises:
        UserError: another model, or a feature that our model lacks, by name.
    """
    path = folder / HF_CONFIG
    raw = read_config(folder)
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        reason = _REASONS.get(model_type) if isinstance(model_type, str) else None
        raise UserError(
            f"{path}: model_type {model_type!r} cannot be converted{f' (it {reason})' if reason else ''}: "
            f"give one of {', '.join(MODEL_TYPES)}"
        )
    if raw.get("quantization_config"):
        raise UserError(f"{path}: the weights are quantized (quantization_config): give the original model")
    check_one_rotary(path, raw)
    from transformers import AutoConfig

    try:
        # It knows each version's spelling (rope_theta or rope_parameters) and the defaults of what is left out.
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if model_type == "deconattn":
            return config.to_model_config()
        lacking = _lacking(config)
        rope_scaling = RopeScaling.of(config.rope_parameters)
        rope_theta = float(config.rope_parameters["rope_theta"])
        if not 0 < rope_theta < math.inf:
            raise ValueError(f"rope_theta is {rope_theta}")
        layer_variants = _layer_variants(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # whatever a configuration's class comes up with
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise UserError(f"{path} is no configuration of {model_type} ({reason}): correct it") from error
    for feature in lacking:
        raise UserError(f"{path}: our model has no {feature}: give a model without")
    try:
        return ModelConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            layer_variants=layer_variants,
            attention_bias=model_type == "qwen2",
            qk_norm=model_type == "qwen3",
            tie_word_embeddings=config.tie_word_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            initializer_range=config.initializer_range,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_one_rotary(path: Path, raw: Mapping[str, Any]) -> None:
    """Raise UserError where `rope_parameters` have other ones for layers of a kind; ours has one rotary embedding."""
    rope = raw.get("rope_parameters")
    for kind, value in rope.items() if isinstance(rope, dict) else ():
        if isinstance(value, dict):
            raise UserError(
                f"{path}: our model has one rotary embedding for all layers, and rope_parameters one for {kind!r}: "
                "give a model with one"
            )


def _layer_variants(config: Any) -> tuple[str, ...]:
    layers = config.num_hidden_layers
    if config.model_type != "smollm3":
        return ("standard",) * layers
    rotated = config.no_rope_layers[:layers]
    if len(rotated) < layers:
        raise ValueError(f"no_rope_layers says {len(rotated)} of {layers} layers")
    return tuple("standard" if one else "nope" for one in rotated)


def _lacking(config: Any) -> list[str]:
    """List what a configuration asks for and our model lacks, dropout aside: training here has none."""
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    has_window = window is not None and window < config.max_position_embeddings
    found = {
        f"activation {config.hidden_act!r} (hidden_act), only silu": config.hidden_act != "silu",
        "sliding window (layer_types or use_sliding_window)": config.model_type != "mistral"
        and set(getattr(config, "layer_types", None) or ("full_attention",)) != {"full_attention"},
        f"sliding window (sliding_window {window}, below max_position_embeddings {config.max_position_embeddings})": (
            has_window
        ),
        "partial rotary embedding (partial_rotary_factor)": config.rope_parameters.get("partial_rotary_factor", 1) != 1,
        # That of these models is on the output projection too, where ours never has one.
        "bias on the attention's output projection (attention_bias)": getattr(config, "attention_bias", False),
        "bias in the feed-forward (mlp_bias)": getattr(config, "mlp_bias", False),
    }
    return [feature for feature, present in found.items() if present]
