"""What the command `analyze` writes, read in this one place."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from deconattn.errors import UserError

SUMMARY, FILE = "analysis.json", "indicators.json"
NAMES = ("entropy", "concentration", "head diversity", "sink", *(f"local focus {n}" for n in range(4)))
NORMALISED = ("entropy", "concentration", "head diversity")
"""Drawn from 0, the smallest layer mean of all runs, to 1, the largest (section 4.4)."""
LOCAL_FACTOR = 2.0

Layer = dict[str, Any]


def read_indicators(folder: Path) -> dict[str, Any]:
    """Of the one model that was looked into: {"layers": [{"layer", "variant", and each indicator's mean of heads}]}.

    Layers that mix nothing are left out.

    Raises:
        UserError: there is nothing, or it is not as it should be.
    """
    try:
        json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        if not (folder / FILE).is_file():  # no layer mixes
            return {"layers": []}
        columns = json.loads((folder / FILE).read_text(encoding="utf-8"))
        found: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        wanted = (columns[name] for name in ("layer", "variant", "indicator", "value"))
        for layer, variant, indicator, value in zip(*wanted, strict=True):
            found[layer, variant][indicator].append(value)
        layers = [
            {"layer": layer, "variant": variant} | {name: fmean(heads[name]) for name in NAMES}
            for (layer, variant), heads in sorted(found.items())
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / FILE} cannot be read ({type(error).__name__}: {error})") from error
    return {"layers": layers}


def radii(runs: dict[str, list[Layer]]) -> dict[str, dict[str, float]]:
    """What a radar chart draws of each run: by indicator, its mean over layers on the scale of all runs' layers."""
    layers = [layer for found in runs.values() for layer in found]
    bounds = {name: (min(layer[name] for layer in layers), max(layer[name] for layer in layers)) for name in NORMALISED}

    def radius(name: str, value: float) -> float:
        if name in bounds:
            low, high = bounds[name]
            return (value - low) / (high - low) if high > low else 0.5
        return value * LOCAL_FACTOR if name.startswith("local focus") else value

    return {
        run: {name: radius(name, fmean(layer[name] for layer in found)) for name in NAMES}
        for run, found in runs.items()
        if found
    }
