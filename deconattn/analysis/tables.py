"""Findings as rows: the numbers that pictures are drawn from, and that lie beside them."""

from collections.abc import Iterator, Sequence
from typing import Any

from deconattn.analysis.activations import Distribution
from deconattn.analysis.findings import ModelFindings, Scale
from deconattn.analysis.indicators import NAMES

Row = dict[str, Any]
QUANTILES = {"q01": 0.01, "q25": 0.25, "median": 0.5, "q75": 0.75, "q99": 0.99}


def indicator_rows(models: Sequence[ModelFindings]) -> list[Row]:
    """Each indicator of each head and layer, as it is; head diversity has no head. Layers and heads count from 1."""
    return [
        {**_origin(model), "layer": number, "variant": layer.variant, "head": head, "indicator": name, "value": value}
        for model in models
        for number, layer in enumerate(model.layers, start=1)
        if layer.indicators is not None
        for name, tensor in layer.indicators.by_name().items()
        for head, value in _numbered(tensor.tolist())
    ]


def layer_radar_rows(models: Sequence[ModelFindings], scale: Scale) -> list[Row]:
    """Each layer's means over the heads, and the radius at which each is drawn."""
    return [
        {"model": model.label, "layer": number, "variant": variant, **_drawn(name, means[name], scale)}
        for model in models
        for number, (variant, means) in enumerate(zip(model.variants, model.layer_means, strict=True), start=1)
        if means is not None
        for name in NAMES
    ]


def model_radar_rows(models: Sequence[ModelFindings], scale: Scale) -> list[Row]:
    """Each model's means over heads and layers, and the radius at which each is drawn."""
    found = [(model.label, model.means) for model in models]
    return [
        {"model": label, **_drawn(name, means[name], scale)}
        for label, means in found
        if means is not None
        for name in NAMES
    ]


def activation_rows(models: Sequence[ModelFindings]) -> list[Row]:
    """Each layer's distribution of activations before the softmax, for layers that have some."""
    return [
        {"model": model.label, "layer": number, "variant": layer.variant, **_distribution(layer.activations)}
        for model in models
        for number, layer in enumerate(model.layers, start=1)
        if layer.activations is not None
    ]


def entropy_rows(runs: dict[str, list[ModelFindings]]) -> list[Row]:
    """Each layer's entropy, mean over the heads, at each step of each run."""
    return [
        {"run": run, "step": model.step, "layer": number, "variant": variant, "entropy": means["entropy"]}
        for run, steps in runs.items()
        for model in steps
        for number, (variant, means) in enumerate(zip(model.variants, model.layer_means, strict=True), start=1)
        if means is not None
    ]


def map_rows(model: ModelFindings, layer: int) -> list[Row]:
    """The pooled map of one layer, counted from 1: a cell a row, rows and columns of cells counted from 0."""
    picture = model.layers[layer - 1].picture
    assert picture is not None
    return [
        {"model": model.label, "layer": layer, "head": head, "row": row, "column": column, "weight": cells[row][column]}
        for head, cells in enumerate(picture.tolist(), start=1)
        for row in range(len(cells))
        for column in range(row + 1)
    ]


def _origin(model: ModelFindings) -> Row:
    return {"model": model.label, "step": model.step}


def _numbered(values: float | list[float]) -> Iterator[tuple[int | None, float]]:
    if isinstance(values, list):
        yield from enumerate(values, start=1)
    else:
        yield None, values


def _drawn(name: str, value: float, scale: Scale) -> Row:
    return {"indicator": name, "value": value, "drawn": scale(name, value)}


def _distribution(found: Distribution) -> Row:
    extremes = {"minimum": found.minimum, "maximum": found.maximum}
    quantiles = {name: found.quantile(share) for name, share in QUANTILES.items()}
    moments = {"count": found.count, "mean": found.mean, "std": found.std}
    return moments | extremes | quantiles | {"bins": found.bins.tolist()}
