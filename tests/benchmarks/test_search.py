"""The benchmark of a search, on a tiny model: that its result has the rows and what they cost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.surgery.conftest import LENGTH, make_run, model, source  # noqa: F401  (fixtures)
from tests.train.conftest import environment


@pytest.mark.slow
def test_the_result_has_the_rows_and_what_they_cost(model: Path, tmp_path: Path) -> None:  # noqa: F811
    script, result = ROOT / "benchmarks" / "search.py", tmp_path / "result.json"
    flags = f"--seq-len {LENGTH} --fit-sequences 4 --fit-steps 1 --held-out 2 --tested 2 --variants mlp --random 2"
    words = [str(model), "--keep", "2", "--out", str(tmp_path / "out"), "--result", str(result), f"--flags={flags}"]
    words += ["--picture", str(tmp_path / "picture")]
    done = subprocess.run(
        [sys.executable, str(script), *words], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert set(found["spent"]) == {"table", "search"}
    assert all(part["core_seconds"] > 0 for part in found["spent"].values())
    assert "layers kept, before healing" in (tmp_path / "picture.svg").read_text()
    assert {row["kind"] for row in found["rows"]} == {"layer", "pair", "hybrid"}
