"""Rows of `metrics.jsonl`, which a training writes: one JSON object a step, a validation, or the scores of a step."""

import json
from pathlib import Path
from typing import Any

from deconattn.json_files import read_bytes

METRICS = "metrics.jsonl"

MetricRow = dict[str, Any]


def kind_of(row: MetricRow) -> str:
    """Return `validation`, `save` (one that failed), `scores` or `step`."""
    if "val_loss" in row:
        return "validation"
    if "save_failed" in row:
        return "save"
    return "scores" if any(name.startswith("eval/") for name in row) else "step"


def valid_lines(text: str) -> list[tuple[str, MetricRow]]:
    """Return the lines that count, each with its row, of which no two are of one kind and step.

    A line that a kill cut short is left out, and so is what is no row of ours, or stands there twice. Where steps go
    back, a training went on from an earlier one: the rows before that are of steps that it took anew.
    """
    kept: list[tuple[str, MetricRow]] = []
    seen: set[str] = set()
    last: dict[str, int] = {}
    for line in text.splitlines(keepends=True):
        try:
            row = json.loads(line)
            step, kind = row["step"], kind_of(row)
            float(row.get("val_loss", 0))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if not isinstance(step, int) or not line.endswith("\n"):
            continue
        if step <= last.get(kind, -1):
            if line in seen:
                continue
            kept = [one for one in kept if one[1]["step"] < step or (kind != "step" and kind_of(one[1]) != kind)]
            seen = {before for before, _ in kept}
        last[kind] = step
        seen.add(line)
        kept.append((line, row))
    return kept


def read_rows(path: Path) -> list[MetricRow]:
    """Read the rows that count; infinities and NaN, which the file has as words, are floats again.

    Raises:
        OSError: it is not there, not to be read, or no regular file.
    """
    lines = valid_lines(read_bytes(path).decode("utf-8", errors="replace"))
    return [{name: _number(value) for name, value in row.items()} for _, row in lines]


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value
