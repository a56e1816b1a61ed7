"""Tables in the paper's layout, as Markdown and in the terminal."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from deconattn.evaluation.results import AVERAGE, Row, Score, average
from deconattn.evaluation.tasks import COLUMNS

NOTHING = "-"
Cells = list[list[str]]
"""Rows of text, the heading first."""


def benchmark_cells(rows: Sequence[Row]) -> Cells:
    """Table 1: accuracies in per cent with their standard errors, perplexities as they are."""
    titles = [column.title for column in COLUMNS]
    percent = {column.title for column in COLUMNS if column.percent} | {AVERAGE}
    titles.insert(sum(column.averaged for column in COLUMNS), AVERAGE)
    cells = [["", *titles]]
    for row in rows:
        scores: dict[str, Score | None] = {**row.scores, AVERAGE: average(row)}
        cells.append([row.label, *(_shown(scores.get(title), title in percent) for title in titles)])
    return cells


def context_cells(lengths: Sequence[int], perplexities: Sequence[tuple[str, Sequence[float]]]) -> Cells:
    """Table 4: WikiText word perplexity of each model at each context length, tokens."""
    heading = ["context", *(str(length) for length in lengths)]
    return [heading, *([label, *(_perplexity(value) for value in values)] for label, values in perplexities)]


def show(console: Console, title: str, cells: Cells) -> None:
    """Print a table in the terminal, less columns without scores; models stand side by side to fit its width."""
    table = Table()
    for position, label in enumerate(row[0] for row in cells):
        table.add_column(label, justify="right" if position else "left", overflow="fold")
    for title_and_figures in list(zip(*cells, strict=True))[1:]:
        if set(title_and_figures[1:]) != {NOTHING}:
            table.add_row(*title_and_figures)
    console.print(title, markup=False, highlight=False)
    console.print(table, markup=False)


def _shown(score: Score | None, percent: bool) -> str:
    if score is None:
        return NOTHING
    if not percent:
        return _perplexity(score.value) + ("" if score.error is None else f" ± {_perplexity(score.error)}")
    return f"{100 * score.value:.1f}" + ("" if score.error is None else f" ± {100 * score.error:.1f}")


def _perplexity(value: float) -> str:
    """Format as the paper does: one decimal below a thousand, whole numbers below 100000, then a power of ten."""
    if value < 1000:
        return f"{value:.1f}"
    if value < 1e5:
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.0e}".split("e") if math.isfinite(value) else (str(value), "")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
