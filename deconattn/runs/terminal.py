"""Curves in a terminal: lines of braille dots in colour, or of letters where there is no colour or no braille."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deconattn.pages.axis import Axis, labels
from deconattn.pages.palette import COLOURS, INK, variant_colour
from deconattn.runs.curves import Panel
from deconattn.shown import one_line

MARGIN = 8
"""Columns for the numbers of the upright axis."""
NARROWEST, ROWS, FEWEST_ROWS = 50, 12, 5
"""Columns of a panel, at least; its rows, and how few they may be where all is to fit a screen."""
AROUND = 5
"""Rows of a panel's title, axis and the space below it."""
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Bits of a braille character's dots, from the top, in its left and its right column.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


@dataclass
class _Canvas:
    """Cells of a character, each of 2 x 4 dots; what is drawn last has the cell's colour."""

    columns: int
    rows: int
    bits: dict[tuple[int, int], int] = field(default_factory=dict)
    styles: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)

    def line(self, points: Sequence[tuple[float, float]], style: str, letter: str) -> None:
        """Draw through places given in dots, from the upper left."""
        for (x, y), (right, lower) in zip(points, points[1:] or points, strict=False):
            count = max(1, round(max(abs(right - x), abs(lower - y))))
            for part in range(count + 1):
                self._dot(x + (right - x) * part / count, y + (lower - y) * part / count, style, letter)

    def _dot(self, x: float, y: float, style: str, letter: str) -> None:
        column = min(max(int(x), 0), 2 * self.columns - 1)
        row = min(max(int(y), 0), 4 * self.rows - 1)
        cell = row // 4, column // 2
        self.bits[cell] = self.bits.get(cell, 0) | _DOTS[column % 2][row % 4]
        self.styles[cell] = style, letter

    def row(self, number: int, braille: bool) -> Text:
        """Return a row of characters."""
        text = Text()
        for column in range(self.columns):
            cell = number, column
            style, letter = self.styles.get(cell, ("", " "))
            text.append(chr(0x2800 + self.bits[cell]) if braille and cell in self.bits else letter, style)
        return text


Name = tuple[str, str]
"""Of a line: its label, and whose variant's colour it has."""


@dataclass(frozen=True)
class _Looks:
    """How lines are drawn.

    Attributes:
        braille: as dots; else as letters.
    """

    styles: dict[Name, str]
    letters: dict[Name, str]
    braille: bool


def drawing(panels: Sequence[Panel], console: Console, screen: bool = False) -> RenderableType:
    """Return the panels beside and below each other, as many as fit the console's width, and a legend.

    Args:
        screen: all of it fits the console's height; what does not is named.
    """
    names = list(dict.fromkeys((curve.label, curve.colour) for panel in panels for curve in panel.curves))
    letters = {name: LETTERS[place % len(LETTERS)] for place, name in enumerate(names)}
    one_look = len(names) > 1 and console.color_system is None
    looks = _Looks(_styles(names), letters, console.encoding.lower().startswith("utf") and not one_look)
    across = max(1, min(len(panels), console.width // NARROWEST))
    legend, rows = Text(), ROWS
    if screen:
        height = console.height - len(names) - 2
        fitting = across * max(1, height // (AROUND + FEWEST_ROWS))
        panels, left_out = panels[:fitting], panels[fitting:]
        rows = max(FEWEST_ROWS, min(ROWS, height // -(-len(panels) // across) - AROUND))
        if left_out:
            legend.append(f"not on this screen: {', '.join(panel.metric for panel in left_out)} (--metric)\n", "dim")
    grid = Table.grid(padding=(0, 2, 1, 0))
    drawn = [_panel(panel, console.width // across - 2, rows, looks) for panel in panels]
    for first in range(0, len(drawn), across):
        grid.add_row(*drawn[first : first + across])
    for name in names:
        mark = "━━ " if looks.braille else f"{letters[name]} "
        legend.append(mark, looks.styles[name]).append(f"{one_line(name[0])}\n")
    legend.rstrip()
    return Group(grid, legend)


def _panel(panel: Panel, width: int, rows: int, looks: _Looks) -> RenderableType:
    title = Text(one_line(panel.title)[:width], "bold")
    points = [point for curve in panel.curves for point in curve.points]
    if not points:
        return Group(title, Text("nothing to draw yet"))
    columns = max(10, width - MARGIN - 1)
    x = Axis.over([point[0] for point in points], 0, 2 * columns)
    y = Axis.over([point[1] for point in points], 4 * rows, 0, panel.log)
    canvas = _Canvas(columns, rows)
    for curve in panel.curves:
        name = curve.label, curve.colour
        canvas.line([(x(a), y(b)) for a, b in curve.points], looks.styles[name], looks.letters[name])
    upright = y.ticks()
    named = {int(y(tick)) // 4: says for tick, says in zip(upright, labels(upright), strict=True)}
    side, corner, along = ("│", "└", "─") if looks.braille else ("|", "+", "-")
    lines = [
        Text(f"{named.get(row, ''):>{MARGIN}}", INK).append(side).append(canvas.row(row, looks.braille))
        for row in range(rows)
    ]
    lines.append(Text(" " * MARGIN + corner + along * columns, INK))
    lines.append(Text(" " * (MARGIN + 1) + _named_below(x, columns), INK))
    lines.append(Text(panel.x_title.rjust(width), INK))
    return Group(title, *lines)


def _named_below(x: Axis, columns: int) -> str:
    """Return the row of numbers under an axis, without those that would run into others."""
    row, end = "", -1
    ticks = x.ticks()
    for tick, says in zip(ticks, labels(ticks), strict=True):
        start = int(x(tick)) // 2 - len(says) // 2
        if start > end and 0 <= start <= columns - len(says):
            row = row.ljust(start) + says
            end = start + len(says)
    return row


def _styles(names: Sequence[Name]) -> dict[Name, str]:
    """Return a style for each line: its colour, or another that is left, since dashes do not show here."""
    taken: set[str] = set()
    styles = {}
    for name in names:
        own = variant_colour(name[1]) if name[1] else INK
        if own in taken:
            own = next((colour for colour in COLOURS.values() if colour not in taken), own)
        taken.add(own)
        styles[name] = own
    return styles
