"""tools/evaluate.py: what it writes, what it prints, what it refuses."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deconattn.checkpoint.stored_model import open_model
from deconattn.evaluation import harness
from deconattn.program import installation
from tests.conftest import TOOLS
from tests.evaluation.conftest import CONTEXT, Evaluate
from tests.hf.models import exported, small_config, trained

Results = Callable[..., dict[str, Any]]
QUICK = ("--tasks", "copa,rte")


def test_two_models_make_one_table(
    qwen: Path, hybrid: Path, documents: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, printed, err = evaluate(qwen, hybrid, "--datasets", documents, "--out", out)
    assert code == 0, err
    content = json.loads((out / "results.json").read_text())
    lines = (out / "results.md").read_text().splitlines()
    assert lines[0] == "## Zero-shot"
    assert lines[2] == (
        "|  | ARC-E | BoolQ | COPA | PIQA | SciQ | RTE | HellaSwag | Avg | Wiki ppl | LAMBADA ppl | LAMBADA acc |"
    )
    rows = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines[4:])}
    assert list(rows) == ["qwen", "hybrid", "random guess", "majority"]
    for entry in content["models"]:
        scores, cells = entry["scores"], rows[entry["model"]["label"]]
        assert cells[1] == f"{100 * scores['BoolQ']:.1f} ± {100 * scores['BoolQ stderr']:.1f}"
        accuracies = [scores[title] for title in ("ARC-E", "BoolQ", "COPA", "PIQA", "SciQ", "RTE", "HellaSwag")]
        errors = [scores[f"{t} stderr"] for t in ("ARC-E", "BoolQ", "COPA", "PIQA", "SciQ", "RTE", "HellaSwag")]
        assert cells[7].startswith(f"{100 * sum(accuracies) / 7:.1f} ± ")
        assert scores["Avg stderr"] == pytest.approx(sum(error**2 for error in errors) ** 0.5 / 7)
        assert entry["harness"]["n-samples"]["arc_easy"] == {"original": 4, "effective": 4}
    assert set(content["versions"]) == {"deconattn", "lm_eval", "transformers", "torch", "datasets"}
    assert "HellaSwag" in printed and "majority" in printed
    assert "bootstrapping" not in printed


def test_a_limit_is_marked(qwen: Path, documents: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = evaluate(qwen, *QUICK, "--datasets", documents, "--limit", 2, "--out", out)
    assert code == 0
    content = json.loads((out / "results.json").read_text())
    assert content["comparable"] is False
    assert content["models"][0]["harness"]["n-samples"]["rte"] == {"original": 3, "effective": 2}
    text = (out / "results.md").read_text()
    assert "(first 2 documents of a task: not comparable)" in text
    assert "not comparable" in printed and "COPA" in printed and "ARC-E" not in printed
    cells = [cell.strip() for cell in text.splitlines()[4].strip("|").split("|")]
    assert (cells[1], cells[8], cells[9]) == ("-", "-", "-")  # ARC-E, Avg and Wiki ppl were not asked for


def test_context_lengths(qwen: Path, documents: Path, results: Results, tmp_path: Path) -> None:
    found = results(
        qwen, "--tasks", "wikitext", "--datasets", documents, "--context-lengths", f"{CONTEXT},16", "--batch-size", 2
    )
    (entry,) = found["models"]
    perplexities = entry["context_perplexities"]
    assert list(perplexities) == ["16", str(CONTEXT)]
    assert perplexities[str(CONTEXT)] == entry["scores"]["Wiki ppl"] != perplexities["16"]
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    start = lines.index("## WikiText word perplexity by context length")
    assert lines[start + 2] == f"| context | 16 | {CONTEXT} |"
    assert lines[start + 4].startswith("| qwen | ")


def test_context_lengths_do_not_ask_for_more_tasks(qwen: Path, documents: Path, results: Results) -> None:
    found = results(qwen, "--tasks", "copa", "--datasets", documents, "--context-lengths", "32")
    (entry,) = found["models"]
    assert list(entry["context_perplexities"]) == ["32"]
    assert set(entry["scores"]) == {"COPA", "COPA stderr"}
    assert set(found["chance"]["random guess"]) == {"COPA"}


def test_results_lie_with_the_model_and_are_not_replaced_unasked(
    hybrid_run: Path, documents: Path, evaluate: Evaluate, refused: Callable[..., str]
) -> None:
    words = (hybrid_run, *QUICK, "--datasets", documents)
    out = hybrid_run / "evaluation"
    assert evaluate(*words)[0] == 0
    before = (out / "results.json").read_bytes()
    assert f"{out} holds what evaluate wrote: choose another folder or give --overwrite" in refused(*words)
    assert (out / "results.json").read_bytes() == before
    assert evaluate(*words, "--overwrite", "--limit", 1)[0] == 0
    assert (out / "results.json").read_bytes() != before
    assert "no folder that evaluate wrote" in refused(*words, "--overwrite", "--out", documents)
    assert sorted(path.name for path in hybrid_run.iterdir()) == ["checkpoints", "config.json", "evaluation"]


def test_local_documents_need_no_network(
    qwen: Path, documents: Path, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no network here")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert results(qwen, "--datasets", documents)["models"]
    assert asked == []


def test_a_failure_leaves_nothing(
    qwen: Path, documents: Path, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "score", fails)
    with pytest.raises(KeyboardInterrupt):
        evaluate(qwen, *QUICK, "--datasets", documents, "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_answer_beyond_the_context(byte_level: Path, documents: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    short = exported(
        trained(small_config("standard", max_position_embeddings=8)), tmp_path / "short", tokenizer_folder=byte_level
    )
    code, _, err = evaluate(short, *QUICK, "--datasets", documents, "--out", tmp_path / "out")
    assert code in (None, 0)
    assert err.count("tokens is more than the model's context of 8: such answers are scored in parts of 4 tokens") == 1
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tasks nowhere.yaml", "--tasks: nowhere.yaml: no such file"),
        ("--include-path /nowhere --tasks rte", "--include-path /nowhere is no folder"),
        ("--num-fewshot -1", "--num-fewshot -1: give 0 or more"),
        ("--num-fewshot 2", "--datasets has no documents to show but those that are scored"),
        ("--perturb typo", "--perturb typo: there is no 'typo': choose from typos, word-shuffle, token-drop"),
        ("--perturb typos=0", "give a share of letters above 0 and at most 1, as in typos=0.1"),
        ("--perturb typos typos=0.2", "typos is given twice"),
        ("--perturb typos --tasks wikitext", "these tasks score whole texts, without a context before"),
        ("--limit 0", "--limit 0: give 1 or more"),
        ("--batch-size -1", "--batch-size -1"),
        ("--context-lengths 128,many", "'many' is no number of tokens"),
        ("--context-lengths 0", "'0' is no number of tokens"),
        (f"--context-lengths {CONTEXT},{CONTEXT + 1}", f"beyond the fixed stream of hybrid, {CONTEXT} tokens"),
        ("--skip 1-3", "--skip 1-3: give layers as numbers"),
        ("--skip 5", "hybrid has no layer 5 to skip"),
        ("--skip 2,4 --skip-variant-layers", "skipping all 4 layers"),
        ("--plugin /nowhere.py", "/nowhere.py"),
        ("--task rte", "--task"),
    ],
)
def test_wrong_flags(flags: str, message: str, hybrid: Path, documents: Path, refused: Callable[..., str]) -> None:
    assert message in refused(hybrid, *flags.split(), "--datasets", documents)


def test_what_is_no_model(
    qwen: Path, hybrid: Path, documents: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    assert "no model is given" in refused("--datasets", documents)
    assert "is not there" in refused(tmp_path / "none", "--datasets", documents)
    assert "several models make one table" in refused(qwen, hybrid, "--datasets", documents)
    bare = exported(trained(small_config("standard")), tmp_path / "bare")
    assert f"{bare} has no tokenizer" in refused(bare, "--datasets", documents)
    assert "standard layers only" in refused(qwen, "--skip-variant-layers", "--datasets", documents)


def test_without_the_harness(
    qwen: Path, documents: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    line = refused(qwen, "--datasets", documents)
    assert f"evaluation needs lm_eval, which is not installed: {installation('eval')}" in line


def test_scores_go_to_wandb(
    qwen: Path, hybrid_run: Path, documents: Path, results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    started, logged = [], []

    class Run:
        def __enter__(self) -> "Run":
            return self

        def __exit__(self, *_: object) -> None: ...

        def log(self, row: dict[str, float], step: int | None) -> None:
            logged.append((row, step))

    def init(**options: Any) -> Run:
        started.append(options)
        return Run()

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "init", init)
    words = (qwen, hybrid_run, *QUICK, "--datasets", documents, "--context-lengths", 16, "--wandb-project", "trials")
    found = results(*words)
    assert [(options["project"], options["name"]) for options in started] == [
        ("trials", "qwen"),
        ("trials", "hybrid-run"),
    ]
    assert [step for _, step in logged] == [None, 7]
    for (row, _), entry in zip(logged, found["models"], strict=True):
        assert row["eval/RTE"] == entry["scores"]["RTE"]
        assert row["eval/Wiki ppl at 16"] == entry["context_perplexities"]["16"]


def test_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, TOOLS / "evaluate.py", "nowhere", "--limit", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --limit 0: give 1 or more\n"


def test_the_tool_scores_what_remains(hybrid: Path, documents: Path, results: Callable[..., dict[str, Any]]) -> None:
    words = (hybrid, "--datasets", documents, "--tasks", "wikitext,lambada_openai")
    by_flag = results(*words, "--skip-variant-layers")["models"][0]
    by_number = results(*words, "--skip", "1,3")["models"][0]
    whole = results(*words)["models"][0]
    assert by_flag["model"]["label"] == "hybrid, skip 1,3"
    assert by_flag["model"]["skipped_layers"] == [1, 3]
    assert by_flag["scores"] == by_number["scores"] != whole["scores"]
    assert by_flag["model"]["parameters"] < whole["model"]["parameters"]
    assert open_model(hybrid).config.num_hidden_layers == 4
