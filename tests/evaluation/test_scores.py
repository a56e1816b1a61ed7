"""The tool's scores are the stock harness's, and those of a script that knows nothing of the harness."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.tasks import TaskManager

from deconattn.checkpoint.stored_model import open_model
from deconattn.evaluation import harness
from deconattn.evaluation.datasets import data_files
from deconattn.evaluation.selection import definition_of
from deconattn.evaluation.tasks import BENCHMARKS, COLUMNS, benchmarks
from tests.evaluation.conftest import CONTEXT, RESAMPLES
from tests.evaluation.independent import Scorer
from tests.hf.models import VOCAB, exported, small_config, trained

Results = Callable[..., dict[str, Any]]
STAGED = Path(__file__).parents[3] / "shared" / "data"
FEW = 50


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """All that the harness says of the tasks but their place in its output."""
    tables: dict[str, dict[str, Any]] = found["results"]
    return {
        f"{task} {metric}": value
        for task, metrics in tables.items()
        for metric, value in metrics.items()
        if metric not in ("alias", "name")
    }


def stock_definitions(folder: Path, documents: Path) -> Path:
    """The harness's own files, included in ones that say where the documents are."""
    folder.mkdir()
    root = Path(lm_eval.__file__).parent / "tasks"
    for name, path in data_files(documents, benchmarks("")).items():
        benchmark = BENCHMARKS[name]
        (original,) = (
            file for file in sorted((root / benchmark.folder).glob("*.yaml")) if f"\ntask: {name}\n" in _text(file)
        )
        content = {
            "include": str(original),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {benchmark.split: str(path)}},
            **{f"{split}_split": None for split in ("training", "validation", "test") if split != benchmark.split},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


def _text(path: Path) -> str:
    return "\n" + path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["qwen", "hybrid"])
def test_the_stock_harness_gives_the_same(
    kind: str, documents: Path, results: Results, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    export = request.getfixturevalue(kind)
    ours = results(export, "--datasets", documents, "--batch-size", 3)
    stock = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={export},trust_remote_code=True",
        tasks=list(BENCHMARKS),
        task_manager=TaskManager(
            include_path=str(stock_definitions(tmp_path / "tasks", documents)), include_defaults=False
        ),
        device="cpu",
        batch_size=3,
        bootstrap_iters=RESAMPLES,
    )
    assert len(figures(stock)) > 2 * len(COLUMNS)
    assert figures(ours["models"][0]["harness"]) == figures(stock)
    assert ours["comparable"] is True


def test_a_script_without_the_harness_gives_the_same(hybrid: Path, documents: Path, results: Results) -> None:
    ours = figures(results(hybrid, "--datasets", documents)["models"][0]["harness"])
    stored = open_model(hybrid)
    expected = Scorer(stored.load(), stored.tokenizer, CONTEXT).scores(documents, FEW)
    assert len(expected) == len(COLUMNS)
    assert {name: ours[f"{name},none"] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_run_checkpoint_and_export_score_the_same(
    hybrid: Path, hybrid_run: Path, documents: Path, results: Results
) -> None:
    words = (hybrid, hybrid_run, hybrid_run / "checkpoints" / "step-7")
    found = results(*words, "--datasets", documents, "--tasks", "piqa,wikitext,lambada_openai")
    export, run, step = found["models"]
    assert export["scores"] == run["scores"] == step["scores"]
    assert [entry["model"]["label"] for entry in found["models"]] == ["hybrid", "hybrid-run", "hybrid-run/step-7"]
    assert "step" not in export["model"]
    assert (run["model"]["step"], run["model"]["tokens"]) == (7, 7 * 16 * 256)


def test_definitions_are_the_harness_s_but_for_the_documents() -> None:
    for name, benchmark in BENCHMARKS.items():
        definition = definition_of(benchmark)
        scored = "test" if definition.get("test_split") else "validation"
        assert (definition["task"], scored) == (name, benchmark.split)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["larger_qwen", "hybrid"])
def test_the_stock_command_gives_the_same(
    kind: str,
    tmp_path: Path,
    results: Results,
    documents: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tool, `lm_eval` command and script; stock Qwen2 on the first 50 documents of each real task, if at hand."""
    export = request.getfixturevalue(kind)
    source = STAGED / "eval" if kind == "larger_qwen" and (STAGED / "eval").is_dir() else documents
    command = [sys.executable, "-m", "lm_eval", "--model", "hf"]
    command += ["--model_args", f"pretrained={export},trust_remote_code=True", "--tasks", ",".join(BENCHMARKS)]
    command += ["--include_path", str(stock_definitions(tmp_path / "tasks", source)), "--device", "cpu"]
    command += ["--batch_size", "2", "--limit", str(FEW), "--output_path", str(tmp_path / "stock.json")]
    subprocess.run(command, check=True, cwd=tmp_path)
    (written,) = tmp_path.glob("stock*.json")
    monkeypatch.setattr(harness, "BOOTSTRAP_RESAMPLES", 100_000)  # the command's default
    found = results(export, "--datasets", source, "--limit", FEW, "--batch-size", 2)["models"][0]["harness"]
    ours = figures(found)
    assert ours == figures(json.loads(written.read_text()))
    stored = open_model(export)
    expected = Scorer(stored.load(), stored.tokenizer, stored.config.max_position_embeddings).scores(source, FEW)
    by_name = {name: ours[f"{name},none"] for name in expected}
    print(json.dumps({"tool and lm_eval": by_name, "script": expected}, indent=1))
    assert by_name == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="session")
def larger_qwen(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stock Qwen2 with a context of 512 tokens, and the tokenizer of the staged data where it is at hand."""
    staged = STAGED / "tokenizer" / "20B_tokenizer.json"
    folder, vocabulary = byte_level, VOCAB
    if staged.is_file():
        folder, vocabulary = tmp_path_factory.mktemp("tokenizer"), 50_304
        (folder / "tokenizer.json").write_bytes(staged.read_bytes())
    config = small_config("standard", "standard", vocab_size=vocabulary, max_position_embeddings=512)
    return exported(trained(config), tmp_path_factory.mktemp("models") / "larger-qwen", tokenizer_folder=folder)
