"""What the commands leave behind, read: run folders, scores, indicators."""

import json
from pathlib import Path
from typing import Any

import pytest

from deconattn.errors import UserError
from deconattn.evaluation.results import Row, Score, as_numbers
from deconattn.evaluation.tables import benchmark_cells
from deconattn.reproduction import jobs, radar
from deconattn.reproduction.jobs import loss_curves, training_begun, training_progress, training_summary


def test_the_columns_are_those_of_evaluate() -> None:
    assert benchmark_cells([])[0] == ["", *jobs.TITLES]


def test_the_names_are_those_of_analyze() -> None:
    from deconattn.analysis.findings import LOCAL_FACTOR, NORMALISED
    from deconattn.analysis.indicators import NAMES

    ours = (jobs.INDICATORS, radar.NORMALISED, radar.LOCAL_FACTOR)
    assert ours == (NAMES, NORMALISED, LOCAL_FACTOR)


def test_scores(tmp_path: Path) -> None:
    row = Row("m", {"ARC-E": Score(0.5, 0.01), "Wiki ppl": Score(38.1), "LAMBADA ppl": Score(float("inf"), 1.0)})
    numbers = {name: str(value) if value == float("inf") else value for name, value in as_numbers(row).items()}
    model = {"model": {"device": "cpu"}, "context_perplexities": {"128": 7.5}, "scores": numbers}
    content: dict[str, Any] = {"comparable": False, "models": [model], "chance": {"majority": {"Avg": 0.4}}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    found = jobs.read_scores(tmp_path)
    assert found["scores"] == {
        "ARC-E": {"value": 0.5, "stderr": 0.01},
        "Wiki ppl": {"value": 38.1, "stderr": None},
        "LAMBADA ppl": {"value": 1e300, "stderr": 1.0},
    }
    assert found["contexts"] == {"128": 7.5} and found["comparable"] is False
    assert found["chance"] == {"majority": {"Avg": {"value": 0.4, "stderr": None}}}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"comparable": true, "models": []}'])
def test_scores_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results.json cannot be read"):
        jobs.read_scores(tmp_path)


def write_indicators(folder: Path, rows: list[tuple[int, str, str, float]]) -> None:
    columns = dict(zip(("layer", "variant", "indicator", "value"), map(list, zip(*rows, strict=True)), strict=True))
    (folder / "analysis.json").write_text("{}")
    (folder / "indicators.json").write_text(json.dumps(columns))


def test_indicators_are_means_over_heads(tmp_path: Path) -> None:
    heads = [(2, "mlp", name, value) for name in jobs.INDICATORS for value in (1.0, 3.0)]
    write_indicators(tmp_path, heads)
    expected = {"layer": 2, "variant": "mlp"} | dict.fromkeys(jobs.INDICATORS, 2.0)
    assert jobs.read_indicators(tmp_path) == {"layers": [expected]}
    write_indicators(tmp_path, heads[:-2])
    with pytest.raises(UserError, match=r"indicators.json cannot be read"):
        jobs.read_indicators(tmp_path)


def test_a_model_that_mixes_nothing_has_no_indicators(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        jobs.read_indicators(tmp_path)
    (tmp_path / "analysis.json").write_text("{}")
    assert jobs.read_indicators(tmp_path) == {"layers": []}


def test_radii_are_on_the_scale_of_all_runs_layers() -> None:
    def layers(*values: float) -> list[dict[str, Any]]:
        return [dict.fromkeys(jobs.INDICATORS, value) for value in values]

    found = radar.radii({"a": layers(0.0, 0.2), "b": layers(0.4), "c": []})
    assert set(found) == {"a", "b"}
    assert found["a"]["entropy"] == pytest.approx(0.25) and found["b"]["entropy"] == 1.0
    assert found["a"]["sink"] == pytest.approx(0.1) and found["b"]["local focus 3"] == pytest.approx(0.8)


def write_run(run: Path, rows: list[dict[str, Any]], checkpoint: bool = True) -> None:
    (run / "config.json").write_text(json.dumps({"total_steps": 4, "environment": {"torch": "2"}}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if checkpoint:
        (run / "checkpoints/step-4").mkdir(parents=True)
        (run / "checkpoints/step-4/checkpoint.json").write_text("{}")


ROWS: list[dict[str, Any]] = [
    {"step": 1, "loss": 5.0, "tokens": 100, "memory_gib": 1.0},
    {"step": 2, "loss": "nan", "tokens": 200, "memory_gib": 3.0, "tokens_per_second": 50.0},
    {"step": 2, "val_loss": 4.5},
    {"step": 4, "loss": 4.0, "tokens": 400, "memory_gib": 2.0, "tokens_per_second": 50.0},
    {"step": 4, "val_loss": 4.25},
]


def test_a_training(tmp_path: Path) -> None:
    write_run(tmp_path, ROWS)
    found = training_summary(tmp_path)
    assert found == {
        "steps": 4, "tokens": 400, "loss": 4.0, "validation_loss": 4.25, "seconds": 8.0, "tokens_per_second": 50.0,
        "memory_gib": 3.0, "environment": {"torch": "2"},
    }  # fmt: skip
    assert loss_curves(tmp_path) == {"training": [[100, 5.0], [400, 4.0]], "validation": [[200, 4.5], [400, 4.25]]}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert training_progress(tmp_path) == "step 4 of 4" and training_summary(tmp_path) == found


def test_a_training_without_its_last_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path, ROWS, checkpoint=False)
    with pytest.raises(UserError, match="ended without its last checkpoint, step 4"):
        training_summary(tmp_path)


def test_nothing_yet(tmp_path: Path) -> None:
    assert training_progress(tmp_path) == "" and not training_begun(tmp_path)
    assert loss_curves(tmp_path) == {"training": [], "validation": []}
