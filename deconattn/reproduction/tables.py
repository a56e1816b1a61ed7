"""Tables of the report: gathered numbers as text, ours and the paper's, and what each column is sorted by."""

from dataclasses import dataclass, field
from typing import Any

from deconattn.config.pattern import STANDARD
from deconattn.reproduction.jobs import PERPLEXITIES
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
LOSS = "validation loss"


@dataclass(frozen=True)
class TableCell:
    """`sort` is empty for what has no place in an order; it comes last then."""

    ours: str
    error: str = ""
    paper: str = ""
    sort: float | str = ""


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
    if row["skipped"]:
        words.append("skipped")
    return ", ".join(words)


def lines_of(table: dict[str, Any]) -> list[TableRow]:
    """The rows of a gathered table."""
    several = len({row["size"] for row in table["rows"] if "run" in row}) > 1
    lines = []
    for row in table["rows"]:
        cells = [_cell(title, row["ours"].get(title), row["paper"].get(title)) for title in table["columns"]]
        lines.append(TableRow(row["label"], layers_of(row, several), row.get("variant"), row["state"], cells))
    return lines


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


def is_perplexity(title: str) -> bool:
    """Table 4's columns are context lengths, and hold perplexities."""
    return title in PERPLEXITIES or title.isdecimal()


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
    error = None if ours is None else ours["stderr"]
    printed = "" if paper is None else _as_printed(paper) if is_perplexity(title) else f"{paper:.1f}"
    return TableCell(
        ours=shown(title, value),
        error="" if error is None else shown(title, error),
        paper=printed,
        sort="" if value is None else value,
    )
