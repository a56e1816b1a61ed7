"""Charts of the page: accuracy by difficulty with bands, and accuracy by the learning rates that were tried."""

from collections.abc import Sequence
from statistics import fmean

from markupsafe import Markup

from deconattn.pages.charts import NO_VARIANT, Series, line_chart
from deconattn.pages.frame import Picture, drawn, legend_of
from deconattn.probing.findings import BASELINE, Cell, Findings, Kind, Problem, percent
from deconattn.probing.request import UNIFORM

LINES_A_CHART = 14
LOG_FROM = 8
"""An axis is logarithmic where its last value is so many times its first."""
CLOSE = 0.01
"""Rates whose accuracies differ by less are as good as one another."""
WHOLE = (0.0, 100.0)


def problem_pictures(findings: Findings, problem: Problem) -> list[Picture]:
    """Charts of a problem: for each size accuracy by difficulty, and by rate where several were tried."""
    found = []
    for size in findings.sizes:
        kinds = [kind for kind in findings.kinds if (problem, kind, size) in findings.cells]
        for group in _groups(findings, kinds) if kinds else ():
            found += [_difficulties(findings, problem, size, group), _rates(findings, problem, size, group)]
    return drawn(found)


def _groups(findings: Findings, kinds: Sequence[Kind]) -> list[list[Kind]]:
    """All kinds in one chart; where they would crowd it, one a pattern; where those would, one a relaxed principle.

    Standard attention is in each.
    """
    if len(kinds) <= LINES_A_CHART:
        return [list(kinds)]
    found = []
    for pattern in dict.fromkeys(kind.pattern for kind in kinds):
        alike = [kind for kind in kinds if kind.pattern == pattern or kind == BASELINE]
        whole = len(alike) <= LINES_A_CHART
        for group in [""] if whole else dict.fromkeys(findings.relaxed[kind] for kind in alike if kind != BASELINE):
            found.append([k for k in alike if whole or k == BASELINE or findings.relaxed[k] == group])
    return found


def _difficulties(findings: Findings, problem: Problem, size: str, kinds: Sequence[Kind]) -> Picture:
    levels, axis = findings.difficulties[problem], findings.axes[problem]
    cells = {kind: findings.cell(problem, kind, size) for kind in kinds}
    lines = [_line(cell, kind, _look(findings, kind), axis) for kind, cell in cells.items()]
    usable = any(line.points for line in lines)
    known = max(cells.values(), key=lambda cell: len(cell.scores))
    chances = [(level, chance) for level in known.scores if (chance := known.chance(level)) is not None]
    points = [(float(a), 100 * b, f"chance: {100 * b:.1f} % at {axis} = {a}") for a, b in sorted(chances)]
    lines.append(Series("chance", NO_VARIANT, 2, points))
    label = f"{_title(findings, problem, size, kinds)}: accuracy by {axis}"
    log = levels[0] > 0 and levels[-1] >= LOG_FROM * levels[0]
    ticks = [float(level) for level in levels]
    chart = line_chart(lines, label, axis, "accuracy, %", log, x_ticks=ticks, y_within=WHOLE) if usable else Markup()
    return Picture(chart, f"{label}; means over seeds, shaded their 95 % intervals.", legend_of(lines))


def _line(cell: Cell, kind: Kind, look: int, axis: str) -> Series:
    points, band = [], []
    for level in sorted(cell.scores):
        found = cell.interval(level)
        assert found is not None
        seeds = f"{found.count} {'seed' if found.count == 1 else 'seeds'}"
        points.append((float(level), 100 * found.mean, f"{kind.label}: {percent(found)} at {axis} = {level}, {seeds}"))
        if found.low is not None and found.high is not None:
            band.append((float(level), 100 * max(found.low, 0.0), 100 * min(found.high, 1.0)))
    return Series(kind.label, kind.variant, look, points, dots=True, band=band)


def _rates(findings: Findings, problem: Problem, size: str, kinds: Sequence[Kind]) -> Picture:
    """Accuracy over difficulties by rate, on the seed of the sweep; a mark stands at the rate that was taken."""
    axis = findings.axes[problem]
    lines, taken, edges = [], [], []
    for kind in kinds:
        cell = findings.cell(problem, kind, size)
        by_rate, look = rates(cell, list(cell.scores)), _look(findings, kind)
        says = {rate: f"{kind.label}: {100 * accuracy:.1f} % at rate {rate:g}" for rate, accuracy in by_rate.items()}
        lines.append(Series(kind.label, kind.variant, look, [(x, 100 * y, says[x]) for x, y in by_rate.items()]))
        marks = []
        for rate, levels in rates_taken(cell).items():
            # A task whose difficulties are trained apart has a rate for each.
            where = "" if len(levels) == len(cell.scores) else f" at {axis} = {', '.join(map(str, levels))}"
            if rate in by_rate:
                marks.append((rate, 100 * by_rate[rate], f"{says[rate]}, taken{where}"))
            if at_edge(rates(cell, levels), rate):
                edges.append(f"{kind.label}{where}")
        taken.append(Series(kind.label, kind.variant, look, marks, dots=True))
    label = f"{_title(findings, problem, size, kinds)}: accuracy over all difficulties by learning rate"
    caption = f"{label}, on the seed of the sweep; a mark stands at the rate that was taken, "
    caption += "the best of that seed, which flatters it a little."
    if edges:
        caption += f" Best at the edge of what was tried, so that another rate might do better: {', '.join(edges)}."
    ticks = sorted({x for line in lines for x, _, _ in line.points})
    chart = line_chart([*lines, *taken], label, "peak learning rate", "accuracy, %", x_ticks=ticks, y_within=WHOLE)
    return Picture(chart, caption, legend_of(lines))


def rates(cell: Cell, levels: Sequence[int]) -> dict[float, float]:
    """Return the mean accuracy over some difficulties by rate, in rising order, on the seed of the sweep.

    A rate that failed, or is not done, at one of them is left out.
    """
    tried: dict[float, list[float]] = {}
    for row in cell.sweep:
        if row.accuracy is not None and row.difficulty in levels:
            tried.setdefault(row.lr, []).append(row.accuracy)
    return {rate: fmean(tried[rate]) for rate in sorted(tried) if len(tried[rate]) == len(levels)}


def rates_taken(cell: Cell) -> dict[float, list[int]]:
    """Return the difficulties for which each rate of the sweep was chosen."""
    found: dict[float, list[int]] = {}
    for row in cell.sweep:
        if row.chosen:
            found.setdefault(row.lr, []).append(row.difficulty)
    return {rate: sorted(levels) for rate, levels in found.items()}


def at_edge(by_rate: dict[float, float], rate: float) -> bool:
    """Tell whether a rate is the first or the last that was tried, and another one beyond it might do better.

    It might where this one is clearly better than the one beside it, and is not nearly perfect.
    """
    tried = list(by_rate)
    beside = {tried[0]: tried[1], tried[-1]: tried[-2]}.get(rate) if len(tried) > 1 else None
    return beside is not None and by_rate[beside] + CLOSE < by_rate[rate] < 1 - CLOSE


def _title(findings: Findings, problem: Problem, size: str, kinds: Sequence[Kind]) -> str:
    """Name of a chart; its pattern, and what its variants relax, where it is one of several."""
    parts = [findings.label(problem), size]
    others = [kind for kind in kinds if kind != BASELINE]
    patterns = list(dict.fromkeys(kind.pattern for kind in others)) or [UNIFORM]
    if len({kind.pattern for kind in findings.kinds}) > len(patterns):
        parts += patterns
    relaxed = {findings.relaxed[kind] for kind in others}
    if len(relaxed) == 1 and len(findings.kinds) > LINES_A_CHART:
        parts.append(f"relaxing {relaxed.pop() or 'what nobody has said'}")
    return ", ".join(parts)


def _look(findings: Findings, kind: Kind) -> int:
    """Index of a pattern's dash, the same in all charts; uniform models are drawn solid."""
    return list(dict.fromkeys([UNIFORM, *(other.pattern for other in findings.kinds)])).index(kind.pattern)
