"""The benchmarks of a search, on a tiny model: its rows and what they cost, and its hybrids after equal healing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.search_healing import chosen
from deconattn.errors import UserError
from tests.conftest import ROOT
from tests.surgery.conftest import LENGTH, make_run, model, source  # noqa: F401  (fixtures)
from tests.train.conftest import environment


def test_of_the_random_draws_the_one_of_median_loss_is_healed() -> None:
    rows = [{"kind": "hybrid", "name": "random", "loss": loss} for loss in (3.5, 3.1, 3.9, 3.3, 3.7)]
    rows += [{"kind": "hybrid", "name": "found", "loss": 3.0}, {"kind": "layer", "name": "found", "loss": 2.0}]
    assert {name: row["loss"] for name, row in chosen(rows, ["found", "random"]).items()} == {"found": 3, "random": 3.5}
    with pytest.raises(UserError, match="--names top: the search has compared none of this name"):
        chosen(rows, ["top"])


def run_script(name: str, *words: object) -> None:
    script = ROOT / "benchmarks" / name
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words)], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_hybrids_are_healed_alike(model: Path, corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    search = [ROOT / "tools" / "search.py", model, "--keep", "2", "--out", tmp_path / "search", "--random", "3"]
    search += ["--seq-len", LENGTH, "--fit-sequences", 4, "--fit-steps", 1, "--held-out", 2, "--tested", 2]
    subprocess.run([sys.executable, *map(str, search), "--variants", "mlp", "fixedseq"], env=environment(), check=True)
    words = ["--search", tmp_path / "search", "--data", corpus, "--out", tmp_path / "out", "--results", tmp_path]
    run_script("search_healing.py", *words, "--steps", 2, "--names", "found", "even", "random", "--jobs", 2)
    found = json.loads((tmp_path / "search_healing.json").read_text())
    assert list(found["healed"]) == ["found", "even", "random"]
    losses = [one["losses"] for one in found["healed"].values()]
    assert all(len(one) == 2 == len(found["own"]) and one != found["own"] for one in losses)
    assert "| found | 2 |" in (tmp_path / "search_healing.md").read_text()


@pytest.mark.slow
def test_the_result_has_the_rows_and_what_they_cost(model: Path, tmp_path: Path) -> None:  # noqa: F811
    result = tmp_path / "result.json"
    flags = f"--seq-len {LENGTH} --fit-sequences 4 --fit-steps 1 --held-out 2 --tested 2 --variants mlp --random 2"
    words = [str(model), "--keep", "2", "--out", str(tmp_path / "out"), "--result", str(result), f"--flags={flags}"]
    words += ["--picture", str(tmp_path / "picture")]
    run_script("search.py", *words)
    found = json.loads(result.read_text())
    assert set(found["spent"]) == {"table", "search"}
    assert all(part["core_seconds"] > 0 for part in found["spent"].values())
    assert "layers kept, before healing" in (tmp_path / "picture.svg").read_text()
    assert {row["kind"] for row in found["rows"]} == {"layer", "pair", "hybrid"}
