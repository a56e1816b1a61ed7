"""Curves of runs: a metric over an axis, smoothed; or a mean over seeds, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deconattn.errors import UserError
from deconattn.runs.differences import Group, colours_of, labels_of
from deconattn.runs.run import X_TITLES, Run
from deconattn.statistics import mean_interval

TITLES = {
    "loss": "training loss, nats a token",
    "val_loss": "validation loss, nats a token",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens a second",
    "mfu": "share of the peak FLOPs (MFU)",
    "z_loss": "z-loss",
    "memory_gib": "memory, GiB",
}
"""Metrics that are drawn unasked, in this order, with their units; beside them the scores of benchmarks."""
_AS_THEY_ARE = ("val_loss", "learning_rate")
"""Metrics that have no noise to smooth; nor have the scores of benchmarks, which are few."""
POINTS = 120
"""Points that a page draws of a curve, at most."""


@dataclass(frozen=True)
class Curve:
    """A line to draw.

    Attributes:
        colour, look: whose variant's colour it has, and the number of its dash.
        points: (x, y), all finite.
        raw: what `points` smooths; empty where they are as they were measured.
        band: (x, low, high), the interval over seeds.
        few: points are far between, and stand out each.
    """

    label: str
    colour: str
    look: int
    points: list[tuple[float, float]]
    raw: list[tuple[float, float]]
    band: list[tuple[float, float, float]]
    few: bool


@dataclass(frozen=True)
class Panel:
    """A metric of several runs.

    Attributes:
        left_out: points that are not finite, or not above zero on a logarithmic axis.
        without: names of the runs that do not have the metric.
    """

    metric: str
    title: str
    x_title: str
    curves: list[Curve]
    log: bool
    left_out: int = 0
    without: tuple[str, ...] = ()


def title_of(metric: str) -> str:
    """Title of a metric, with its unit where it is known."""
    return TITLES.get(metric, metric.removeprefix("eval/"))


def chosen_metrics(runs: Sequence[Run], asked: Sequence[str]) -> list[str]:
    """Return the metrics to draw: those asked for, or those that are drawn unasked, as far as there are any.

    Raises:
        UserError: none of the runs has one that is asked for, or there is nothing yet.
    """
    there = list(dict.fromkeys(name for run in runs for name in run.metrics))
    if not there:
        names = ", ".join(str(run.folder) for run in runs)
        faults = "; ".join(run.fault for run in runs if run.fault)
        raise UserError(f"{names}: no metrics{f' ({faults})' if faults else ' yet'}: let it train for a few steps")
    for name in asked:
        if name not in there:
            raise UserError(f"--metric {name}: no run has it; there are {', '.join(there)}")
    scores = [name for name in there if name.startswith("eval/") and not name.endswith(" stderr")]
    return list(dict.fromkeys(asked)) or [name for name in [*TITLES, *scores] if name in there] or there


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Return the exponential moving average, whose start is not pulled to zero (bias-corrected, as Adam's)."""
    mean, seen, found = 0.0, 0.0, []
    for value in values:
        seen = weight * seen + (1 - weight)
        mean += (value - mean) * (1 - weight) / seen
        found.append(mean)
    return found


def panels_of_runs(runs: Sequence[Run], metrics: Sequence[str], x: str, smooth: float, log: bool) -> list[Panel]:
    """Return a panel for each metric, with a curve for each run that has it."""
    looks = list(zip(runs, labels_of(runs), colours_of(runs), strict=True))
    panels = []
    for metric in metrics:
        curves, left_out = [], 0
        for run, label, (colour, look) in looks:
            pairs, lost = _points(run, metric, x, log)
            left_out += lost
            few, raw = _few(metric), list[tuple[float, float]]()
            if smooth and not few and metric not in _AS_THEY_ARE:
                raw = pairs
                means = smoothed([value for _, value in pairs], smooth)
                pairs = [(place, mean) for (place, _), mean in zip(pairs, means, strict=True)]
            if pairs:
                curves.append(Curve(label, colour, look, pairs, raw, [], few))
        without = tuple(run.name for run in runs if metric not in run.metrics)
        panels.append(Panel(metric, title_of(metric), X_TITLES[x], curves, log, left_out, without))
    return panels


def panels_of_groups(groups: Sequence[Group], metrics: Sequence[str], x: str) -> list[Panel]:
    """Return a panel for each metric, with the mean of each group's runs, and the 95 % interval where there are two.

    The points are means of neighbouring steps that all runs of the group have.
    """
    colours = colours_of([group.first for group in groups])
    panels = []
    for metric in metrics:
        curves, left_out = [], 0
        for group, (colour, look) in zip(groups, colours, strict=True):
            curve, lost = _mean_curve(group, metric, x, colour, look)
            left_out += lost
            curves += [curve] if curve.points else []
        panels.append(Panel(metric, title_of(metric), X_TITLES[x], curves, False, left_out))
    return panels


def binned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """Reduce points, in order, to at most so many means of neighbours."""
    if len(points) <= most:
        return list(points)
    parts = np.array_split(np.asarray(points), most)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def _mean_curve(group: Group, metric: str, x: str, colour: str, look: int) -> tuple[Curve, int]:
    runs = list(group.runs.values())
    values = [dict(run.values(metric)) for run in runs]
    steps = sorted(set.intersection(*(set(one) for one in values)))
    finite = [step for step in steps if all(np.isfinite(one[step]) for one in values)]
    if not finite:
        return Curve(group.label, colour, look, [], [], [], False), len(steps)
    places = runs[0].places(finite, x)
    lines = [binned([(place, one[step]) for place, step in zip(places, finite, strict=True)]) for one in values]
    points, band = [], []
    for together in zip(*lines, strict=True):
        interval = mean_interval([value for _, value in together])
        points.append((together[0][0], interval.mean))
        if interval.low is not None and interval.high is not None:
            band.append((together[0][0], interval.low, interval.high))
    return Curve(group.label, colour, look, points, [], band, _few(metric)), len(steps) - len(finite)


def _points(run: Run, metric: str, x: str, log: bool) -> tuple[list[tuple[float, float]], int]:
    """Return the points that can be drawn, and how many cannot."""
    found = run.values(metric)
    kept = [(step, value) for step, value in found if np.isfinite(value) and (value > 0 or not log)]
    places = run.places([step for step, _ in kept], x)
    return list(zip(places, (value for _, value in kept), strict=True)), len(found) - len(kept)


def _few(metric: str) -> bool:
    return metric == "val_loss" or metric.startswith("eval/")
