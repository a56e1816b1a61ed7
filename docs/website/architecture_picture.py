"""Draws which room of the package imports which, from its source: docs/images/architecture.svg.

    python docs/website/architecture_picture.py

Rooms stand in the order of the floors in pyproject.toml, the highest first, as rows and as columns. A mark is an
import, hollow where it is made in functions or for types alone. Nothing stands below the diagonal: no room imports
upward.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deconattn import durable
from deconattn.pages.palette import COLOURS, INK

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
CELL, LABELS, HEAD = 17, 116, 96
"""Pixels: side of a cell, width of the rooms' names, height of the columns' names."""


def floors() -> list[list[str]]:
    """Return the rooms of each floor, the highest floor first, as import-linter has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = project["tool"]["importlinter"]["contracts"]
    return [[room.strip() for room in floor.split("|")] for floor in contract["layers"]]


def imports() -> dict[tuple[str, str], bool]:
    """Return the pairs of rooms of which the first imports the second, and whether it does as it is itself imported."""
    found: dict[tuple[str, str], bool] = {}
    package = ROOT / "deconattn"
    for file in sorted(package.rglob("*.py")):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        for other, at_once in _imported(ast.parse(file.read_text(encoding="utf-8"))):
            if room not in ("__init__", other):
                found[room, other] = found.get((room, other), False) or at_once
    return found


def _imported(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Yield the rooms that a module imports, and whether each import is a statement of the module itself."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "deconattn":
            names = [f"deconattn.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            if name.startswith("deconattn."):
                yield name.split(".")[1], node in tree.body


def picture() -> str:
    """Return the picture as SVG."""
    levels = floors()
    rooms = [room for floor in levels for room in floor]
    place = {room: number for number, room in enumerate(rooms)}
    width, height = LABELS + CELL * len(rooms) + 8, HEAD + CELL * len(rooms) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="DejaVu Sans, sans-serif" font-size="11" fill="{INK}" role="img">',
        "<title>Which room of the package imports which, floor by floor</title>",
    ]
    first = 0
    for number, floor in enumerate(levels):
        if number % 2 == 0:
            top, tall = HEAD + CELL * first, CELL * len(floor)
            shade = f'fill="{INK}" fill-opacity="0.1"'
            parts.append(f'<rect x="0" y="{top}" width="{width}" height="{tall}" {shade}/>')
            parts.append(f'<rect x="{LABELS + CELL * first}" y="0" width="{tall}" height="{height - 30}" {shade}/>')
        first += len(floor)
    for room, number in place.items():
        middle = HEAD + CELL * number + CELL / 2
        across = LABELS + CELL * number + CELL / 2
        parts.append(f'<text x="{LABELS - 8}" y="{middle + 4}" text-anchor="end">{escape(room)}</text>')
        parts.append(f'<text transform="translate({across + 4} {HEAD - 6}) rotate(-90)">{escape(room)}</text>')
        parts.append(f'<circle cx="{across}" cy="{middle}" r="1.2"/>')
    colour = COLOURS["fixedseq"]
    for (room, other), at_once in sorted(imports().items()):
        x, y = LABELS + CELL * place[other] + CELL / 2, HEAD + CELL * place[room] + CELL / 2
        look = f'fill="{colour}"' if at_once else f'fill="none" stroke="{colour}" stroke-width="1.4"'
        parts.append(f'<circle cx="{x}" cy="{y}" r="{4.6 if at_once else 4}" {look}>')
        parts.append(f"<title>{escape(room)} imports {escape(other)}</title></circle>")
    legend = "A room imports the columns in which its row has a mark; hollow: in functions, or for types alone."
    parts.append(f'<text x="8" y="{height - 10}">{legend} Bands are floors.</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    durable.write_text(PICTURE, picture())
