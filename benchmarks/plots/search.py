"""Picture of a search's result: the increase of the loss by layer and variant, and the hybrids beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots.figures import save
from deconattn.pages.palette import STYLE, variant_colour

FOUND, RANDOM = "found", "random"


def draw_search(result: Mapping[str, Any], path: Path) -> None:
    """Draw a result of `benchmarks/search.py` to `path`, without suffix."""
    import matplotlib as mpl
    from matplotlib.colors import SymLogNorm
    from matplotlib.figure import Figure

    cells = [row for row in result["rows"] if row["kind"] == "layer" and row["increase"] is not None]
    hybrids = bars([row for row in result["rows"] if row["kind"] == "hybrid"], result["keep"])
    variants, layers = result["request"]["variants"], len(result["variants"])
    table = [[float("nan")] * len(variants) for _ in range(layers)]
    for row in cells:
        table[row["layer"] - 1][variants.index(row["name"])] = row["increase"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 0.24 * layers + 1.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
        limit = max(abs(row["increase"]) for row in cells)
        norm = SymLogNorm(linthresh=0.01, vmin=-limit, vmax=limit)
        image = left.imshow(table, aspect="auto", cmap="PuOr_r", norm=norm)
        left.set_xticks(range(len(variants)), variants, rotation=30, ha="right", fontsize=9)
        left.set_yticks(range(layers), [str(layer) for layer in range(1, layers + 1)], fontsize=8)
        left.set_ylabel("layer replaced")
        left.set_title("one layer replaced", fontsize=11)
        figure.colorbar(image, ax=left, label="increase of the loss, nats a token", shrink=0.8)
        for place, (name, (low, mean, high)) in enumerate(hybrids.items()):
            right.barh(place, mean, color=variant_colour("fixedseq" if name == FOUND else "standard"), height=0.7)
            right.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color=STYLE["text.color"], capsize=3)
        right.set_yticks(range(len(hybrids)), list(hybrids), fontsize=9)
        right.invert_yaxis()
        right.set_xlabel("increase of the loss, nats a token, and 95 %\n(random: least to most)")
        right.set_title(f"{result['keep']} of {layers} layers kept, before healing", fontsize=11)
        save(figure, path)


def bars(rows: Sequence[Mapping[str, Any]], keep: int) -> dict[str, tuple[float, float, float]]:
    """Return hybrids that keep so many layers, or one more or less, by name: ends and mean of their increase.

    Random draws are one, from the least to the most.
    """
    some = [row for row in rows if abs(row["kept"] - keep) <= 1]
    drawn = [row["increase"] for row in some if row["name"] == RANDOM]
    found = {row["name"]: (row["low"], row["increase"], row["high"]) for row in some if row["name"] != RANDOM}
    if drawn:
        found[f"{RANDOM}, {len(drawn)} draws"] = (min(drawn), sum(drawn) / len(drawn), max(drawn))
    return dict(sorted(found.items(), key=lambda one: one[1][1]))
