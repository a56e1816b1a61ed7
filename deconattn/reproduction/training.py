"""What a training leaves in a run folder, read while it trains and after."""

import json
import statistics
from pathlib import Path
from typing import Any

from deconattn.errors import UserError

CONFIG, METRICS, CHECKPOINTS, MANIFEST = "config.json", "metrics.jsonl", "checkpoints", "checkpoint.json"

Row = dict[str, Any]


def begun(run: Path) -> bool:
    """Whether there is something to resume."""
    return (run / CONFIG).is_file()


def config(run: Path) -> dict[str, Any]:
    """The run's resolved configuration; empty where it cannot be read."""
    try:
        content = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def rows(run: Path) -> list[Row]:
    """Of metrics.jsonl, those that are whole."""
    try:
        lines = (run / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # being written, or cut short by a kill
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            found.append(row)
    return found


def progress(run: Path) -> str:
    """How far the training is, in words; empty where nothing is known."""
    found, total = rows(run), config(run).get("total_steps")
    return f"step {found[-1]['step']} of {total}" if found and total else ""


def summary(run: Path) -> dict[str, Any]:
    """What came of a finished training.

    `seconds` is the time that its steps took, whatever kills and pauses there were between them; validations and
    checkpoints are not in it. Losses are nats a token.

    Raises:
        UserError: the last checkpoint is not there.
    """
    total = config(run).get("total_steps")
    if not (run / CHECKPOINTS / f"step-{total}" / MANIFEST).is_file():
        raise UserError(f"the training ended without its last checkpoint, step {total}")
    found = rows(run)
    steps = [row for row in found if "loss" in row]
    validations = [row["val_loss"] for row in found if "val_loss" in row and row["step"] == total]
    seconds = _seconds(steps)
    tokens = steps[-1]["tokens"] if steps else 0
    return {
        "steps": total,
        "tokens": tokens,
        "loss": steps[-1]["loss"] if steps else None,
        "validation_loss": validations[-1] if validations else None,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
        "memory_gib": max((row.get("memory_gib", 0.0) for row in steps), default=None),
        "environment": config(run).get("environment", {}),
    }


def curves(run: Path) -> dict[str, list[list[float]]]:
    """Losses over tokens: `training` and `validation`, each [[tokens, nats], ...]; what is not finite is left out."""
    found = rows(run)
    tokens = {row["step"]: row["tokens"] for row in found if "tokens" in row}
    a_step = max((count / step for step, count in tokens.items() if step), default=0.0)
    pairs: dict[str, list[list[float]]] = {"training": [], "validation": []}
    for name, key in (("training", "loss"), ("validation", "val_loss")):
        for row in found:
            if isinstance(row.get(key), float | int):  # the rest are words, such as "nan"
                pairs[name].append([tokens.get(row["step"], row["step"] * a_step), row[key]])
    return pairs


def _seconds(steps: list[Row]) -> float:
    """A row's rate holds since the row before; where a start left it out, the others' median stands in."""
    rates = [row["tokens_per_second"] for row in steps if row.get("tokens_per_second")]
    if not rates:
        return 0.0
    usual, seconds, before = statistics.median(rates), 0.0, 0
    for row in steps:
        seconds += (row["tokens"] - before) / (row.get("tokens_per_second") or usual)
        before = row["tokens"]
    return seconds
