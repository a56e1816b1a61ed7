"""The command probe: small grids from the flags to the results, stopped, grown, shared out and failing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deconattn.commands.probe import main
from deconattn.errors import UserError
from deconattn.mixers.plugins import code_digest
from deconattn.probing import runner
from deconattn.probing.cell import Trained
from deconattn.probing.results import PARQUET, RESULTS, read_results

TINY = (
    "--tasks memorise?facts=2,4&context=4 --variants standard mlp --sizes 16x1 --seeds 2 --lr 1e-4 1e-2 --steps 40 "
    "--batch-size 4 --device cpu --workers 1"
).split()
PLUGIN = """
from dataclasses import dataclass
import numpy as np
from deconattn.mixers import MLP, Decoding, register
from deconattn.probes import Task, register_task

@register("broken")
class Broken(MLP):
    decoding = Decoding()

    def attention_map(self, hidden, static, context):
        return None

    def forward(self, hidden, static, context):
        raise RuntimeError("this mixer fails\\nin two lines")

@register_task("echo")
@dataclass(frozen=True)
class Echo(Task):
    axis, levels = "symbols", (2, 3)
    symbols: int = 2
    length = vocab_size = property(lambda self: 1 + self.symbols)

    def draw(self, generator):
        tokens = generator.integers(0, self.vocab_size, self.length)
        return tokens, tokens
"""


def probe(out: Path, *words: str) -> int:
    return main([*TINY, "--out", str(out), *words])


def told(out: Path) -> list[dict]:
    """The rows, without their times."""
    rows = json.loads((out / RESULTS).read_text())["rows"]
    return sorted(({**row, "seconds": 0} for row in rows), key=lambda row: json.dumps(row))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert probe(out) == 0
    return out


def test_a_grid_from_flags_to_results(whole):
    rows = read_results(whole)
    assert len(rows) == 2 * 3 * 2  # variants, models of each, difficulties
    assert {row.difficulty for row in rows} == {2, 4}
    assert all(row.state == "done" and row.asked >= 2500 and row.parameters for row in rows)
    assert all(row.accuracy > row.chance for row in rows if row.chosen)
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(whole / PARQUET).to_pylist() == json.loads((whole / RESULTS).read_text())["rows"]


def test_the_sweep_gives_each_variant_its_best_rate(whole):
    rows = read_results(whole)
    for variant in ("standard", "mlp"):
        first = {row.lr: row for row in rows if row.variant == variant and row.seed == 1 and row.difficulty == 4}
        assert set(first) == {1e-4, 1e-2}
        assert first[1e-2].loss < first[1e-4].loss
        assert (first[1e-2].chosen, first[1e-4].chosen) == (True, False)
        (other,) = {row.lr for row in rows if row.variant == variant and row.seed == 2}
        assert other == 1e-2


def test_what_is_there_is_not_trained_again_and_grows(whole, tmp_path, monkeypatch):
    trained = []
    real = runner.train_cell
    monkeypatch.setattr(runner, "train_cell", lambda cell, *rest: trained.append(cell) or real(cell, *rest))
    assert probe(tmp_path, "--variants", "mlp", "--seeds", "1") == 0
    assert len(trained) == 2
    assert probe(tmp_path) == 0
    assert len(trained) == 6
    assert told(tmp_path) == told(whole)
    assert probe(tmp_path, "--variants", "mlp") == 0
    assert len(trained) == 6
    assert told(tmp_path) == told(whole)  # a smaller request takes nothing away


def test_shards_together_are_the_whole(whole, tmp_path):
    assert probe(tmp_path, "--shard", "2/2") == 0
    assert 0 < len(told(tmp_path)) < len(told(whole))
    assert probe(tmp_path, "--shard", "1/2") == 0
    assert told(tmp_path) == told(whole)


def test_rendering_makes_the_results_again(whole, tmp_path):
    before = told(whole)
    (whole / RESULTS).unlink()
    assert probe(whole, "--render") == 0
    assert told(whole) == before
    with pytest.raises(UserError, match="holds no grid"):
        probe(tmp_path, "--render")
    assert not list(tmp_path.iterdir())


def test_another_way_of_training_is_refused(whole):
    for words, named in ((("--steps", "41"), "--steps 40"), (("--lr", "1e-3"), "--lr"), (("--batch-size", "2"), "4")):
        with pytest.raises(UserError, match=named) as error:
            probe(whole, *words)
        assert "\n" not in str(error.value)


def test_what_makes_no_grid_with_what_is_there_is_refused(whole):
    before = (whole / "request.json").read_bytes()
    with pytest.raises(UserError, match="share memorise"):
        probe(whole, "--tasks", "memorise?facts=4,8&context=4")
    assert (whole / "request.json").read_bytes() == before


def test_a_stop_leaves_what_is_done(whole, tmp_path, monkeypatch, capsys):
    """A signal in the middle of the third model."""
    real, seen = runner.train_cell, []

    def train(cell, *rest):
        seen.append(cell)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(cell, *rest)

    monkeypatch.setattr(runner, "train_cell", train)
    assert probe(tmp_path) == 128 + signal.SIGTERM
    assert "to go on: " in capsys.readouterr().err
    assert len(list((tmp_path / "cells").iterdir())) == 2
    assert probe(tmp_path) == 0
    assert told(tmp_path) == told(whole)


def test_what_fails_is_told_and_tried_again(whole, tmp_path, monkeypatch, capsys):
    real = runner.train_cell

    def train(cell, *rest) -> Trained:
        if cell.group.variant == "mlp" and cell.lr == 1e-2:
            raise RuntimeError("no luck\nat all")
        return real(cell, *rest)

    monkeypatch.setattr(runner, "train_cell", train)
    assert probe(tmp_path) == 1
    captured = capsys.readouterr().err
    assert "RuntimeError: no luck" in captured
    assert "--retry-failed" in captured
    failed = [row for row in read_results(tmp_path) if row.state == "failed"]
    assert {(row.variant, row.seed, row.lr, row.accuracy, row.chosen) for row in failed} == {
        ("mlp", 1, 1e-2, None, False)
    }
    monkeypatch.undo()
    assert probe(tmp_path) == 1  # it stays failed
    assert probe(tmp_path, "--retry-failed") == 0
    assert [row for row in told(tmp_path) if row["chosen"]] == [row for row in told(whole) if row["chosen"]]


def test_plugins_bring_mixers_and_tasks(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    words = ["--plugin", str(file), "--tasks", "echo", "--variants", "mlp", "broken", "--seeds", "1", "--lr", "1e-2"]
    out = tmp_path / "out"
    assert probe(out, *words) == 1
    rows = read_results(out)
    assert {(row.task, row.variant, row.state) for row in rows} == {
        ("echo", "mlp", "done"),
        ("echo", "broken", "failed"),
    }
    assert {row.chance for row in rows} == {None}
    assert "this mixer fails" in rows[-1].reason
    request = out / "request.json"
    request.write_text(request.read_text().replace(code_digest(file), "of other code"))
    with pytest.raises(UserError, match=r"mine\.py, which has changed"):
        probe(out, *words)


def test_one_process_a_shard(whole, tmp_path):
    from deconattn.locks import hold_lock

    with hold_lock(whole / "locks" / "shard-1-of-1"), pytest.raises(UserError, match="being trained by pid"):
        probe(whole)


def command(out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "deconattn", "probe", *TINY, "--out", str(out), *words]


@pytest.mark.slow
def test_workers_give_the_same_and_survive_kills(whole, tmp_path):
    """Killed again and again, the group as a terminal would, until it comes to its end."""
    for attempt in range(60):
        process = subprocess.Popen(command(tmp_path, "--workers", "2"), start_new_session=True, stderr=subprocess.PIPE)
        deadline, before = time.monotonic() + 120, len(list((tmp_path / "cells").glob("*.json")))
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "cells").glob("*.json"))) > before:
                os.killpg(process.pid, (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[attempt % 3])
                break
            time.sleep(0.01)
        if process.wait(60) == 0:
            break
    assert told(tmp_path) == told(whole)


@pytest.mark.slow
def test_a_worker_that_dies_is_a_failed_model(tmp_path):
    file = tmp_path / "dies.py"
    file.write_text(PLUGIN.replace('raise RuntimeError("this mixer fails\\nin two lines")', "import os; os._exit(7)"))
    out, words = tmp_path / "out", ["--plugin", str(file), "--variants", "mlp", "broken", "--workers", "2"]
    done = subprocess.run(command(out, *words), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    rows = read_results(out)
    assert {row.reason for row in rows if row.variant == "broken"} == {"its process ended with exit code 7"}
    assert {row.state for row in rows if row.variant == "mlp"} == {"done"}
