"""Cells of the tables over seeds: means with their intervals, and paired differences from standard attention.

Perplexities are averaged and compared in logarithms, which are losses: their mean is geometric and their difference a
ratio. Each number is {"value", "stderr", "low", "high", "seeds"}: `stderr` that of the documents that were scored,
`low` and `high` the interval, None for one seed, `seeds` the values by seed.
"""

import math
from collections.abc import Mapping
from typing import Any

from deconattn.reproduction.jobs import PERPLEXITIES
from deconattn.statistics import LEVEL, Interval, mean_interval, paired_difference

LOSS = "validation loss"

Cell = dict[str, Any]


def is_perplexity(title: str) -> bool:
    """Table 4's columns are context lengths, and hold perplexities."""
    return title in PERPLEXITIES or title.isdecimal()


def cell_of(title: str, found: Mapping[int, Mapping[str, float | None]]) -> Cell:
    """Summarise a column's numbers by seed, {"value", "stderr"} each."""
    values = {seed: number["value"] for seed, number in found.items() if number["value"] is not None}
    if not values:
        return {"value": None, "stderr": None, "low": None, "high": None, "seeds": {}}
    errors = [number["stderr"] for number in found.values() if number["stderr"] is not None]
    cell: Cell = {"stderr": sum(errors) / len(errors) if errors else None, "seeds": values}
    interval = mean_interval([_scale(title, value) for value in values.values()], LEVEL, document_error(title, cell))
    return _numbers(title, interval) | cell


def difference_of(title: str, cell: Cell, baseline: Cell, level: float) -> Cell | None:
    """Compare a cell with standard attention's, by the seeds that both have; None where they share none.

    All models are scored on the same documents, whose errors are added as if they were not: the interval is rather too
    wide.
    """
    error = math.hypot(document_error(title, cell), document_error(title, baseline))
    found = paired_difference(logs(title, cell), logs(title, baseline), level, error)
    if found is None:
        return None
    return _numbers(title, found) | {"seeds": found.count, "level": level, "ratio": is_perplexity(title)}


def logs(title: str, cell: Cell) -> dict[int, float]:
    """Values by seed on the scale on which they are compared: perplexities in logarithms."""
    return {int(seed): _scale(title, value) for seed, value in cell.get("seeds", {}).items()}


def document_error(title: str, cell: Cell) -> float:
    """Standard error on that scale, which seeds that are scored on the same documents share."""
    error = cell.get("stderr") or 0.0
    if not is_perplexity(title) or not error:
        return float(error)
    values = cell["seeds"].values()
    return float(error) * len(values) / sum(values)


def _numbers(title: str, interval: Interval) -> Cell:
    back = math.exp if is_perplexity(title) else float
    low, high = (None if bound is None else back(min(bound, 690.0)) for bound in (interval.low, interval.high))
    return {"value": back(interval.mean), "low": low, "high": high}


def _scale(title: str, value: float) -> float:
    return math.log(value) if is_perplexity(title) else value
