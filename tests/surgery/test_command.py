"""The command: from a model to the table, the found hybrid and a run that begins with it; stopped, shared, failing."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from deconattn.analysis.losses import position_losses
from deconattn.analysis.models import open_models
from deconattn.checkpoint.format import open_checkpoint
from deconattn.commands import convert, export
from deconattn.commands.search import main
from deconattn.errors import UserError
from deconattn.surgery import sensitivity
from deconattn.surgery.assignments import as_flag
from deconattn.surgery.folder import FOUND, SearchFolder
from deconattn.surgery.page import HTML
from deconattn.surgery.results import PARQUET, RESULTS
from deconattn.surgery.sensitivity import share_of
from tests.pages.parser import Page
from tests.surgery.conftest import LENGTH, VARIANTS, OpenSubject

SETTING = (
    f"--seq-len {LENGTH} --fit-sequences 6 --fit-steps 2 --fit-batch 2 --held-out 4 --tested 3 --random 3 --pairs 2"
)
PLUGIN = """
from deconattn.mixers import MLP, Decoding, register

@register("failing")
class Broken(MLP):
    decoding = Decoding()

    def attention_map(self, hidden, static, context):
        return None

    def forward(self, hidden, static, context):
        raise RuntimeError("this mixer fails\\nin two lines")
"""
Search = Callable[..., int]


@pytest.fixture(scope="session")
def search(model: Path, corpus: Path) -> Search:
    def search(out: Path, *words: str, path: Path = model) -> int:
        variants = [] if "--variants" in words else ["--variants", *VARIANTS]
        return main([str(path), "--data", str(corpus), "--out", str(out), *SETTING.split(), *variants, *words])

    return search


@pytest.fixture(scope="module")
def whole(search: Search, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert search(out, "--keep", "2", "--swaps", "3") == 0
    return out


def told(out: Path, kind: str = "") -> list[dict]:
    """The rows, without their times."""
    rows = json.loads((out / RESULTS).read_text())["rows"]
    rows = [{**row, "seconds": None} for row in rows if row["kind"].startswith(kind)]
    return sorted(rows, key=lambda row: json.dumps(row))


def test_a_row_for_every_cell_pair_and_hybrid(whole: Path) -> None:
    rows = told(whole)
    assert {(row["layer"], row["name"]) for row in rows if row["kind"] == "layer"} == {
        (layer, variant) for layer in (1, 2, 3, 4) for variant in VARIANTS
    }
    assert all(row["low"] < row["increase"] < row["high"] and row["sequences"] for row in rows if row["kind"] == "pair")
    hybrids = [row for row in rows if row["kind"] == "hybrid"]
    assert {"found", "table", "random", "exhaustive", "even", "bilateral"} <= {row["name"] for row in hybrids}
    assert [row["kept"] for row in hybrids if row["name"] in ("found", "even", "random")] == [2] * 5
    assert all(row["pattern"] and row["loss"] for row in hybrids)
    parquet = pyarrow.parquet.read_table(whole / PARQUET).to_pylist()
    assert parquet == json.loads((whole / RESULTS).read_text())["rows"]


def test_static_embeddings_in_the_first_layer_cost_nothing(whole: Path) -> None:
    [row] = [row for row in told(whole, "layer") if (row["layer"], row["name"]) == (1, "staticemb")]
    # They are that layer's own input; what fitting does to exact weights is noise.
    assert abs(row["increase"]) < 1e-3 and row["error"] < 1e-6


def test_the_page_shows_the_table_and_needs_nothing_else(whole: Path) -> None:
    page = Page((whole / HTML).read_text(encoding="utf-8"))
    page.assert_self_contained()
    cells = " ".join(page.cells())
    for row in told(whole, "layer"):
        assert f"{row['increase']:+.4f}" in cells
    [found] = [row for row in told(whole, "hybrid") if row["name"] == "found"]
    assert found["pattern"] in cells and f"--pattern '{found['pattern']}' --fitted" in page.text


def test_the_run_that_begins_with_what_was_found_has_its_loss(
    whole: Path, source: Path, model: Path, corpus: Path, open_run: OpenSubject, tmp_path: Path
) -> None:
    [found] = [row for row in told(whole, "hybrid") if row["name"] == "found"]
    flags = f"--data {corpus} --seq-len {LENGTH} --pattern {found['pattern']} --fitted {whole / FOUND}"
    convert.main([str(source), str(tmp_path / "run"), *flags.split()])
    subject = open_run(model, fit_sequences=6, held_out=4, tested=3)
    [stored] = open_models([tmp_path / "run"])
    decoder, head = stored.decoder_and_head()
    losses = position_losses(decoder, head, subject.tested, "run").loss
    assert losses.mean == pytest.approx(found["loss"], abs=1e-5)


def test_the_commands_that_it_prints_begin_that_run(
    model: Path, corpus: Path, search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert search(out, "--variants", "rndemb", "fixedseq", "--keep", "2", "--swaps", "0") == 0
    *begin, training = [line for line in capsys.readouterr().out.splitlines() if " tools/" in line or "launch" in line]
    for line, body in zip(begin, (export, convert), strict=True):
        body.main(shlex.split(line)[2:])
    assert f"--save {out / 'run'} --resume" in training
    found, [row] = open_checkpoint(out / "run"), [row for row in told(out, "hybrid") if row["name"] == "found"]
    assert as_flag(found.model_config.layer_variants) == row["pattern"]
    weights = found.weights()
    for name, tensor in load_file(out / FOUND).items():
        assert torch.equal(weights[name], tensor), name


def test_a_fitted_file_of_another_pattern_is_refused(whole: Path, source: Path, corpus: Path, tmp_path: Path) -> None:
    flags = f"--data {corpus} --seq-len {LENGTH} --fitted {whole / FOUND}".split()
    with pytest.raises(UserError, match="which this --pattern lacks|give the model and the pattern"):
        convert.main([str(source), str(tmp_path / "run"), *flags, "--pattern", "4*standard"])
    (tmp_path / "damaged").write_text("no tensors")
    with pytest.raises(UserError, match="damaged cannot be read"):
        convert.main([str(source), str(tmp_path / "run"), *flags, "--fitted", str(tmp_path / "damaged")])
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_takes_no_fitted_weights(whole: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--fitted: a checkpoint has weights of its own"):
        convert.main([str(model), str(tmp_path / "out.safetensors"), "--fitted", str(whole / FOUND)])


def test_the_same_command_measures_nothing_again(whole: Path, search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    before = told(whole)

    def again(*_: object) -> None:
        pytest.fail("it was measured before")

    monkeypatch.setattr(sensitivity, "fit", again)
    monkeypatch.setattr("deconattn.surgery.comparison.losses_from", again)
    assert search(whole, "--keep", "2", "--swaps", "3") == 0
    assert told(whole) == before


def test_shards_come_to_the_same(whole: Path, search: Search, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert search(tmp_path, "--keep", "2", "--swaps", "3", "--shard", "2/2") == 0
    assert "still to be measured by other shards" in capsys.readouterr().out
    assert {row["layer"] for row in told(tmp_path)} == {3, 4}
    assert search(tmp_path, "--keep", "2", "--swaps", "3", "--shard", "1/2") == 0
    assert told(tmp_path) == told(whole)


@pytest.mark.parametrize(("depth", "count"), [(30, 4), (3, 5), (4, 1)])
def test_shards_are_all_layers_once(depth: int, count: int) -> None:
    shares = [share_of(depth, number, count) for number in range(1, count + 1)]
    assert [layer for share in shares for layer in share] == list(range(depth))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_killed_measurement_goes_on(whole: Path, model: Path, corpus: Path, search: Search, tmp_path: Path) -> None:
    words = [str(model), "--data", str(corpus), "--out", str(tmp_path), *SETTING.split(), "--variants", *VARIANTS]
    program = "import sys; from deconattn.commands.search import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *words, "--keep", "2", "--swaps", "3"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[3/"):
                os.kill(process.pid, signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 128 + signal.SIGINT and "stopped by SIGINT; to go on: " in rest
    measured = [path for path in (tmp_path / "cells").glob("0*.json")]
    assert 3 <= len(measured) < 4 * len(VARIANTS)
    assert len(told(tmp_path)) == len(measured) and (tmp_path / HTML).is_file()
    assert search(tmp_path, "--keep", "2", "--swaps", "3") == 0
    assert told(tmp_path) == told(whole)


def test_heads_and_variants_are_added(search: Search, tmp_path: Path) -> None:
    assert search(tmp_path, "--variants", "mlp") == 0
    first = told(tmp_path, "layer")
    assert search(tmp_path, "--variants", "fixedseq", "--heads") == 0
    rows = told(tmp_path)
    assert [row for row in rows if row["name"] == "mlp" and row["kind"] == "layer"] == first
    heads = {(row["layer"], row["head"]) for row in rows if row["kind"] == "head"}
    assert heads == {(layer, head) for layer in (1, 2, 3, 4) for head in (1, 2, 3, 4)}
    assert not [row for row in rows if row["kind"] == "hybrid"]
    assert "Head by head: fixedseq" in (tmp_path / HTML).read_text(encoding="utf-8")


def test_a_budget_in_place_of_a_number(search: Search, tmp_path: Path) -> None:
    assert search(tmp_path, "--variants", "mlp", "--budget", "cache=0.5", "--budget-length", "512", "--swaps", "2") == 0
    [found] = [row for row in told(tmp_path, "hybrid") if row["name"] == "found"]
    assert (found["part"], found["kept"]) == (0.5, 2)


def test_a_budget_out_of_reach_leaves_the_table(search: Search, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--budget flops=0.01: these variants reach 0.* at best"):
        search(tmp_path, "--variants", "mlp", "--budget", "flops=0.01")
    assert len(told(tmp_path, "layer")) == 4 and (tmp_path / HTML).is_file()


def test_what_fails_is_shown_and_can_be_tried_again(search: Search, tmp_path: Path) -> None:
    plugin = tmp_path / "failing_plugin.py"
    plugin.write_text(PLUGIN)
    words = ["--variants", "failing", "mlp", "--plugin", str(plugin), "--keep", "3", "--swaps", "1"]
    assert search(tmp_path / "out", *words) == 1
    failed = [row for row in told(tmp_path / "out", "layer") if row["state"] == "failed"]
    assert {row["name"] for row in failed} == {"failing"} and len(failed) == 4
    assert failed[0]["reason"] == "RuntimeError: this mixer fails"
    assert "this mixer fails" in (tmp_path / "out" / HTML).read_text(encoding="utf-8")
    folder = SearchFolder(tmp_path / "out")
    folder.forget(0, "failing")
    folder.forget(0, "mlp")
    assert folder.cell(0, "failing") is None and folder.cell(0, "mlp") is not None


def test_a_hybrid_is_operated_on_too(search: Search, make_run: Callable[[str], Path], tmp_path: Path) -> None:
    path = make_run("standard,fixedseq,mlp,standard")
    assert search(tmp_path, "--variants", "standard", "mlp", "--keep", "2", "--swaps", "1", path=path) == 0
    found = {(row["layer"], row["name"]) for row in told(tmp_path, "layer")}
    assert found == {(1, "mlp"), (2, "standard"), (2, "mlp"), (3, "standard"), (4, "mlp")}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--keep 4", "--keep 4: the model has 4 layers, give 0 to 3"),
        ("--keep 1 --budget cache=0.5", "--keep and --budget are both given"),
        ("--variants mpl", "unknown variant 'mpl'.*did you mean 'mlp'"),
        ("--fit-sequences 1", "--fit-sequences 1: give 2 or more"),
        ("--shard 3/2", "--shard 3/2"),
        ("--held-out 100000", "lower --fit-sequences, --held-out, --tested"),
        ("--budget flops=3", "--budget flops=3"),
    ],
)
def test_flags_that_cannot_be(words: str, says: str, search: Search, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        search(tmp_path / "out", *words.split())
    assert not (tmp_path / "out" / "cells").exists()


def test_a_folder_is_of_one_model_and_one_text(whole: Path, search: Search, make_run: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="was begun with --fit-steps 2 and the flags now say 3"):
        search(whole, "--fit-steps", "3")
    with pytest.raises(UserError, match="was begun with another model or text"):
        search(whole, path=make_run("3*standard,mlp"))


def test_a_model_without_a_loss_is_refused(model: Path, open_run: OpenSubject, tmp_path: Path) -> None:
    subject = open_run(model)
    with torch.no_grad():
        subject.decoder.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="no finite number"):
        sensitivity.measure_own(replace(subject, label="broken"), SearchFolder(tmp_path))
