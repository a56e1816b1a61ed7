"""tools/plan.py as a user runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def plan(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/plan.py"), *flags]
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment)


def test_every_variant_has_its_row() -> None:
    done = plan("--size", "500m")
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"│ (\w+) +│ +([\d,]+) +│ +[\d,]+ │", done.stdout))
    assert rows["standard"] == rows["nonapproximate"] == "481,109,888"
    assert rows["mlp"] == "481,389,440"
    assert len(rows) == 7
    assert "+279,552 (+0.0581%)" in done.stdout


def test_a_wrong_size_is_one_line() -> None:
    done = plan("--size", "80m")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: unknown size '80m': choose one of tiny, 70m, 160m, 500m, 1.7b, and override its fields by flags"
    ]


def test_a_job_is_planned_and_a_topology_recommended() -> None:
    done = plan(*"--size 1.7b --gpus 64 --gpu-memory 80 --tp 4 --pp 2 --precision bf16".split())
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"│ ([^│]+?) +│ +([^│]+?) │", done.stdout))
    assert rows["layers"] == "0-14"
    assert rows["parameters"] == "230,293,248"
    for name in ("weights", "gradients", "optimiser states", "activations", "peak"):
        assert float(rows[f"{name}, GiB"]) > 0
    for name in ("for tp", "for ZeRO", "to stages"):
        assert float(rows[f"sent {name}, GiB a step"]) > 0
    assert "8 x 4 sequences of 2048 tokens on each of 8 replicas, 524,288 tokens" in done.stdout
    assert "pipeline bubble: 11.1% of a step" in done.stdout
    assert "of 80 GiB at the peak (stage 0," in done.stdout
    assert re.search(r"^recommended: --zero 1 --micro-batch-size 4\n  because tp 1, pp 1, ", done.stdout, re.MULTILINE)


def test_a_topology_that_cannot_be_is_one_line() -> None:
    done = plan(*"--size 1.7b --gpus 64 --tp 4 --pp 3".split())
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "64 ranks are not a multiple of --tp 4 x --pp 3 = 12" in done.stderr
