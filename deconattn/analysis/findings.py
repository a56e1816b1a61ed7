"""What was found in each model, its means, and what radar charts draw of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from deconattn.analysis.collect import LayerFindings
from deconattn.analysis.indicators import NAMES

NORMALISED = ("entropy", "concentration", "head diversity")
"""Drawn from 0, the smallest compared, to 1, the largest."""
LOCAL_FACTOR = 2.0


@dataclass(frozen=True)
class ModelFindings:
    """Of one model, layer by layer; what it is called, and which step of which run it is where that is known."""

    label: str
    path: str
    run: str | None
    step: int | None
    layers: list[LayerFindings]

    @property
    def variants(self) -> list[str]:
        """Of the layers."""
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
    """Of each run its last step alone, and what is of no run."""
    last = {model.run: model.step for model in sorted(models, key=lambda model: model.step or 0)}
    return [model for model in models if model.run is None or model.step == last[model.run]]


def by_run(models: Sequence[ModelFindings]) -> dict[str, list[ModelFindings]]:
    """The steps of each run that has several, in order."""
    runs: dict[str, list[ModelFindings]] = {}
    for model in sorted(models, key=lambda model: model.step or 0):
        if model.run is not None:
            runs.setdefault(model.run, []).append(model)
    return {run: steps for run, steps in runs.items() if len(steps) > 1}
