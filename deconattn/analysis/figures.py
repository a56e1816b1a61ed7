"""The pictures, drawn from the rows that lie beside them."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.projections.polar import PolarAxes

from deconattn.analysis.findings import Row
from deconattn.analysis.indicators import NAMES
from deconattn.pages.palette import INK, STYLE, colour_of

Look = dict[str, Any]
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Line styles that tell models of one colour apart."""
SHORT = ("entropy", "conc.", "div.", "sink", "N=0", "N=1", "N=2", "N=3")
BANDS = (("minimum", "maximum", 0.15), ("q01", "q99", 0.4), ("q25", "q75", 0.8))
"""Bands of the activation plot: lower quantile, upper quantile, opacity."""


def looks_of(variants: dict[str, list[str]]) -> dict[str, Look]:
    """A line style for each model, by its layers' variants: one colour a variant, a dash for each that shares it."""
    looks: dict[str, Look] = {}
    for model, layers in variants.items():
        colour = colour_of(layers)
        earlier = sum(look["color"] == colour for look in looks.values())
        looks[model] = {"color": colour, "linestyle": DASHES[earlier % len(DASHES)]}
    return looks


def layer_radars(rows: Sequence[Row], layers: int, looks: dict[str, Look]) -> Figure:
    """A radar chart for each of so many layers, a line for each model that mixes there."""
    columns = min(layers, 6)
    with mpl.rc_context(STYLE):
        figure, panels = panel_grid(layers, columns, (2.7, 2.9), {"projection": "polar"})
        outer = _outer(rows)
        for number, axes in enumerate(panels, start=1):
            here = [row for row in rows if row["layer"] == number]
            _radar(axes, here, looks, outer, labels=SHORT, fontsize=7)
            axes.set_title(f"layer {number}" if here else f"layer {number}: no map", fontsize=10)
        legend(figure, looks)
    return figure


def model_radar(rows: Sequence[Row], looks: dict[str, Look]) -> Figure:
    """One radar chart, a line a model."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 6.5), layout="constrained")
        axes = figure.subplots(subplot_kw={"projection": "polar"})
        _radar(axes, rows, looks, _outer(rows), labels=NAMES, fontsize=10)
        axes.set_title("mean over layers", fontsize=12, pad=20)
        legend(figure, looks)
    return figure


def activation_bands(rows: Sequence[Row], layers: int) -> Figure:
    """Plot the pre-softmax activations of each model's layers: extremes, percentiles 1 to 99, quartiles, median."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    with mpl.rc_context(STYLE):
        figure, panels = panel_grid(len(models), min(len(models), 3), (1.8 + 0.14 * layers, 3.4), sharey=True)
        for model, axes in zip(models, panels, strict=True):
            axes.use_sticky_edges = False  # or the lowest bar would end where the axis does
            for row in (row for row in rows if row["model"] == model):
                _band(axes, row)
            axes.set_title(model, fontsize=11)
            axes.set_yscale("symlog", linthresh=1)
            axes.set_xlim(0.4, layers + 0.6)
            axes.set_xticks(range(1, layers + 1, math.ceil(layers / 8)))
            axes.set_xlabel("layer")
            axes.grid(axis="y", alpha=0.25, color=INK, linewidth=0.6)
        panels[0].set_ylabel("activation before the softmax")
        used = dict.fromkeys(row["variant"] for row in rows)
        legend(figure, {variant: {"color": colour_of([variant]), "linewidth": 6} for variant in used})
    return figure


def entropy_over_steps(rows: Sequence[Row]) -> Figure:
    """Plot each run's entropy over steps, a line a layer, later layers more opaque, and their mean dashed."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    with mpl.rc_context(STYLE):
        figure, panels = panel_grid(len(runs), min(len(runs), 3), (4.6, 3.6), sharey=True)
        for run, axes in zip(runs, panels, strict=True):
            here = [row for row in rows if row["run"] == run]
            numbers = sorted({row["layer"] for row in here})
            for number in numbers:
                line = [row for row in here if row["layer"] == number]
                axes.plot(
                    [row["step"] for row in line],
                    [row["entropy"] for row in line],
                    color=colour_of([line[0]["variant"]]),
                    alpha=0.35 + 0.65 * number / numbers[-1],
                    marker="o",
                    markersize=3,
                    label=f"layer {number}",
                )
            steps = sorted({row["step"] for row in here})
            means = [np.mean([row["entropy"] for row in here if row["step"] == step]) for step in steps]
            axes.plot(steps, means, color=INK, linestyle="--", linewidth=2, label="mean")
            axes.set_title(run, fontsize=11)
            axes.set_xlabel("step")
            axes.grid(alpha=0.25, color=INK, linewidth=0.6)
        panels[0].set_ylabel("entropy of the map (nats)")
        used = dict.fromkeys(row["variant"] for row in rows)
        looks: dict[str, Look] = {variant: {"color": colour_of([variant])} for variant in used}
        legend(figure, looks | {"mean of the layers": {"color": INK, "linestyle": "--"}})
    return figure


def heat_maps(rows: Sequence[Row], length: int) -> Figure:
    """The maps of one layer's heads over `length` tokens, on a logarithmic scale."""
    heads = max(row["head"] for row in rows)
    side = max(row["row"] for row in rows) + 1
    least = 0.1 / length
    cells = np.full((heads, side, side), np.nan)
    for row in rows:
        cells[row["head"] - 1, row["row"], row["column"]] = max(row["weight"], least)
    norm = LogNorm(least, 1)
    with mpl.rc_context(STYLE):
        figure, panels = panel_grid(heads, min(heads, 4), (2.8, 2.9), sharex=True, sharey=True)
        for number, axes in enumerate(panels, start=1):
            extent = (0.5, length + 0.5, length + 0.5, 0.5)
            axes.imshow(cells[number - 1], norm=norm, cmap="cividis", extent=extent, interpolation="nearest")
            axes.set_title(f"head {number}", fontsize=10)
        figure.colorbar(ScalarMappable(norm, "cividis"), ax=panels, label="weight", shrink=0.8)
        figure.supxlabel("key", fontsize=11)
        figure.supylabel("query", fontsize=11)
        figure.suptitle(f"{rows[0]['model']}, layer {rows[0]['layer']}", fontsize=12)
    return figure


def panel_grid(
    count: int,
    columns: int,
    size: tuple[float, float],
    kind: dict[str, str] | None = None,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Make a grid of `count` panels of `size` inches, first row first."""
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(size[0] * columns + 0.8, size[1] * lines + 0.8), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=sharex, sharey=sharey, squeeze=False, subplot_kw=kind).flatten()
    for axes in grid[count:]:
        axes.remove()
    return figure, list(grid[:count])


def _radar(
    axes: Axes, rows: Sequence[Row], looks: dict[str, Look], outer: float, labels: Sequence[str], fontsize: int
) -> None:
    assert isinstance(axes, PolarAxes)
    angles = [2 * math.pi * place / len(NAMES) for place in range(len(NAMES))]
    for model, look in looks.items():
        drawn = {row["indicator"]: row["drawn"] for row in rows if row["model"] == model}
        if drawn:
            radii = [drawn[name] for name in NAMES]
            axes.plot([*angles, angles[0]], [*radii, radii[0]], label=model, linewidth=1.6, **look)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, labels, fontsize=fontsize)
    for angle, label in zip(angles, axes.get_xticklabels(), strict=True):
        sideways = round(math.sin(angle), 6)  # labels stand outside the circle, and clear of it
        label.set_horizontalalignment("left" if sideways > 0 else "right" if sideways < 0 else "center")
    axes.set_ylim(0, outer)
    axes.set_yticks([0.5, 1.0], ["", "1"], fontsize=fontsize - 1)
    axes.grid(alpha=0.4, color=INK, linewidth=0.6)
    axes.set_facecolor("none")


def _outer(rows: Sequence[Row]) -> float:
    return max([1.0, *(row["drawn"] for row in rows)])


def _band(axes: Axes, row: Row) -> None:
    colour = colour_of([row["variant"]])
    for low, high, opacity in BANDS:
        axes.bar(row["layer"], row[high] - row[low], 0.8, row[low], color=colour, alpha=opacity, linewidth=0)
    seen = [withStroke(linewidth=3.5, foreground="white")]  # on bars of any colour
    axes.hlines(row["median"], row["layer"] - 0.4, row["layer"] + 0.4, color=INK, linewidth=1.5, path_effects=seen)


def legend(figure: Figure, looks: dict[str, Look]) -> None:
    """Put a legend of lines below a figure."""
    lines = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    columns = min(len(lines), 3)
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK, fontsize=9)
