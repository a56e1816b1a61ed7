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
