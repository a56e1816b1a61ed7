"""The pictures of mechanisms, drawn from the rows that lie beside them."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from deconattn.analysis.figures import Look, legend, panel_grid
from deconattn.analysis.findings import Row
from deconattn.analysis.induction import SCORES
from deconattn.pages.palette import INK, STYLE

MARKERS = {"zero": "o", "mean": "s", "identity": "^"}
SHADES = {"zero": "#0072B2", "mean": "#E69F00", "identity": "#009E73"}


def induction_heads(rows: Sequence[Row]) -> Figure:
    """Draw both scores of each model's heads, a heat map each; layers without a map are hatched."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    with mpl.rc_context(STYLE):
        figure, axes = panel_grid(2 * len(models), 2, (3.4, 2.9))
        for place, (panel, (model, score)) in enumerate(
            zip(axes, ((model, score) for model in models for score in SCORES), strict=True)
        ):
            here = [row for row in rows if (row["model"], row["score"]) == (model, score)]
            image = _heads(panel, here, "value", Normalize(0, 1), "cividis")
            panel.set_title(f"{model}: {score}", fontsize=10)
            if place == 2 * len(models) - 1:
                figure.colorbar(image, ax=axes, label="score", shrink=0.8)
    return figure


def loss_by_position(rows: Sequence[Row], looks: dict[str, Look]) -> Figure:
    """Plot loss over positions, a line a model, with its 95 % band over sequences."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = panel_grid(1, 1, (6.4, 4.2))
        for model, look in looks.items():
            here = [row for row in rows if row["model"] == model]
            positions = [math.sqrt(row["first"] * row["last"]) for row in here]
            axes.plot(positions, [row["loss"] for row in here], **look)
            if all(row["loss low"] is not None for row in here):
                low, high = ([row[f"loss {end}"] for row in here] for end in ("low", "high"))
                axes.fill_between(positions, low, high, color=look["color"], alpha=0.2, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("position in the context")
        axes.set_ylabel("loss (nats)")
        axes.grid(alpha=0.25, color=INK, linewidth=0.6)
        legend(figure, looks)
    return figure


def ablated_mixers(rows: Sequence[Row]) -> Figure:
    """Plot what the loss gains by each replacement of each layer's mixer, with 95 % intervals, a panel a model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    with mpl.rc_context(STYLE):
        figure, axes = panel_grid(len(models), min(len(models), 3), (4.2, 3.4), sharey=True)
        for model, panel in zip(models, axes, strict=True):
            for offset, (name, marker) in enumerate(MARKERS.items()):
                here = [row for row in rows if (row["model"], row["replaced by"]) == (model, name)]
                places = [row["layer"] + 0.15 * (offset - 1) for row in here]
                values = [row["difference"] for row in here]
                spans = [_span(row, values[place]) for place, row in enumerate(here)]
                panel.errorbar(places, values, np.array(spans).T, fmt=marker, color=SHADES[name], markersize=4)
            panel.axhline(0, color=INK, linewidth=0.8)
            panel.set_yscale("symlog", linthresh=0.01)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.set_xlabel("layer")
            panel.set_title(model, fontsize=11)
            panel.grid(axis="y", alpha=0.25, color=INK, linewidth=0.6)
        axes[0].set_ylabel("loss gained (nats)")
        looks: dict[str, Look] = {
            name: {"color": SHADES[name], "marker": marker, "linestyle": ""} for name, marker in MARKERS.items()
        }
        legend(figure, looks)
    return figure


def ablated_heads(rows: Sequence[Row]) -> Figure:
    """Draw what the loss gains by each head replaced by its mean, a heat map a model; hatched: no heads."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    shown = [row for row in rows if row["replaced by"] in ("mean", None)]
    largest = max((abs(row["difference"]) for row in shown if row["difference"] is not None), default=0.0) or 1.0
    norm = SymLogNorm(largest / 100, vmin=-largest, vmax=largest)
    with mpl.rc_context(STYLE):
        figure, axes = panel_grid(len(models), min(len(models), 3), (3.6, 2.9))
        for model, panel in zip(models, axes, strict=True):
            image = _heads(panel, [row for row in shown if row["model"] == model], "difference", norm, "RdBu_r")
            panel.set_title(model, fontsize=10)
        figure.colorbar(image, ax=axes, label="loss gained (nats), head by its mean", shrink=0.8)
    return figure


def map_agreement(rows: Sequence[Row]) -> Figure:
    """Draw the CKA of every two layers, of all models in one matrix."""
    pairs = [row for row in rows if row["other model"] is not None]
    names = list(dict.fromkeys((row["model"], row["layer"]) for row in pairs))
    place = {name: number for number, name in enumerate(names)}
    cells = np.full((len(names), len(names)), np.nan)
    for row in pairs:
        one, other = place[row["model"], row["layer"]], place[row["other model"], row["other layer"]]
        cells[one, other] = cells[other, one] = np.nan if row["cka"] is None else row["cka"]
    with mpl.rc_context(STYLE):
        side = min(12.0, 3.6 + 0.16 * len(names))
        figure, (axes,) = panel_grid(1, 1, (side, side))
        image = axes.imshow(cells, norm=Normalize(0, 1), cmap="cividis", interpolation="nearest")
        models = list(dict.fromkeys(model for model, _ in names))
        starts = [min(place[name] for name in names if name[0] == model) for model in models]
        for start in starts[1:]:
            axes.axhline(start - 0.5, color="white", linewidth=1.5)
            axes.axvline(start - 0.5, color="white", linewidth=1.5)
        ends = [*starts[1:], len(names)]
        middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
        axes.set_xticks(middles, models, rotation=30, ha="right", fontsize=8)
        axes.set_yticks(middles, models, fontsize=8)
        figure.colorbar(image, ax=axes, label="CKA of maps", shrink=0.8)
        axes.set_title("layers in order, from the top left", fontsize=10)
    return figure


def _heads(axes: Axes, rows: Sequence[Row], field: str, norm: Normalize, colours: str) -> Any:
    """Draw layers x heads."""
    layers, heads = max(row["layer"] for row in rows), max([row["head"] for row in rows if row["head"]] or [1])
    cells = np.full((layers, heads), np.nan)
    for row in rows:
        if row["head"] is None:
            corner = (0.5, row["layer"] - 0.5)
            axes.add_patch(Rectangle(corner, heads, 1, fill=False, hatch="////", edgecolor=INK, linewidth=0))
        else:
            cells[row["layer"] - 1, row["head"] - 1] = row[field]
    extent = (0.5, heads + 0.5, layers + 0.5, 0.5)
    image = axes.imshow(cells, norm=norm, cmap=colours, extent=extent, interpolation="nearest", aspect="auto")
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return image


def _span(row: Row, value: float) -> tuple[float, float]:
    if row["difference low"] is None:
        return 0.0, 0.0
    return value - row["difference low"], row["difference high"] - value
