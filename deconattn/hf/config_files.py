"""`config.json` and `generation_config.json` of an export: a stock architecture's where it is exactly the model."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deconattn.errors import UserError
from deconattn.hf.source import AUTO_MAP, FILE_NAME, modeling_source
from deconattn.layers.config import ModelConfig
from deconattn.mixers import unknown_names
from deconattn.mixers.plugins import plugin_code, plugin_files
from deconattn.model.streams import Streams

_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
)
_CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}


def stock_model_type(config: ModelConfig) -> str | None:
    """Return the name of the stock architecture that is exactly this model, else None.

    That is `qwen2` (bias), `qwen3` (query/key norm), `llama` (neither) or `smollm3` (llama, some layers not rotated).
    """
    variants, plain = set(config.layer_variants), not config.attention_bias and not config.qk_norm
    if variants == {"standard", "nope"} and plain and config.query_size == config.hidden_size:
        return "smollm3"
    if variants != {"standard"}:
        return None
    if config.attention_bias and not config.qk_norm and config.query_size == config.hidden_size:
        return "qwen2"
    if config.qk_norm and not config.attention_bias:
        return "qwen3"
    if plain and config.hidden_size % config.num_attention_heads == 0:  # transformers' class insists on that
        return "llama"
    return None


def config_json(
    config: ModelConfig, dtype: torch.dtype, eos_token_id: int | None, kept: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of config.json; `kept` as :func:`deconattn.hf.export.export` takes it."""
    dtype_name = str(dtype).removeprefix("torch.")
    common: dict[str, Any] = {
        "bos_token_id": kept.get("bos_token_id"),
        "eos_token_id": kept.get("eos_token_id", eos_token_id),
        "pad_token_id": kept.get("pad_token_id", eos_token_id),
        "dtype": dtype_name,
        "transformers_version": version("transformers"),
    }
    config = dataclasses.replace(config, max_position_embeddings=longest(config, kept))
    stock = stock_model_type(config)
    if stock is None:
        return {
            "architectures": ["DeconAttnForCausalLM"],
            "model_type": "deconattn",
            **code_fields(config.layer_variants),
            **{name: value for name, value in dataclasses.asdict(config).items() if name != "rope_scaling"},
            "rope_parameters": config.rope_parameters,
            **common,
        }
    values = {name: getattr(config, name) for name in _SHARED}
    # Transformers 4 reads `rope_theta`, `rope_scaling` and `torch_dtype`.
    rope = config.rope_parameters
    if config.rope_scaling is not None:
        values["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {
        "architectures": [_CLASSES[stock]],
        "model_type": stock,
        **values,
        **_own_fields(stock, config),
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "use_cache": True,
        **common,
        "torch_dtype": dtype_name,
    }


def _own_fields(stock: str, config: ModelConfig) -> dict[str, Any]:
    """Return the fields of config.json that not every stock architecture has."""
    unbiased = {"attention_bias": False, "mlp_bias": False}
    no_window: dict[str, Any] = {"sliding_window": None, "use_sliding_window": False}
    of_qwen = no_window | {"max_window_layers": config.num_hidden_layers}
    rotated = [int(variant == "standard") for variant in config.layer_variants]
    fields: dict[str, dict[str, Any]] = {
        "qwen2": of_qwen,
        "qwen3": of_qwen | {"head_dim": config.head_dim, "attention_bias": False},
        "llama": unbiased | {"head_dim": config.head_dim, "pretraining_tp": 1},
        "smollm3": unbiased | no_window | {"no_rope_layers": rotated},
    }
    return fields[stock]


def code_fields(variants: Sequence[str]) -> dict[str, Any]:
    """Return config.json's fields about the code beside it, for a model whose layers have these variants."""
    return {
        "auto_map": {auto: f"{Path(FILE_NAME).stem}.{name}" for auto, name in AUTO_MAP.items()},
        "deconattn_version": version("deconattn"),
        "plugin_code": plugin_code(variants),
    }


def longest(config: ModelConfig, kept: Mapping[str, Any]) -> int:
    """Return the positions that an export says it has: a converted model's own, unless training had more."""
    if Streams.of(config.layer_variants).fixed:  # which are as long as the sequences in training
        return config.max_position_embeddings
    return max(config.max_position_embeddings, kept.get("max_position_embeddings", 0))


def generation_config_json(config: ModelConfig, eos_token_id: int | None, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of generation_config.json: greedy decoding to the next separator, but for what is kept."""
    content = {"do_sample": False} | kept.get("generation_config", {})
    if Streams.of(config.layer_variants).fixed:  # a length for the other model, which may be beyond the stream
        content.pop("max_new_tokens", None)
    ends = content.get("eos_token_id", kept.get("eos_token_id", []))
    ends = list(ends) if isinstance(ends, list) else [ends]
    if eos_token_id is not None and eos_token_id not in ends:
        ends.append(eos_token_id)
    if ends:
        content["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        content.setdefault("pad_token_id", kept.get("pad_token_id", ends[-1]))
    return content


def with_code(save_pretrained: Callable[..., None]) -> Callable[..., None]:
    """Wrap a configuration's `save_pretrained`, which a model's calls, to write the modelling file beside it.

    A Trainer's checkpoint, or a model that was changed and saved again, then loads where the package is not installed.

    Raises:
        UserError: a layer's variant is not registered, so that its code is not known.
    """

    @wraps(save_pretrained)
    def save(self: Any, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        unknown = unknown_names(self.layer_variants)
        if unknown:
            raise UserError(f"variant {unknown[0]!r} is not registered: load the plugin file that registers it first")
        files = sorted(set(plugin_files(self.layer_variants).values()))
        source = modeling_source(self.layer_variants, files)
        for name, value in code_fields(self.layer_variants).items():
            setattr(self, name, value)
        save_pretrained(self, save_directory, *arguments, **options)
        (Path(save_directory) / FILE_NAME).write_text(source, encoding="utf-8")

    return save
