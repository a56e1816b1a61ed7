"""Charts as inline SVG: lines over an axis, and dots beside names. Every mark says its value when pointed at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

from deconattn.pages.axis import Axis, labels
from deconattn.pages.palette import INK, variant_colour

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 42
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 4", "12 4", "6 2 1 2 1 2", "3 6", "1 2 5 2")
MARKERS = ("circle", "diamond", "triangle", "square")
POINTS_A_LINE = 80
NO_VARIANT = ""
"""Of a line that is no model's, such as chance."""


@dataclass(frozen=True)
class Series:
    """A series: (x, y, what it says when pointed at); `look` tells lines of one colour apart.

    Attributes:
        variant: whose colour it has; `NO_VARIANT` for the ink's.
        band: (x, low, high), shaded behind the line, such as an interval over seeds.
        raw: (x, y), drawn faintly behind the line, such as what it smooths.
        curve: (x, y), drawn in the place of lines from point to point, such as a fit.
    """

    label: str
    variant: str
    look: int
    points: Sequence[tuple[float, float, str]]
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = ()
    raw: Sequence[tuple[float, float]] = ()
    curve: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Dot:
    """A value beside a name, with its interval; `hollow` for one that is the paper's."""

    value: float
    variant: str
    look: int
    says: str
    hollow: bool = False
    interval: tuple[float, float] | None = None


def colour(variant: str) -> str:
    return INK if variant == NO_VARIANT else variant_colour(variant)


def line_chart(
    lines: Sequence[Series],
    label: str,
    x_title: str,
    y_title: str,
    x_log: bool = True,
    y_log: bool = False,
    x_ticks: Sequence[float] | None = None,
    y_within: Sequence[float] = (),
) -> Markup:
    """Lines over an axis, which has room for `y_within` too; nothing where there is not one point."""
    usable = [_usable(line, x_log, y_log) for line in lines]
    points = [point for line in usable for point in line.points]
    if not points:
        return Markup()
    x = Axis.over([point[0] for point in points], LEFT, WIDTH - RIGHT, x_log)
    edges = [edge for line in usable for _, *pair in line.band for edge in pair]
    edges += [value for line in usable for _, value in line.raw]
    y = Axis.over([*(point[1] for point in points), *edges, *y_within], HEIGHT - BOTTOM, TOP, y_log)
    parts = [_x_axis(x, TOP, HEIGHT - BOTTOM, x_title, x_ticks), _y_axis(y, y_title)]
    for line in usable:
        if line.band:
            ring = [(a, low) for a, low, _ in line.band] + [(a, high) for a, _, high in reversed(line.band)]
            corners = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in ring)
            parts.append(f'<polygon points="{corners}" fill="{colour(line.variant)}" fill-opacity="0.13"/>')
        if line.raw:
            path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.raw)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour(line.variant)}" opacity="0.3"/>')
    for line in usable:
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b, *_ in line.curve or line.points)
        dash = f' stroke-dasharray="{DASHES[line.look % len(DASHES)]}"' if line.look else ""
        drawn = f'<polyline points="{path}" fill="none" stroke="{colour(line.variant)}"{dash}/>'
        marks = [
            _marker(x(a), y(b), line.look, colour(line.variant), says, visible=line.dots) for a, b, says in line.points
        ]
        parts.append(f'<g class="series">{drawn}{"".join(marks)}</g>')
    return _svg("".join(parts), HEIGHT, label)


def dot_chart(
    rows: Sequence[tuple[str, Sequence[Dot]]], label: str, title: str, log: bool, reference: tuple[float, str] | None
) -> Markup:
    """A row a name with its dots; a dashed line at the reference, which is what its second half says."""
    rows = [(name, [dot for dot in dots if _positive(dot.value) or not log]) for name, dots in rows]
    values = [dot.value for _, dots in rows for dot in dots]
    if not values:
        return Markup()
    left, row_height = 112, 26
    height = TOP + row_height * len(rows) + BOTTOM
    x = Axis.over([*values, *([reference[0]] if reference else [])], left, WIDTH - RIGHT - 6, log)
    parts = [_x_axis(x, TOP, height - BOTTOM, title)]
    if reference:
        at, says = x(reference[0]), escape(reference[1])
        parts.append(
            f'<line class="reference" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}">'
            f"<title>{says}</title></line>"
        )
    for number, (name, dots) in enumerate(rows):
        y = TOP + row_height * (number + 0.5)
        parts.append(f'<line class="row" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="name" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for dot in dots:
            if dot.interval:  # as much of it as there is room for: one of two seeds may be wider than the chart
                low, high = (min(max(x(max(end, 1e-300) if log else end), left), WIDTH - RIGHT) for end in dot.interval)
                stroke = f'stroke="{colour(dot.variant)}" stroke-width="1.6" stroke-opacity="0.55"'
                parts.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}" {stroke}/>')
        parts += [
            _marker(x(dot.value), y, dot.look, INK if dot.hollow else colour(dot.variant), dot.says, True, dot.hollow)
            for dot in dots
        ]
    return _svg("".join(parts), height, label)


def key(variant: str, look: int, dots: bool = False) -> Markup:
    """A line's or a dot's look, for a legend."""
    if dots:
        return Markup(f'<svg class="key" viewBox="0 0 14 14">{_shape(7, 7, look, colour(variant), False)}</svg>')
    dash = f' stroke-dasharray="{DASHES[look % len(DASHES)]}"' if look else ""
    line = f'<line x1="0" x2="34" y1="7" y2="7" stroke="{colour(variant)}" stroke-width="2.5"{dash}/>'
    return Markup(f'<svg class="key" viewBox="0 0 34 14">{line}</svg>')


def thinned(points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Reduce points to at most `POINTS_A_LINE` means of neighbours, evenly spaced on a logarithmic axis."""
    pairs = [(x, y) for x, y in points if _positive(x) and math.isfinite(y)]
    if len(pairs) <= POINTS_A_LINE:
        return pairs
    low, high = math.log(pairs[0][0]), math.log(pairs[-1][0])
    bins: dict[int, list[tuple[float, float]]] = {}
    for x, y in pairs:
        place = int((math.log(x) - low) / ((high - low) or 1.0) * POINTS_A_LINE)
        # The last step belongs with those before it: alone it would show the noise of one step as a turn of the curve.
        bins.setdefault(min(place, POINTS_A_LINE - 1), []).append((x, y))
    return [(sum(x for x, _ in held) / len(held), sum(y for _, y in held) / len(held)) for held in bins.values()]


def _usable(line: Series, x_log: bool, y_log: bool) -> Series:
    kept = [
        (x, y, says)
        for x, y, says in line.points
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not x_log) and (y > 0 or not y_log)
    ]
    band = [
        (x, low, high)
        for x, low, high in line.band
        if math.isfinite(x + low + high) and (x > 0 or not x_log) and (low > 0 or not y_log)
    ]
    raw = [
        (x, y)
        for x, y in line.raw
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not x_log) and (y > 0 or not y_log)
    ]
    return replace(line, points=kept, band=band, raw=raw)


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _svg(content: str, height: float, label: str) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{content}</svg>'
    )


def _y_axis(y: Axis, title: str) -> str:
    parts = []
    ticks = y.ticks()
    for tick, says in zip(ticks, labels(ticks), strict=True):
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{says}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 11 {middle})" x="11" y="{middle}" text-anchor="middle"'
    parts.append(f'<text class="title" {turned}>{escape(title)}</text>')
    return "".join(parts)


def _x_axis(x: Axis, top: float, bottom: float, title: str, ticks: Sequence[float] | None = None) -> str:
    parts = []
    ticks = x.ticks() if ticks is None else ticks
    for tick, says in zip(ticks, labels(ticks), strict=True):
        at = x(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{says}</text>')
    centre = (x.start + x.end) / 2
    parts.append(f'<text class="title" x="{centre}" y="{bottom + 34}" text-anchor="middle">{escape(title)}</text>')
    return "".join(parts)


def _marker(x: float, y: float, look: int, fill: str, says: str, visible: bool, hollow: bool = False) -> str:
    shape = _shape(x, y, look, fill, hollow) if visible else ""
    reach = f'<circle class="reach" cx="{x:.1f}" cy="{y:.1f}" r="7"/>'
    return f'<g class="mark"><title>{escape(says)}</title>{reach}{shape}</g>'


def _shape(x: float, y: float, look: int, fill: str, hollow: bool) -> str:
    corners: tuple[tuple[float, float], ...]
    paint = f'fill="none" stroke="{fill}" stroke-width="1.6"' if hollow else f'fill="{fill}"'
    match MARKERS[look % len(MARKERS)]:
        case "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {paint}/>'
        case "diamond":
            corners = ((0, -6), (6, 0), (0, 6), (-6, 0))
        case "triangle":
            corners = ((0, -5.5), (5.5, 4.5), (-5.5, 4.5), (0, -5.5))
        case _:
            corners = ((-4.2, -4.2), (4.2, -4.2), (4.2, 4.2), (-4.2, 4.2))
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)
    return f'<polygon points="{points}" {paint}/>'
