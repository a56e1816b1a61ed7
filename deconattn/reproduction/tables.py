"""Tables of the report: gathered numbers as text, ours and the paper's, and what each column is sorted by."""

from dataclasses import dataclass, field
from typing import Any

from deconattn.config.pattern import STANDARD
from deconattn.reproduction.cells import LOSS, is_perplexity
from deconattn.reproduction.plans import UNIFORM
from deconattn.reproduction.progress_view import NOTHING

HEADINGS = {
    "1": "Table 1: uniform models, hybrids, and hybrids without their variant layers",
    "2": "Table 2: large hybrids",
    "3": "Table 3: grouped-query attention",
    "4": "Table 4: WikiText perplexity by length of context",
    "figure3": "Figure 3: where the standard layers stand",
    "figure4": "Figure 4: sizes",
}


@dataclass(frozen=True)
class TableCell:
    """A number: ours with its standard error or interval, and the paper's.

    `sort` is empty for what has no place in an order; it comes last then. `clear` marks a difference whose interval
    excludes none.
    """

    ours: str
    error: str = ""
    paper: str = ""
    sort: float | str = ""
    clear: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row: what it is called, its swatch, and its cells."""

    label: str
    layers: str
    variant: str | None
    state: str
    cells: list[TableCell] = field(default_factory=list)


def layers_of(row: dict[str, Any], several_sizes: bool = False) -> str:
    """Describe which layers are the variant."""
    if "run" not in row:
        return ""
    words = [size_name(row["size"])] if several_sizes else []
    if row["variant"] != STANDARD:
        words.append(row["pattern"] if row["pattern"] == UNIFORM else f"hybrid, {row['pattern']}")
    if row["key_value_heads"]:
        words.append(f"{row['key_value_heads']} key/value heads")
    if row.get("told_tokens"):
        words.append(f"{row['told_tokens']:,} tokens")
    if row["skipped"]:
        words.append("skipped")
    return ", ".join(words)


def lines_of(table: dict[str, Any]) -> list[TableRow]:
    """The rows of a gathered table."""
    several = len({row["size"] for row in table["rows"] if "run" in row}) > 1
    lines = []
    for row in table["rows"]:
        cells = [_cell(title, row["ours"].get(title), row["paper"].get(title)) for title in table["columns"]]
        lines.append(TableRow(row["label"], layers_of(row, several), row.get("variant"), _state(row), cells))
    return lines


def differences_of(table: dict[str, Any]) -> list[TableRow]:
    """The rows of a gathered table's paired differences from standard attention; none where no interval is known."""
    rows = [row for row in table["rows"] if row.get("differences")]
    if not any(found["low"] is not None for row in rows for found in row["differences"].values()):
        return []
    several = len({row["size"] for row in rows}) > 1
    return [
        TableRow(
            row["label"],
            layers_of(row, several),
            row["variant"],
            "done",
            [_difference(title, row["differences"].get(title)) for title in table["columns"]],
        )
        for row in rows
    ]


def _state(row: dict[str, Any]) -> str:
    """What is missing of a row; `done` where nothing is."""
    seeds = row.get("seeds_done")
    return (
        f"{row['state']}, {seeds} {'seed' if seeds == 1 else 'seeds'} done"
        if seeds and row["state"] != "done"
        else row["state"]
    )


def size_name(size: str) -> str:
    """Format a size as text has it: 500M."""
    return size.upper() if size[0].isdigit() else size


def shown(title: str, value: float | None) -> str:
    """A number of a column: an accuracy, which is a fraction, in per cent."""
    if value is None:
        return NOTHING
    if title == LOSS:
        return f"{value:.3f}"
    return perplexity(value) if is_perplexity(title) else f"{100 * value:.1f}"


def perplexity(value: float) -> str:
    """Format as the paper does: one decimal below a thousand, whole numbers below 100000, then a power of ten."""
    if value < 1000:
        return f"{value:.1f}"
    if value < 1e5:
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _as_printed(value: float) -> str:
    """The paper rounds some perplexities to one digit, and prints those as powers of ten."""
    return f"{value:.0e}".replace("e+0", "e") if value >= 1000 and value == float(f"{value:.0e}") else perplexity(value)


def duration(seconds: float | None) -> str:
    """Format seconds as h:mm:ss."""
    if not seconds:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _cell(title: str, ours: dict[str, Any] | None, paper: float | None) -> TableCell:
    value = None if ours is None else ours["value"]
    printed = "" if paper is None else _as_printed(paper) if is_perplexity(title) else f"{paper:.1f}"
    return TableCell(shown(title, value), error_of(title, ours or {}), printed, "" if value is None else value)


def error_of(title: str, cell: dict[str, Any]) -> str:
    """Format the interval over seeds; where there is none, the standard error."""
    if cell.get("low") is not None:
        return f"[{shown(title, cell['low'])}, {shown(title, cell['high'])}]"
    return "" if cell.get("stderr") is None else f"± {shown(title, cell['stderr'])}"


def _difference(title: str, found: dict[str, Any] | None) -> TableCell:
    if found is None:
        return TableCell(NOTHING)
    value, low, high = (found[name] for name in ("value", "low", "high"))
    text = _ratio if found["ratio"] else lambda number: _signed(shown(title, abs(number)), number)
    if low is None:
        return TableCell(text(value), sort=value)
    none = 1.0 if found["ratio"] else 0.0
    return TableCell(text(value), f"[{text(low)}, {text(high)}]", sort=value, clear=not low <= none <= high)


def _signed(size: str, value: float) -> str:
    if not size.strip("0."):
        return size
    return f"\N{MINUS SIGN}{size}" if value < 0 else f"+{size}"


def _ratio(value: float) -> str:
    """Format a ratio of perplexities, with two decimals where they can be seen."""
    return f"\N{MULTIPLICATION SIGN}{value:.2f}" if value < 100 else f"\N{MULTIPLICATION SIGN}{perplexity(value)}"
