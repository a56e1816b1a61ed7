"""The pictures, with Matplotlib: one colour a variant everywhere, legible on light and on dark pages."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.plots.data import OPERATIONS, Bar, Curve, Decoding, Operations, Throughput
from deconattn.pages.palette import COLOURS, INK, STYLE, variant_colour

DASH = 4
"""Length of a dash, in widths of the line."""


def draw_operations(operations: Operations, path: Path) -> None:
    """Time over the baseline's against sequence length, forward and forward with backward side by side."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (kind, title) in zip(
            panels, (("forward", "forward"), ("training", "forward + backward")), strict=True
        ):
            _draw_ratios(axes, operations, kind)
            axes.set_title(title, fontsize=11)
            axes.set_xlabel("tokens in a sequence")
        panels[0].set_ylabel("time / attention's")
        panels[1].legend(frameon=False, labelcolor=INK)
        figure.suptitle(operations.title, fontsize=12)
        save(figure, path)


def draw_throughput(throughput: Throughput, path: Path) -> None:
    """Tokens/s as horizontal bars, the fastest on top, peers hatched."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.2 + 0.34 * len(throughput.bars)), layout="constrained")
        axes = figure.subplots()
        for place, bar in enumerate(throughput.bars):
            _draw_bar(axes, place, bar)
        axes.set_yticks(range(len(throughput.bars)), [bar.name for bar in throughput.bars])
        axes.invert_yaxis()
        axes.margins(x=0.18, y=0.02)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:,.0f}"))
        axes.set_xlabel("tokens/s")
        axes.set_title(throughput.title, fontsize=12)
        save(figure, path)


def draw_step_times(decoding: Decoding, path: Path) -> None:
    """Milliseconds a token against tokens held: a row of panels a pattern, a column a batch."""
    patterns, batches = decoding.patterns, decoding.batches
    with mpl.rc_context(STYLE):
        size = (2 + 4.2 * len(batches), 0.8 + 3.2 * len(patterns))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(patterns), len(batches), sharex=True, sharey="col", squeeze=False)
        for row, pattern in zip(panels, patterns, strict=True):
            for axes, batch in zip(row, batches, strict=True):
                curves = decoding.of_pattern(pattern)
                values = [
                    {length: point.ms_a_token for length, point in curve.points.get(batch, {}).items()}
                    for curve in curves
                ]
                _draw_curves(axes, decoding.lengths, curves, values)
                axes.set_title(f"{pattern}, {batch} sequence{'s' if batch > 1 else ''}", fontsize=11)
            row[0].set_ylabel("ms a token")
        for axes in panels[-1]:
            axes.set_xlabel("tokens held")
        _legend(figure, decoding)
        figure.suptitle(f"A step of generation: {decoding.title}", fontsize=12)
        save(figure, path)


def draw_cache_bytes(decoding: Decoding, path: Path) -> None:
    """MiB of the largest batch's cache, with what is held once for all rows, against tokens held: a panel a pattern."""
    patterns, batch = decoding.patterns, decoding.batches[-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2 + 4.2 * len(patterns), 4.2), layout="constrained")
        panels = figure.subplots(1, len(patterns), sharex=True, sharey=True, squeeze=False)[0]
        for axes, pattern in zip(panels, patterns, strict=True):
            curves = decoding.of_pattern(pattern)
            values = [
                {
                    length: (point.cache_bytes + point.fixed_bytes) / 2**20
                    for length, point in curve.points.get(batch, {}).items()
                }
                for curve in curves
            ]
            _draw_curves(axes, decoding.lengths, curves, values)
            nothing = [
                curve.name for curve, held in zip(curves, values, strict=True) if held and not any(held.values())
            ]
            axes.set_title(pattern + (f" ({', '.join(nothing)}: none)" if nothing else ""), fontsize=11)
            axes.set_xlabel("tokens held")
        panels[0].set_ylabel("MiB of cache")
        _legend(figure, decoding)
        figure.suptitle(f"What {batch} sequences hold: {decoding.title}", fontsize=12)
        save(figure, path)


def _draw_curves(axes: Axes, lengths: list[int], curves: list[Curve], values: list[dict[int, float]]) -> None:
    """On two logarithmic axes, which cannot show a zero. Lines that coincide are dashed in turn, so that all show."""
    together: dict[tuple[str, ...], list[Curve]] = {}
    drawn = [(curve, held) for curve, held in zip(curves, values, strict=True) if any(held.values())]
    for curve, held in drawn:
        together.setdefault(tuple(f"{held[length]:.3g}" for length in sorted(held)), []).append(curve)
    for curve, held in drawn:
        look = _look(curve)
        sharing = together[tuple(f"{held[length]:.3g}" for length in sorted(held))]
        if len(sharing) > 1:
            look["linestyle"] = (DASH * sharing.index(curve), (DASH, DASH * (len(sharing) - 1)))
        axes.plot(sorted(held), [held[length] for length in sorted(held)], **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.grid(alpha=0.25, color=INK, linewidth=0.6)


def _look(curve: Curve) -> dict[str, Any]:
    """Colour by variant; the peer is dashed, and drawn over what it may hide."""
    if curve.variant is None:
        return {"color": INK, "linestyle": (0, (2, 2)), "marker": "x", "markersize": 5, "zorder": 3}
    return {"color": variant_colour(curve.variant), "marker": "o", "markersize": 4}


def _legend(figure: Figure, decoding: Decoding) -> None:
    """One for all panels: a line a variant, whatever the pattern."""
    looks = {curve.variant or decoding.peer: _look(curve) for curve in decoding.curves}
    lines = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(handles=lines, loc="outside right center", frameon=False, labelcolor=INK, fontsize=10)


def _draw_ratios(axes: Axes, operations: Operations, kind: str) -> None:
    for name, points in operations.ratios[kind].items():
        lengths = sorted(points)
        ratios = [points[length] for length in lengths]
        axes.plot(lengths, ratios, marker="o", markersize=4, color=COLOURS[OPERATIONS[name]], label=name)
    axes.axhline(1.0, color=INK, linewidth=1, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(operations.lengths))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(alpha=0.25, color=INK, linewidth=0.6)


def _draw_bar(axes: Axes, place: int, bar: Bar) -> None:
    ours = bar.variant is not None
    colour = variant_colour(bar.variant or "") if ours else INK
    axes.barh(
        place,
        bar.tokens_per_second,
        height=0.72,
        color=colour if ours else "none",
        edgecolor=colour,
        hatch=None if ours else "////",
    )
    axes.annotate(
        f"{bar.tokens_per_second:,.0f}",
        (bar.tokens_per_second, place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )


def save(figure: Figure, path: Path) -> None:
    """Write as SVG and PNG beside each other, the same bytes from the same data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".svg"), transparent=True, metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), transparent=True, dpi=160)
