"""Picture of a planner's sweep: tokens a second by number of GPUs, a line for each length."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from deconattn.cost.recommend import LARGEST_BUBBLE
from deconattn.cost.sweep import Cell
from deconattn.pages.palette import COLOURS, STYLE


def draw_sweep(cells: Sequence[Cell], path: Path) -> None:
    """Draw a sweep, both axes logarithmic; open circles have a bubble above the limit."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        lengths = list(dict.fromkeys(cell.length for cell in cells))
        for length, colour in zip(lengths, list(COLOURS.values())[1:] * len(lengths), strict=False):
            points = [(cell, cell.best) for cell in cells if cell.length == length and cell.best is not None]
            gpus, rates = [cell.gpus for cell, _ in points], [best.tokens_per_second for _, best in points]
            axes.plot(gpus, rates, color=colour, label=f"{length:,} tokens")
            for (_, best), x, y in zip(points, gpus, rates, strict=True):
                much = best.time.bubble_share > LARGEST_BUBBLE
                axes.plot(x, y, "o", color=colour, markerfacecolor="none" if much else colour)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        counts = sorted({cell.gpus for cell in cells})
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.set_xlabel("GPUs")
        axes.set_ylabel("tokens/s")
        axes.legend(frameon=False)
        figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None)
