"""`config.json` of a run, in its folder and in every checkpoint, read back into dataclasses."""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from deconattn.config.flags import TrainingFlags
from deconattn.config.renamed import renamed_values
from deconattn.errors import UserError
from deconattn.json_files import parse_json, read_bytes, reason
from deconattn.layers.config import ModelConfig

RUN_CONFIG = "config.json"
"""Resolved configuration, in the run folder and in every checkpoint."""


@dataclass(frozen=True)
class CorpusIdentity:
    """Identity of a corpus that a resumed run must find again: content and weight, not the path."""

    path: str
    weight: float
    content: str


@dataclass(frozen=True)
class RunConfig:
    """Resolved configuration of a run.

    Attributes:
        model: its variants by their names in the run's own plugins.
        base_model: what the weights were converted from, if they were.
        kept: what an export has of that model (:mod:`deconattn.checkpoint.origin`).
        taken: tensors that the run began with, of a trained model; the others began as by `--seed`.
        taken_layers: variants of that model's layers.
        plugin_code: digest of the code of each variant that a plugin registers.
        environment: versions and machine.
        phase_data: the corpora of phases that have their own, by the step that each begins at.
    """

    flags: TrainingFlags
    model: ModelConfig
    data: tuple[CorpusIdentity, ...] = ()
    base_model: str | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    taken: tuple[str, ...] = ()
    taken_layers: tuple[str, ...] = ()
    total_steps: int | None = None
    warmup_steps: int | None = None
    plugin_code: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    phase_data: dict[str, tuple[CorpusIdentity, ...]] = field(default_factory=dict)


def read_run_config(folder: Path, remedy: str) -> RunConfig:
    """Read `config.json` of a run folder or of a checkpoint.

    Args:
        remedy: how the error's line ends.

    Raises:
        OSError: it is not there, or not to be read.
        UserError: it is no run's configuration: naming the first value that is not.
    """
    path = folder / RUN_CONFIG
    content = read_bytes(path)
    from pydantic import ValidationError

    try:
        values = _renamed(parse_json(content, finite=True))
        _check_names(values)
        return _adapter().validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is no run's configuration ({where}: {first['msg']}): {remedy}") from None
    except (ValueError, RecursionError, UserError) as error:
        raise UserError(f"{path} is no run's configuration ({reason(error)}): {remedy}") from None


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(RunConfig)


def _renamed(content: Any) -> Any:
    """Return what an older version wrote with today's names of its flags."""
    flags = content.get("flags") if isinstance(content, dict) else None
    if not isinstance(flags, dict):
        return content
    groups = {name: renamed_values(group) if isinstance(group, dict) else group for name, group in flags.items()}
    return {**content, "flags": groups}


def _check_names(content: Any) -> None:
    """Raise ValueError for a name that this version does not know, which pydantic would pass over."""
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    flags = content.get("flags")
    parts: list[tuple[Any, Any]] = [(content, RunConfig), (content.get("model"), ModelConfig), (flags, TrainingFlags)]
    if isinstance(flags, dict):
        parts += [(flags.get(group.name), group.type) for group in dataclasses.fields(TrainingFlags)]
    for part, kind in parts:
        known = {field.name for field in dataclasses.fields(kind)}
        for name in part if isinstance(part, dict) else ():
            if name not in known:
                raise ValueError(f"{name} is not known to this version of deconattn")
