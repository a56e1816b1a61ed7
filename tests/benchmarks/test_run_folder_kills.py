"""`training/run_folder_kills.py`: that it sees what a killed run may lack."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.training.run_folder_kills import faults, markdown, newest, rows
from deconattn.checkpoint.manifest import MANIFEST
from tests.generation.conftest import write_run
from tests.hf.models import small_config, trained


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    run = write_run(trained(small_config("mlp")), None, tmp_path / "whole", number=4)
    lines = [{"step": step, "loss": 1 / step, "tokens_per_second": 1.0} for step in range(1, 5)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_what_differs_is_named(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("tokens_per_second", "memory_gib") + '{"step": 5, "lo')
    assert newest(run) == 4 and [row["step"] for row in rows(run)] == [1, 2, 3, 4]
    shutil.copytree(run / "checkpoints/step-4", run / "checkpoints/step-2")
    assert faults(run, whole) == [], "one more old checkpoint, and a row that a kill cut short"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[1:4]))
    (run / "checkpoints/.step-8.partial").mkdir()
    assert faults(run, whole) == ["metrics.jsonl", "left: checkpoints/.step-8.partial"]
    (run / "metrics.jsonl").unlink()
    assert faults(run, whole)[-1] == "missing: metrics.jsonl"

    model = trained(small_config("mlp"))
    with torch.no_grad():
        model.model.norm.weight += 1e-6
    shutil.rmtree(run)
    write_run(model, None, run, number=4)
    shutil.copy(whole / "metrics.jsonl", run)
    assert faults(run, whole) == ["weights of step 4"]
    (run / "checkpoints/step-4" / MANIFEST).unlink()
    assert newest(run) == -1


def test_the_report_says_what_is_wrong() -> None:
    row = {"run": 1, "attempt": 1, "seconds": 1.0, "ended_by": "itself", "step": 4, "last_row": 4, "faults": ["x lost"]}
    page = markdown({"kills": 0, "options": {"steps": 4}, "killed": [row], "pairs": [{"faults": []}]})
    assert "0 of 1" in page and "1 of 1" in page and page.endswith("- faults: x lost\n")
