"""A comparison as a table: in a terminal, where a group has a column, and in Markdown."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from deconattn.runs.comparison import Cell, Comparison, rows_of_runs
from deconattn.shown import markdown_text, one_line

_CAPTION = (
    "Means over seeds ± half the 95 % interval; differences from the first group, paired by seed, ± half the "
    "{level:.4g} % interval (* it excludes zero). Training loss: of the last twentieth of the steps."
)


def comparison_table(comparison: Comparison) -> Table:
    """Tabulate a comparison for a terminal."""
    table = Table(caption=_CAPTION.format(level=100 * comparison.level), caption_justify="left")
    table.add_column("")
    for group in comparison.groups:
        table.add_column(Text(one_line(group.label)), justify="right", overflow="fold")
    for title, columns in _parts(comparison):
        table.add_section()
        if title:
            table.add_row(Text(title, "italic"))
        for name, cells in columns:
            table.add_row(Text(one_line(name)), *(Text(one_line(cell.text)) for cell in cells))
    return table


def comparison_markdown(comparison: Comparison, prompt: str | None) -> str:
    """Return a comparison in Markdown."""
    parts = []
    for title, columns in _parts(comparison):
        heading = ["", *(group.label for group in comparison.groups)]
        rows = [heading, *([name, *(cell.text for cell in cells)] for name, cells in columns)]
        lines = ["| " + " | ".join(markdown_text(text) for text in row) + " |" for row in rows]
        lines.insert(1, "| --- |" + " ---: |" * len(comparison.groups))
        parts.append((f"## {markdown_text(title)}\n\n" if title else "# Runs compared\n\n") + "\n".join(lines))
    parts.append(markdown_text(_CAPTION.format(level=100 * comparison.level)))
    parts += [markdown_text(note) for note in comparison.notes]
    for name, text in comparison.texts.items():
        quoted = "\n".join(f"    {one_line(line)}" for line in text.splitlines())
        parts.append(f"## {markdown_text(name)} continues {markdown_text(repr(prompt))}\n\n{quoted}")
    names = ("run", "seed", "state", "training loss", "folder")
    lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in (names, *rows_of_runs(comparison))]
    lines.insert(1, "| --- | ---: | --- | ---: | --- |")
    return "\n\n".join([*parts, "## Runs\n\n" + "\n".join(lines)]) + "\n"


def _parts(comparison: Comparison) -> Iterator[tuple[str, list[tuple[str, list[Cell]]]]]:
    """Yield the table's parts, each with its title and its rows: a name and a cell a group."""
    for title, columns in (
        ("", [*comparison.settings, *comparison.facts]),
        ("results", comparison.results),
        (f"difference from {comparison.groups[0].label}", comparison.differences),
    ):
        if columns:
            yield title, [(column.title, column.cells) for column in columns]
