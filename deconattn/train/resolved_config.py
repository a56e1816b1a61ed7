"""What a run's `config.json` says."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from deconattn.config import TrainingFlags
from deconattn.model.config import ModelConfig
from deconattn.train.command_line import to_json
from deconattn.train.inputs import CorpusIdentity
from deconattn.train.runtime import environment


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
