"""What a run's `config.json` says."""

import dataclasses
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from deconattn.config.command_line import to_json
from deconattn.config.flags import TrainingFlags
from deconattn.layers.config import ModelConfig
from deconattn.train.inputs import CorpusIdentity


def resolved_config(
    flags: TrainingFlags, model: ModelConfig, data: Sequence[CorpusIdentity], base_model: str | None = None
) -> dict[str, Any]:
    """Plain values: the resolved flags, the model, the data's identities, the schedule, versions and machine.

    Args:
        base_model: what the weights were converted from, if they were.
    """
    converted = {} if base_model is None else {"base_model": base_model}
    return converted | {
        "flags": to_json(flags),
        "model": dataclasses.asdict(model),
        "data": [dataclasses.asdict(identity) for identity in data],
        "total_steps": flags.total_steps,
        "warmup_steps": flags.warmup_steps,
        "environment": environment(),
    }


def environment() -> dict[str, str]:
    """Versions and machine, for the run's configuration."""
    packages = {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"python": sys.version.split()[0], **packages, "device": device, "world_size": str(ranks)}
