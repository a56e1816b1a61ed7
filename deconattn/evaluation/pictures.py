"""Pictures of the two tasks about long texts, drawn from the numbers that results.json has."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from deconattn.analysis.figures import Look, legend, looks_of, panel_grid
from deconattn.pages.palette import COLOURS, INK, STYLE

SHADES = "cividis"
APART = tuple(COLOURS.values())[:0:-1]
"""Colours of models that share their variants."""
FINE = 32
"""Position from which on the picture has quarter octaves."""
ROOM = 1.15
"""What the upright axis has above the highest line and below the lowest; bands may be cut off."""


def looks(variants: Mapping[str, Sequence[str]]) -> dict[str, Look]:
    """A line style a model: by its variants, but where all have the same ones a colour each."""
    found = looks_of({label: list(layers) for label, layers in variants.items()})
    if len(found) > 1 and len({look["color"] for look in found.values()}) == 1:
        for place, label in enumerate(found):
            found[label] = {"color": APART[place % len(APART)]}
    return found


def perplexity_by_position(
    models: Mapping[str, Mapping[str, Any]], looks: Mapping[str, Look], made_for: Mapping[str, int | None]
) -> Figure:
    """Plot perplexity over positions, both logarithmic, with its 95 % band over sequences.

    Args:
        models: by label, what :func:`~deconattn.evaluation.position.position_numbers` gives.
        made_for: by label, the longest sequence that the model was made for, a vertical line where the text goes on.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = panel_grid(1, 1, (6.4, 4.2))
        lines = {label: _points(found) for label, found in models.items()}
        values = [one["value"] for bins in lines.values() for one in bins]
        last = 0
        for label, bins in lines.items():
            look = looks[label]
            places = [math.sqrt(one["first"] * one["last"]) for one in bins]
            axes.plot(places, [one["value"] for one in bins], **look)
            if all(one["low"] is not None for one in bins):
                low, high = ([one[end] for one in bins] for end in ("low", "high"))
                axes.fill_between(places, low, high, color=look["color"], alpha=0.12, linewidth=0)
            last = max(last, bins[-1]["last"])
        for label, length in made_for.items():
            if length is not None and length < last:
                axes.axvline(length, color=looks[label]["color"], linewidth=0.9, linestyle=(0, (1, 2)))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylim(min(values) / ROOM, max(values) * ROOM)
        axes.set_xlabel("position in the context (dotted: what a model was made for)")
        axes.set_ylabel("perplexity")
        axes.grid(alpha=0.25, color=INK, linewidth=0.6)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.4g}")
        within_a_decade = max(values) < 10 * min(values)
        axes.yaxis.set_minor_locator(LogLocator(subs=range(2, 10) if within_a_decade else (2, 5)))
        axes.yaxis.set_minor_formatter("{x:,.4g}")
        axes.tick_params(axis="y", which="minor", labelsize=8)
        legend(figure, dict(looks))
    return figure


def _points(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return octaves of positions, and quarters of them from where those have several tokens."""
    octaves = [one for one in found["octaves"] if one["first"] < FINE]
    return octaves + [one for one in found["bins"] if one["first"] > octaves[-1]["last"]]


def needle_grid(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the share of right answers by length and depth, a panel a model.

    Args:
        models: by label, what :func:`~deconattn.evaluation.needle.needle_numbers` gives.
    """
    norm = Normalize(0, 1)
    with mpl.rc_context(STYLE):
        first = next(iter(models.values()))["cells"]
        lengths, depths = (list(dict.fromkeys(cell[name] for cell in first)) for name in ("length", "depth"))
        size = (1.4 + 0.75 * len(lengths), 1.2 + 0.45 * len(depths))
        figure, panels = panel_grid(len(models), min(len(models), 3), size, sharey=True)
        for (label, found), axes in zip(models.items(), panels, strict=True):
            shares = np.array([cell["accuracy"] for cell in found["cells"]]).reshape(len(lengths), len(depths)).T
            axes.imshow(shares, norm=norm, cmap=SHADES, aspect="auto", interpolation="nearest")
            for (row, column), share in np.ndenumerate(shares):
                shade = "black" if share > 0.55 else "white"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=shade, fontsize=9)
            axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=9)
            axes.set_yticks(range(len(depths)), [f"{depth:g} %" for depth in depths], fontsize=9)
            axes.set_xlabel("tokens")
            axes.set_title(label, fontsize=10)
        panels[0].set_ylabel("depth of the needle")
        chance = next(iter(models.values()))["chance"]
        figure.colorbar(
            ScalarMappable(norm, SHADES), ax=panels, label=f"right answers (chance {chance:.2g})", shrink=0.9
        )
    return figure


def write_picture(figure: Figure, stem: Path) -> None:
    """Write a picture as STEM.svg and STEM.png."""
    with mpl.rc_context(STYLE):
        figure.savefig(f"{stem}.svg", transparent=True, metadata={"Date": None})
        figure.savefig(f"{stem}.png", transparent=True, dpi=160)
