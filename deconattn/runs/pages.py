"""Pages of runs: their curves, and of a comparison what differs, results and texts."""

from collections.abc import Sequence

from deconattn.pages.axis import short
from deconattn.pages.charts import Series, line_chart
from deconattn.pages.frame import Picture, drawn, legend_of, render
from deconattn.runs.comparison import Comparison, rows_of_runs
from deconattn.runs.curves import POINTS, Curve, Panel, binned
from deconattn.runs.run import Run

_RAW_POINTS = 5 * POINTS
_TEMPLATE = ("deconattn.runs", "runs.html.j2")


def plot_page(runs: Sequence[Run], panels: Sequence[Panel], smooth: float) -> str:
    """Return a page of curves."""
    title = "Curves of " + (", ".join(run.name for run in runs) if len(runs) <= 4 else f"{len(runs)} runs")
    lede = "As measured."
    if smooth:
        lede = f"Smoothed by an exponential moving average of weight {smooth:g}; what was measured is behind, faint."
    return render(*_TEMPLATE, title=title, lede=lede, pictures=pictures_of(panels), compared=None)


def comparison_page(comparison: Comparison, panels: Sequence[Panel], prompt: str | None) -> str:
    """Return a page of a comparison."""
    groups, runs = comparison.groups, comparison.runs
    lede = f"{len(runs)} runs in {len(groups)} groups that differ by more than their seeds."
    return render(
        *_TEMPLATE,
        title=" against ".join(group.label for group in groups)
        if len(groups) <= 3
        else f"{len(groups)} models compared",
        lede=lede if len(groups) > 1 else f"{len(runs)} runs that differ by nothing but their seeds.",
        pictures=pictures_of(panels),
        compared=comparison,
        rows=rows_of_runs(comparison),
        prompt=prompt,
    )


def pictures_of(panels: Sequence[Panel]) -> list[Picture]:
    """Return the charts of panels, those that have points."""
    pictures = []
    for panel in panels:
        lines = [_series(curve, panel) for curve in panel.curves]
        chart = line_chart(lines, panel.title, panel.x_title, panel.title, x_log=False, y_log=panel.log)
        pictures.append(Picture(chart, _caption(panel), legend_of(lines)))
    return drawn(pictures)


def _series(curve: Curve, panel: Panel) -> Series:
    points = binned(curve.points)
    says = [f"{curve.label}: {y:.4g} at {short(x, 4)} {panel.x_title}" for x, y in points]
    if curve.band:
        says = [
            f"{word} (95 %: {low:.4g} to {high:.4g})" for word, (_, low, high) in zip(says, curve.band, strict=True)
        ]
    marks = [(x, y, word) for (x, y), word in zip(points, says, strict=True)]
    drawn_dots = curve.few and len(points) <= POINTS // 4
    return Series(curve.label, curve.colour, curve.look, marks, drawn_dots, curve.band, binned(curve.raw, _RAW_POINTS))


def _caption(panel: Panel) -> str:
    words = f"{panel.title[0].upper()}{panel.title[1:]}, over {panel.x_title}"
    if any(len(curve.points) > POINTS for curve in panel.curves):
        words += "; a point is the mean of its neighbours"
    if any(curve.band for curve in panel.curves):
        words += "; means over seeds, shaded the 95 % interval"
    if panel.left_out:
        words += f"; {panel.left_out} values that cannot be drawn are left out"
    return f"{words}."
