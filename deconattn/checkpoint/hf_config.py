"""Hugging Face configurations read as :class:`ModelConfig`, or refused with the reason."""

import math
from pathlib import Path
from typing import Any

from deconattn.checkpoint.kinds import HF_CONFIG, read_config
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig

MODEL_TYPES = ("qwen2", "qwen3", "deconattn")


def read_model_config(folder: Path) -> ModelConfig:
    """Read the configuration of a Hugging Face folder: Qwen2, Qwen3 or an export of ours.

    Raises:
        UserError: another model, or a feature of Qwen's that our model lacks, by name.
    """
    path = folder / HF_CONFIG
    raw = read_config(folder)
    if raw.get("model_type") not in MODEL_TYPES:
        raise UserError(
            f"{path}: model_type {raw.get('model_type')!r} cannot be converted: give one of {', '.join(MODEL_TYPES)}"
        )
    if raw.get("quantization_config"):
        raise UserError(f"{path}: the weights are quantized (quantization_config): give the original model")
    from transformers import AutoConfig

    try:
        # It knows each version's spelling (rope_theta or rope_parameters) and the defaults of what is left out.
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if raw["model_type"] == "deconattn":
            return config.to_model_config()
        lacking = _lacking(config)
        rope_theta = float(config.rope_parameters["rope_theta"])
        if not 0 < rope_theta < math.inf:
            raise ValueError(f"rope_theta is {rope_theta}")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # whatever a configuration's class comes up with
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise UserError(f"{path} is no configuration of {raw['model_type']} ({reason}): correct it") from error
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
            layer_variants=("standard",) * config.num_hidden_layers,
            attention_bias=raw["model_type"] == "qwen2",
            qk_norm=raw["model_type"] == "qwen3",
            tie_word_embeddings=config.tie_word_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=rope_theta,
            initializer_range=config.initializer_range,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _lacking(config: Any) -> list[str]:
    """List what a Qwen configuration asks for and our model lacks, dropout aside: training here has none."""
    rope = config.rope_parameters
    found = {
        f"activation {config.hidden_act!r} (hidden_act), only silu": config.hidden_act != "silu",
        "sliding window (layer_types or use_sliding_window)": set(config.layer_types) != {"full_attention"},
        f"rope scaling of type {rope.get('rope_type')!r} (rope_parameters or rope_scaling)": rope.get("rope_type")
        not in (None, "default"),
        "partial rotary embedding (partial_rotary_factor)": rope.get("partial_rotary_factor", 1) != 1,
        # Qwen3's attention_bias is on the output projection too, where ours never has one.
        "bias on the attention's output projection (attention_bias)": config.model_type == "qwen3"
        and config.attention_bias,
    }
    return [feature for feature, present in found.items() if present]
