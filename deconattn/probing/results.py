"""Results of a grid: one row a trained model and difficulty, in `results.json` and `results.parquet`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from deconattn import durable
from deconattn.errors import UserError
from deconattn.json_files import read_json

FORMAT = 1
RESULTS, PARQUET = "results.json", "results.parquet"


@dataclass(frozen=True)
class Row:
    """What one trained model does at one difficulty.

    A model that is trained on several difficulties has a row for each, and so has one that failed.
    """

    task: str
    """Name of the task."""
    settings: str
    """The task's other fields, as `context=64&alphabet=64`; they do not differ between the rows of a model."""
    axis: str
    """Field that difficulty is measured by."""
    difficulty: int
    """Its value."""
    chance: float | None
    """Accuracy of guessing; None where the task does not say."""
    variant: str
    pattern: str
    """Pattern of the variant's layers; `uniform` for standard attention."""
    size: str
    """Width x layers, such as `64x2`."""
    hidden_size: int
    layers: int
    parameters: int
    seed: int
    lr: float
    """Peak learning rate."""
    chosen: bool
    """Whether this is the rate that the variant was given for the task: the others are of the sweep."""
    steps: int
    """Optimiser steps taken."""
    tokens: int
    """Tokens trained on, of all difficulties."""
    solved_at: int | None
    """Step at which all difficulties were solved and training ended; None: it took all its steps."""
    accuracy: float | None
    """Share of the asked positions that are answered rightly, on held-out samples; None if training failed."""
    loss: float | None
    """Mean cross-entropy of the asked positions, in nats."""
    asked: int
    """Positions that the two are of."""
    seconds: float
    """Time of the model's training and evaluation."""
    state: Literal["done", "failed"]
    reason: str | None
    """Why it failed."""


def write_results(out: Path, request: dict[str, Any], rows: Sequence[Row]) -> None:
    """Replace the folder's results, each file as a whole."""
    import pyarrow
    import pyarrow.parquet

    told = [dataclasses.asdict(row) for row in rows]
    durable.write_json(out / RESULTS, {"format": FORMAT, "request": request, "rows": told})
    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string(), bool: pyarrow.bool_()}
    schema = pyarrow.schema((field.name, _arrow_type(field.type, kinds)) for field in dataclasses.fields(Row))
    partial = out / f".{PARQUET}.partial"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(told, schema=schema), partial)
    durable.sync_file(partial)
    partial.replace(out / PARQUET)
    durable.sync_folder(out)


def _arrow_type(kind: Any, kinds: dict[type, Any]) -> Any:
    """Return the column of a field, which may be optional or one of some words."""
    given = [part for part in getattr(kind, "__args__", (kind,)) if part is not type(None)]
    return kinds.get(given[0], kinds[str])


def read_results(out: Path) -> list[Row]:
    """Return the rows of a folder's `results.json`.

    Raises:
        UserError: there is none, it cannot be read, or a later version wrote it.
    """
    path = out / RESULTS
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; check --out: it holds no results of probes") from error
    if content.get("format") != FORMAT:
        raise UserError(f"{path} has format {content.get('format')}, not {FORMAT}: give another --out")
    try:
        return TypeAdapter(list[Row]).validate_python(content["rows"])
    except (KeyError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read ({reason}): render it again with probe --render") from error
