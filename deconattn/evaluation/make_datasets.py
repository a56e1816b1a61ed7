"""Write the folder for `--datasets` from the Hugging Face hub: python -m deconattn.evaluation.make_datasets DIR."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from deconattn.cli import parse, run
from deconattn.durable import staged_folder
from deconattn.errors import UserError
from deconattn.evaluation.selection import definition_of
from deconattn.evaluation.tasks import benchmarks
from deconattn.extras import require

LoadDataset = Callable[..., Iterable[dict[str, Any]]]
"""`datasets.load_dataset`."""


@dataclass(frozen=True)
class Arguments:
    """Download the documents that the nine tasks score, and write them as JSON lines."""

    out: Annotated[Path, tyro.conf.Positional]
    """The folder to write; it must be new or empty."""
    tasks: str = ""
    """Tasks to download, comma-separated; by default all."""


def make_datasets(out: Path, tasks: str = "", load: LoadDataset | None = None) -> None:
    """Write one file a task, `out` whole or not at all.

    The hub's names of the data sets come from the installed harness.

    Args:
        load: replacement for `datasets.load_dataset`.

    Raises:
        UserError: `out` is in use, or the hub has not what is asked for.
    """
    chosen = benchmarks(tasks)
    require("eval", "making the folder")
    load = load or _hub()
    with staged_folder(out.resolve(), _check_free) as folder:
        for task in chosen:
            source = definition_of(task)
            name = f"{source['dataset_path']} ({source.get('dataset_name') or 'default'}, {task.split})"
            try:
                documents = load(source["dataset_path"], source.get("dataset_name"), split=task.split)
            except Exception as error:  # whatever network and hub come up with
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UserError(f"{name} cannot be loaded ({reason}): check the network, or HF_TOKEN") from error
            count = 0
            with (folder / f"{task.file}.jsonl").open("w", encoding="utf-8") as file:
                for document in documents:
                    file.write(json.dumps(document, ensure_ascii=False) + "\n")
                    count += 1
            print(f"{task.name}: {count} documents of {name}")


def _hub() -> LoadDataset:
    from datasets import load_dataset

    return load_dataset


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: choose another folder")


def _main() -> None:
    arguments = parse(Arguments, program="python -m deconattn.evaluation.make_datasets")
    make_datasets(arguments.out, arguments.tasks)


if __name__ == "__main__":
    run(_main)
