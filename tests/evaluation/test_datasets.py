"""Local folders of documents: what is refused, and how one is made."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deconattn.errors import UserError
from deconattn.evaluation.datasets import data_files
from deconattn.evaluation.make_datasets import make_datasets
from deconattn.evaluation.selection import load, select
from deconattn.evaluation.tasks import BENCHMARKS, benchmarks
from tests.evaluation.documents import DOCUMENTS

OF_THE_HUB = {
    ("allenai/ai2_arc", "ARC-Easy", "test"): "arc_easy.test",
    ("aps/super_glue", "boolq", "validation"): "boolq.validation",
    ("aps/super_glue", "copa", "validation"): "copa.validation",
    ("baber/piqa", None, "validation"): "piqa.validation",
    ("allenai/sciq", None, "test"): "sciq.test",
    ("nyu-mll/glue", "rte", "validation"): "rte.validation",
    ("Rowan/hellaswag", None, "validation"): "hellaswag.validation",
    ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test"): "wikitext2.test.pages",
    ("EleutherAI/lambada_openai", "default", "test"): "lambada_openai.test",
}


def hub(path: str, name: str | None, split: str) -> Iterator[dict[str, Any]]:
    """In place of `datasets.load_dataset`."""
    return iter(DOCUMENTS[OF_THE_HUB[path, name, split]])


def test_a_folder_made_from_the_hub_is_one_that_is_read(documents: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    make_datasets(made, load=hub)
    every = benchmarks("")
    assert sorted(path.name for path in made.iterdir()) == sorted(f"{task.file}.jsonl" for task in every)
    ours = load(select(""), data_files(made, every), tmp_path / "a").tasks
    theirs = load(select(""), data_files(documents, every), tmp_path / "b").tasks  # HellaSwag compressed
    assert list(ours) == list(BENCHMARKS)
    for name, task in ours.items():
        assert list(task.eval_docs) == list(theirs[name].eval_docs)
        assert len(task.eval_docs) == len(DOCUMENTS[BENCHMARKS[name].file])


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    def breaks(path: str, name: str | None, split: str) -> Iterator[dict[str, Any]]:
        if "piqa" in path:
            raise ConnectionError("no route\nto the hub")
        return hub(path, name, split)

    with pytest.raises(UserError, match=r"baber/piqa \(default, validation\) cannot be loaded \(no route\)"):
        make_datasets(tmp_path / "made", load=breaks)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="is not empty"):
        make_datasets(tmp_path, load=hub)


@pytest.fixture
def damaged(documents: Path, tmp_path: Path) -> Path:
    return shutil.copytree(documents, tmp_path / "documents")


def test_a_missing_folder_and_file(damaged: Path, qwen: Path, refused: Callable[..., str]) -> None:
    assert "nowhere is not there: make the folder with" in refused(qwen, "--datasets", damaged / "nowhere")
    (damaged / "rte.validation.jsonl").unlink()
    assert "has no rte.validation.jsonl for rte" in refused(qwen, "--datasets", damaged)
    assert len(data_files(damaged, benchmarks("piqa"))) == 1  # which nobody asked for does not matter


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("piqa.validation.jsonl", b"{", "its first line is no JSON object"),
        ("piqa.validation.jsonl", b"", "its first line is no JSON object"),
        ("piqa.validation.jsonl", b"\xff\xfe", "its first line is no JSON object"),
        ("piqa.validation.jsonl", b"17", "its first line is no JSON object"),
        ("hellaswag.validation.jsonl.zst", b"plain", "its first line is no JSON object"),
        ("piqa.validation.jsonl", json.dumps({"goal": "", "sol1": "", "sol2": ""}).encode(), "no 'label'"),
    ],
)
def test_a_damaged_file(
    name: str, content: bytes, message: str, damaged: Path, qwen: Path, refused: Callable[..., str]
) -> None:
    (damaged / name).write_bytes(content)
    error = refused(qwen, "--datasets", damaged)
    assert message in error and name in error


def test_damage_further_down_is_one_line_too(damaged: Path, qwen: Path, refused: Callable[..., str]) -> None:
    with (damaged / "boolq.validation.jsonl").open("a") as file:
        file.write("{cut\n")
    error = refused(qwen, "--datasets", damaged, "--tasks", "boolq")
    assert "the documents of boolq cannot be loaded" in error and "boolq.validation.jsonl" in error
