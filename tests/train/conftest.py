"""Fixtures for trainings: in this process, in two ranks, or through a shell."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deconattn.train import ranks, runtime
from deconattn.train.metrics import METRICS

ROOT = Path(__file__).parents[2]
SMALL = (
    "--hidden-size 32 --intermediate-size 64 --num-hidden-layers 2 --num-attention-heads 2 --seq-len 32 "
    "--global-batch-size 4 --micro-batch-size 2 --steps 6 --eval-every 100 --eval-sequences 8 --save-every 100 "
    "--precision fp32"
).split()


@pytest.fixture(scope="session", autouse=True)
def process_group() -> Iterator[None]:
    """A world of one, so that trainings can run in this process."""
    runtime.start_distributed()
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def small(corpus: Path) -> list[str]:
    """Flags of a training that takes a second."""
    return ["--data", str(corpus), *SMALL]


@pytest.fixture(scope="module")
def flags(corpus: Path) -> list[str]:
    """Flags of a training of 100 quick steps with a checkpoint every 20: time enough for something to happen."""
    return ["--data", str(corpus), *SMALL, "--steps", "100", "--save-every", "20", "--keep", "30"]


@pytest.fixture(scope="module")
def undisturbed(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of those flags to which nothing happens."""
    from tests.train.jobs import run_job

    run = tmp_path_factory.mktemp("undisturbed")
    run_job([*flags, "--save", str(run)])
    return run


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
