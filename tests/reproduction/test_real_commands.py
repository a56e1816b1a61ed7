"""tools/reproduce.py with the commands that it really runs, killed in a training and carried on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deconattn.launch import ranks
from tests.evaluation.documents import write_documents
from tests.reproduction.conftest import data_of

ROOT = Path(__file__).parents[2]
TRAIN = (
    "--train=--hidden-size 32 --intermediate-size 64 --num-hidden-layers 2 --num-attention-heads 2 --seq-len 64 "
    "--global-batch-size 4 --micro-batch-size 2 --save-every 20 --precision fp32"
)


@pytest.mark.slow
def test_killed_and_carried_on(corpus: Path, tmp_path: Path) -> None:
    flags = f"--table 1 --size tiny --tokens 25600 --variants fixedseq --patterns even --data {corpus}".split()
    documents = write_documents(tmp_path / "documents")
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "tools/reproduce.py"), *flags, TRAIN]
    command += ["--datasets", str(documents), "--limit", "2", "--out", str(out)]
    ours = {*ranks.VARIABLES, "LOCAL_SIZE"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    killed = subprocess.Popen(command, env=environment)
    while not list(out.glob("runs/*/checkpoints/step-20")):
        assert killed.poll() is None
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    assert subprocess.run(command, env=environment, timeout=500).returncode == 0
    data = data_of(out)
    assert data["failed"] == [] and data["jobs"] == {"done": 7, "all": 7}
    assert {row["state"] for row in data["tables"]["1"]["rows"]} == {"done"}
    assert set(data["radar"]) == set(data["runs"]) == {"tiny-standard-uniform", "tiny-fixedseq-even"}
    for name in data["runs"]:
        rows = [json.loads(line) for line in (out / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, 101))
