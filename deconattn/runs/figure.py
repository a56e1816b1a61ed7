"""Curves as a picture: PNG or SVG, by Matplotlib."""

from collections.abc import Sequence
from io import BytesIO

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from deconattn.pages.charts import colour
from deconattn.pages.palette import INK, STYLE
from deconattn.runs.curves import Curve, Panel, binned

DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
COLUMNS = 3
MOST_POINTS = 2000
"""Points drawn of a line, more than a picture can show; those of a longer one are means of neighbours."""


def picture(panels: Sequence[Panel], kind: str) -> bytes:
    """Return the panels as a file's content, with a legend below; `kind` is png or svg."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    curves = list({curve.label: curve for panel in panels for curve in panel.curves}.values())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * columns, 3.3 * rows + 0.3 * (1 + len(curves) // columns)), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, panel in zip(grid, panels, strict=False):
            for curve in panel.curves:
                look = {"color": colour(curve.colour), "linestyle": DASHES[curve.look % len(DASHES)]}
                if curve.raw:
                    axes.plot(
                        *zip(*binned(curve.raw, MOST_POINTS), strict=True),
                        color=look["color"],
                        alpha=0.25,
                        linewidth=0.8,
                    )
                if curve.band:
                    axes.fill_between(*zip(*curve.band, strict=True), color=look["color"], alpha=0.15, linewidth=0)
                axes.plot(
                    *zip(*binned(curve.points, MOST_POINTS), strict=True),
                    **look,
                    linewidth=1.5,
                    marker="o" if curve.few else None,
                )
            if panel.log and panel.curves:
                axes.set_yscale("log")
            axes.set_title(panel.title, fontsize=11)
            axes.set_xlabel(panel.x_title)
            axes.grid(alpha=0.25, color=INK, linewidth=0.6)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.legend(
            handles=[_handle(curve) for curve in curves], loc="outside lower center", ncols=columns, frameon=False
        )
        content = BytesIO()
        # Without the date the same run gives the same file.
        figure.savefig(content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def _handle(curve: Curve) -> Line2D:
    return Line2D([], [], color=colour(curve.colour), linestyle=DASHES[curve.look % len(DASHES)], label=curve.label)
