"""Tiny models."""

from collections.abc import Callable

import pytest
import torch

from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize


def config_of(*variants: str, **changes: object) -> ModelConfig:
    settings: dict[str, object] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": len(variants),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 80,
        "layer_variants": variants,
    }
    return ModelConfig(**{**settings, **changes})  # type: ignore[arg-type]


def model_of(*variants: str, noise: float = 0.2, **changes: object) -> CausalLM:
    """In float64; with `noise` away from the initial weights, the same noise for models of one shape."""
    model = CausalLM(config_of(*variants, **changes)).double()
    generator = torch.Generator().manual_seed(3)
    initialize(model, seed=0, fixed_ids=torch.randint(61, (model.config.max_position_embeddings,), generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.double) * noise)
    return model


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    """tiny_config(*variants, **changes)."""
    return config_of


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., CausalLM]:
    """tiny_model(*variants, noise=0.2, **changes)."""
    return model_of
