"""A local folder of the tasks' documents in place of the hub: one JSON-lines file a task, `.jsonl` or `.jsonl.zst`.

    DIR/
        arc_easy.test.jsonl      boolq.validation.jsonl   copa.validation.jsonl   piqa.validation.jsonl
        sciq.test.jsonl          rte.validation.jsonl     hellaswag.validation.jsonl
        wikitext2.test.pages.jsonl   lambada_openai.test.jsonl

A line is a document with the fields of the hub's data set. :mod:`deconattn.evaluation.make_datasets` writes such a
folder. Only where the documents come from changes: prompts, answers, metrics and filters stay the harness's.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deconattn.errors import UserError
from deconattn.evaluation.tasks import Benchmark

SUFFIXES = (".jsonl", ".jsonl.zst")
MAKE = "make the folder with python -m deconattn.evaluation.make_datasets"


def data_files(folder: Path, tasks: Sequence[Benchmark]) -> dict[str, Path]:
    """Map each task to the file with its documents.

    Raises:
        UserError: a file that is missing, or whose first document is not the task's.
    """
    if not folder.is_dir():
        raise UserError(f"--datasets {folder} is {'a file' if folder.exists() else 'not there'}: {MAKE}")
    found = {}
    for task in tasks:
        paths = [folder / f"{task.file}{suffix}" for suffix in SUFFIXES]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise UserError(f"--datasets {folder} has no {paths[0].name} for {task.name}: {MAKE}, or choose --tasks")
        _check(path, task)
        found[task.name] = path
    return found


def local_task(task: Benchmark, path: Path, cache: Path) -> dict[str, Any]:
    """Overrides of the harness's task configuration that take a task's documents from `path`.

    Args:
        cache: where the `datasets` library may put its copies; it must outlive the task.
    """
    # The harness would look for few-shot examples in these splits, and there is one only; nothing is shown of it.
    other = {f"{name}_split": None for name in ("training", "validation", "test") if name != task.split}
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {task.split: str(path)}, "cache_dir": str(cache)},
        **other,
    }


def _check(path: Path, task: Benchmark) -> None:
    try:
        document = json.loads(_first_line(path))
        missing = [field for field in task.fields if field not in document]
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UserError(f"{path}: its first line is no JSON object ({error}): {MAKE} anew") from None
    if missing:
        raise UserError(f"{path}: its documents have no {missing[0]!r}, which {task.name} asks for: {MAKE} anew")


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        if path.suffix != ".zst":
            return file.readline().decode("utf-8")
        import zstandard

        try:
            with zstandard.ZstdDecompressor().stream_reader(file) as reader:
                return io.TextIOWrapper(reader, encoding="utf-8").readline()
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None
