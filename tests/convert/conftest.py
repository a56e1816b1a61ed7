"""Random Hugging Face models, and the tool."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from deconattn.commands import convert
from tests.conftest import TOOLS

TOOL = TOOLS / "convert.py"
SEQUENCE = 24
MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def tool() -> ModuleType:
    return convert


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Write a random model: width 32, 4 query heads on 2 key/value heads, a vocabulary of 512."""

    def make(kind: str = "qwen2", name: str = "", shard: str = "5GB", dtype: str = "float32", **changes: Any) -> Path:
        dimensions: dict[str, Any] = {
            "vocab_size": 512,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "initializer_range": 0.05,
            "rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0},
        }
        if kind == "qwen3":
            dimensions["head_dim"] = 12
        if kind == "smollm3":  # whose own are beyond this vocabulary
            dimensions |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = AutoConfig.for_model(kind, **dimensions | changes)
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():  # no bias zero and no norm one, or a mix-up would pass
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        out = tmp_path / (name or kind)
        model.to(getattr(torch, dtype)).save_pretrained(out, max_shard_size=shard)
        return out

    return make


def edit(folder: Path, **changes: Any) -> Path:
    """Change keys of config.json; None takes one away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder
