"""Radar charts of attention indicators as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup, escape

from deconattn.pages.charts import DASHES, colour
from deconattn.reproduction.jobs import INDICATORS, LayerMeans

SIDE, RADIUS, RINGS = 260, 82, (0.25, 0.5, 0.75, 1.0)
LABELS = ("entropy", "conc.", "diversity", "sink", "local 0", "local 1", "local 2", "local 3")
NORMALISED = ("entropy", "concentration", "head diversity")
"""Indicators drawn from 0, the smallest layer mean of all runs, to 1, the largest (section 4.4)."""
LOCAL_FACTOR = 2.0


@dataclass(frozen=True)
class Shape:
    """A run's radii by indicator, from 0 to 1 (a little more for local focus, which is doubled)."""

    label: str
    variant: str
    look: int
    radii: dict[str, float]


def radar_chart(shapes: Sequence[Shape], label: str) -> Markup:
    """The shapes over one another."""
    parts = [f'<circle class="grid" cx="{SIDE / 2}" cy="{SIDE / 2}" r="{RADIUS * ring}"/>' for ring in RINGS]
    for number, name in enumerate(LABELS):
        x, y = _place(number, 1.0)
        parts.append(f'<line class="grid" x1="{SIDE / 2}" y1="{SIDE / 2}" x2="{x:.1f}" y2="{y:.1f}"/>')
        x, y = _place(number, 1.17)
        anchor = "middle" if abs(x - SIDE / 2) < 8 else "start" if x > SIDE / 2 else "end"
        parts.append(f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{name}</text>')
    for shape in shapes:
        places = [_place(number, min(shape.radii[name], 1.15)) for number, name in enumerate(INDICATORS)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dash = f' stroke-dasharray="{DASHES[shape.look % len(DASHES)]}"' if shape.look else ""
        paint = f'fill="{colour(shape.variant)}" fill-opacity="0.08" stroke="{colour(shape.variant)}"{dash}'
        marks = [
            f'<g class="mark"><title>{escape(f"{shape.label}: {name} {shape.radii[name]:.2f}")}</title>'
            f'<circle class="reach" cx="{x:.1f}" cy="{y:.1f}" r="7"/></g>'
            for name, (x, y) in zip(INDICATORS, places, strict=True)
        ]
        parts.append(f'<g class="series"><polygon points="{points}" {paint}/>{"".join(marks)}</g>')
    drawn = "".join(parts)
    return Markup(
        f'<svg class="radar" viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{escape(label)}">{drawn}</svg>'
    )


def radii(runs: dict[str, list[LayerMeans]]) -> dict[str, dict[str, float]]:
    """Radii of each run by indicator: its mean over layers, on the scale of all runs' layers."""
    layers = [layer for found in runs.values() for layer in found]
    bounds = {name: (min(layer[name] for layer in layers), max(layer[name] for layer in layers)) for name in NORMALISED}

    def radius(name: str, value: float) -> float:
        if name in bounds:
            low, high = bounds[name]
            return (value - low) / (high - low) if high > low else 0.5
        return value * LOCAL_FACTOR if name.startswith("local focus") else value

    return {
        run: {name: radius(name, fmean(layer[name] for layer in found)) for name in INDICATORS}
        for run, found in runs.items()
        if found
    }


def _place(number: int, radius: float) -> tuple[float, float]:
    """The first axis points up, the others follow clockwise."""
    angle = 2 * math.pi * number / len(INDICATORS)
    return SIDE / 2 + RADIUS * radius * math.sin(angle), SIDE / 2 - RADIUS * radius * math.cos(angle)
