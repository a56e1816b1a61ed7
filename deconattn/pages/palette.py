"""The look of all pictures: one colour a variant everywhere, legible on light and on dark pages."""

from collections.abc import Iterable
from zlib import crc32

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
OTHERS = ("#7b6fd0", "#44AA99", "#5aa02c", "#b5a327", "#CC6677", "#AA4499", "#4f8fd9", "#c0563b", "#8d8f3e")
"""Colours of other variants, by their names: two may have the same."""
PLUGIN_COLOUR = "#a0724a"
"""Colour of what is of several variants."""
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
    return variant_colour(others[0]) if len(others) == 1 else PLUGIN_COLOUR


def variant_colour(name: str) -> str:
    """Colour of one variant."""
    return COLOURS.get(name) or OTHERS[crc32(name.encode()) % len(OTHERS)]
