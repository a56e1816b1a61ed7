"""The look of all pictures: one colour a variant everywhere, legible on light and on dark pages."""

from collections.abc import Iterable

from deconattn.config.pattern import STANDARD

COLOURS = {
    "standard": "#8a8a8a",
    "mlp": "#CC79A7",
    "approximate": "#E69F00",
    "nonapproximate": "#009E73",
    "rndemb": "#56B4E9",
    "fixedseq": "#0072B2",
    "staticemb": "#D55E00",
}
"""Okabe and Ito's colours for the colour-blind, without black and yellow, which one of the pages would swallow."""
PLUGIN_COLOUR = "#a0724a"
INK = "#7d828a"
"""Colour of text and axes: a grey that stands out from white and dark pages alike; backgrounds are transparent."""
STYLE = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "font.size": 11, "font.family": "DejaVu Sans",
    "svg.fonttype": "none", "svg.hashsalt": "deconattn", "hatch.linewidth": 0.6,
}  # fmt: skip
"""Matplotlib's rc parameters."""


def colour_of(variants: Iterable[str]) -> str:
    """Colour of a layer, or of a model by its layers: its one variant's beside standard; several get a plugin's."""
    others = sorted(set(variants) - {STANDARD}) or [STANDARD]
    return COLOURS.get(others[0], PLUGIN_COLOUR) if len(others) == 1 else PLUGIN_COLOUR
