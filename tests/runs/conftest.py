"""Run folders with made-up metrics, and one that a training has written."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import model_config
from deconattn.config.run_config import RUN_CONFIG, CorpusIdentity
from deconattn.metric_rows import METRICS
from deconattn.train.run_folder import resolved_config
from tests.conftest import SMALL
from tests.train.jobs import run_job

Maker = Callable[..., Path]
TOKENS_A_STEP = 4 * 32
"""Of runs with the flags SMALL."""


def step_row(step: int, loss: Any, **others: Any) -> dict[str, Any]:
    """A step's row, as a training of the flags SMALL has it."""
    return {"step": step, "loss": loss, "grad_norm": 0.5, "tokens": step * TOKENS_A_STEP, **others}


def write_rows(run: Path, rows: Iterable[dict[str, Any]]) -> None:
    (run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def made(tmp_path: Path) -> Maker:
    """made(name, rows, *flags, content=...): the folder of a run with these rows, flags, and corpus."""

    def make(name: str, rows: Iterable[dict[str, Any]], *flags: str, content: str = "0123") -> Path:
        run = tmp_path / name
        run.mkdir(parents=True)
        given = parse_training_flags([*SMALL, *flags])
        model = model_config(given.model, 512, given.data.seq_len)
        identity = CorpusIdentity(str(tmp_path / f"corpus of {name}"), 1.0, content)
        (run / RUN_CONFIG).write_text(json.dumps(resolved_config(given, model, [identity])))
        write_rows(run, rows)
        return run

    return make


@pytest.fixture(scope="session")
def trained(corpus: Path, process_group: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, stopped in the fifth; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    run_job(["stop=5", "--data", str(corpus), *SMALL, "--eval-every", "3", "--save", str(run)])
    return run
