"""What tests read of a training, and what a shell needs to start one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from deconattn.launch import ranks
from deconattn.train.metrics import METRICS
from tests.conftest import ROOT

MEASURED = ("memory_gib", "tokens_per_second", "step_seconds", "busy_seconds")
"""What the names of a row's fields begin with that differ from one run of a command to the next."""


@pytest.fixture(scope="session", autouse=True)
def world_of_one(process_group: None) -> None:
    """Every test here may train in its own process."""


def environment() -> dict[str, str]:
    """For a process that is not a rank of ours: without this process's world, with the checkout importable."""
    ours = {*ranks.VARIABLES, "LOCAL_SIZE"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"TORCHDYNAMO_DISABLE": "1"}


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (run / METRICS).read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    """Training loss by step; a step that appears twice fails."""
    steps = [row for row in rows(run) if "loss" in row]
    assert len({row["step"] for row in steps}) == len(steps)
    return {row["step"]: row["loss"] for row in steps}


def validation_losses(run: Path) -> dict[int, float]:
    found = [row for row in rows(run) if "val_loss" in row]
    assert len({row["step"] for row in found}) == len(found)
    return {row["step"]: row["val_loss"] for row in found}
