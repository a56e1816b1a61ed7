"""Findings of each model: its means, what radar charts draw of them, and the rows that figures are drawn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deconattn.analysis.ablation import Ablations
from deconattn.analysis.collect import LayerFindings
from deconattn.analysis.indicators import NAMES
from deconattn.analysis.induction import InductionFindings
from deconattn.analysis.losses import PositionLosses
from deconattn.analysis.pre_softmax import Distribution

NORMALISED = ("entropy", "concentration", "head diversity")
"""Indicators drawn from 0, the smallest compared, to 1, the largest."""
LOCAL_FACTOR = 2.0

Row = dict[str, Any]
QUANTILES = {"q01": 0.01, "q25": 0.25, "median": 0.5, "q75": 0.75, "q99": 0.99}


@dataclass(frozen=True)
class ModelFindings:
    """Findings of one model, layer by layer; its name, and its run and step where they are known.

    Attributes:
        induction, position, ablations: None where they were not asked for.
    """

    label: str
    path: str
    run: str | None
    step: int | None
    layers: list[LayerFindings]
    induction: InductionFindings | None = None
    position: PositionLosses | None = None
    ablations: Ablations | None = None

    @property
    def variants(self) -> list[str]:
        """Variants of the layers."""
        return [layer.variant for layer in self.layers]

    @cached_property
    def layer_means(self) -> list[dict[str, float] | None]:
        """Each layer's indicators by name, means over the heads; None where the layer mixes nothing."""
        return [
            None if layer.indicators is None
            else {name: float(tensor.mean()) for name, tensor in layer.indicators.by_name().items()}
            for layer in self.layers
        ]  # fmt: skip

    @property
    def means(self) -> dict[str, float] | None:
        """The indicators' means over the layers that mix; None if none does."""
        mixing = [means for means in self.layer_means if means is not None]
        return {name: sum(means[name] for means in mixing) / len(mixing) for name in NAMES} if mixing else None


class Scale:
    """From indicators to what a radar chart draws (section 4.4 of the paper).

    Entropy, concentration and head diversity go from 0 to 1 between the smallest and the largest layer mean of all
    that is compared, 0.5 where those are one; local focus is doubled; sink stays what it is.
    """

    def __init__(self, models: Sequence[ModelFindings]) -> None:
        compared = [means for model in models for means in model.layer_means if means is not None]
        self.bounds = {
            name: (min(means[name] for means in compared), max(means[name] for means in compared))
            for name in NORMALISED
            if compared
        }

    def __call__(self, name: str, value: float) -> float:
        """The radius of an indicator's layer mean, or of its mean over layers."""
        if name in self.bounds:
            low, high = self.bounds[name]
            return (value - low) / (high - low) if high > low else 0.5
        return value * LOCAL_FACTOR if name.startswith("local focus") else value


def newest(models: Sequence[ModelFindings]) -> list[ModelFindings]:
    """Keep the last step of each run, and models of no run."""
    last = {model.run: model.step for model in sorted(models, key=lambda model: model.step or 0)}
    return [model for model in models if model.run is None or model.step == last[model.run]]


def by_run(models: Sequence[ModelFindings]) -> dict[str, list[ModelFindings]]:
    """The steps of each run that has several, in order."""
    runs: dict[str, list[ModelFindings]] = {}
    for model in sorted(models, key=lambda model: model.step or 0):
        if model.run is not None:
            runs.setdefault(model.run, []).append(model)
    return {run: steps for run, steps in runs.items() if len(steps) > 1}


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
