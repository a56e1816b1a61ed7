"""What the command `evaluate` writes, read in this one place."""

import json
from pathlib import Path
from typing import Any

from deconattn.errors import UserError

FILE = "results.json"
TITLES = ("ARC-E", "BoolQ", "COPA", "PIQA", "SciQ", "RTE", "HellaSwag", "Avg", "Wiki ppl", "LAMBADA ppl", "LAMBADA acc")
"""Columns of table 1, in its order."""
PERPLEXITIES = ("Wiki ppl", "LAMBADA ppl")
ERROR = " stderr"


def read_scores(folder: Path) -> dict[str, Any]:
    """The scores of the one model that was evaluated.

    Returns:
        `scores` and `chance` (by row, then) by column {"value", "stderr"}, accuracies as fractions; `contexts`,
        WikiText perplexity by context length; `comparable`, false for a part of the documents; `versions`; `device`.

    Raises:
        UserError: there are none, or they are not as they should be.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        (model,) = content["models"]
        return {
            "scores": _columns(model["scores"]),
            "contexts": {str(length): _number(value) for length, value in model["context_perplexities"].items()},
            "chance": {row: _columns(numbers) for row, numbers in content.get("chance", {}).items()},
            "comparable": bool(content["comparable"]),
            "versions": content.get("versions", {}),
            "device": model["model"].get("device"),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def _columns(numbers: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    return {
        title: {"value": _number(numbers[title]), "stderr": _number(numbers.get(title + ERROR))}
        for title in TITLES
        if title in numbers
    }


def _number(value: Any) -> float | None:
    """None for what is missing and for NaN; infinities are as they are written, words."""
    number = None if value is None else float(value)
    return None if number is None or number != number else min(number, 1e300)
