"""Tables in the paper's layout, as Markdown and in the terminal."""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from deconattn.evaluation.results import AVERAGE, Row, Score, average, figures_of
from deconattn.evaluation.tasks import BENCHMARKS, COLUMNS

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


def other_cells(rows: Sequence[Row], found: dict[str, Any]) -> Cells:
    """Every metric of every other task, as the harness gives it, with shots, the task's version and documents.

    Args:
        found: the harness's result of one of the models.
    """
    figures = [figure for figure in figures_of(found) if figure.task not in BENCHMARKS]
    facts: list[list[str]] = [["", *(figure.title for figure in figures)]]
    for name, values in (("shots", found["n-shot"]), ("version", found["versions"])):
        facts.append([name, *(str(values.get(figure.task, NOTHING)) for figure in figures)])
    counts = {task: str(count["effective"]) for task, count in found["n-samples"].items()}
    facts.append(["documents", *(counts.get(figure.task, NOTHING) for figure in figures)])
    return facts + [
        [row.label, *(plain(row.scores.get(figure.title)) for figure in figures)] for row in rows
    ]  # fmt: skip


def perturbed_cells(rows: Sequence[tuple[str, dict[str, Score], dict[str, Score]]]) -> Cells:
    """Scores on perturbed texts and, in brackets, what they are less the clean ones, with its standard error.

    Args:
        rows: label, scores and changes of each model, by title; all have the same titles.
    """
    percent = {column.title for column in COLUMNS if column.percent}
    titles = list(rows[0][1])
    cells = [["", *titles]]
    for label, scores, changes in rows:
        line = [label]
        for title in titles:
            value, change = (
                _shown(score, True) if title in percent else plain(score)
                for score in (Score(scores[title].value), changes[title])
            )
            line.append(f"{value} ({'+' if changes[title].value > 0 else ''}{change})")
        cells.append(line)
    return cells


def plain(score: Score | None) -> str:
    """A figure as it is, to four digits, with its standard error."""
    if score is None:
        return NOTHING
    return f"{score.value:.4g}" + ("" if score.error is None else f" ± {score.error:.2g}")


def shots_title(found: dict[str, Any]) -> str:
    """Say how many shots the nine had: Zero-shot, 5-shot, or each one's number."""
    shots = {task: number for task, number in found["n-shot"].items() if task in BENCHMARKS}
    numbers = set(shots.values())
    if numbers <= {0}:
        return "Zero-shot"
    if len(numbers) == 1:
        return f"{numbers.pop()}-shot"
    return "Shots: " + ", ".join(f"{task} {number}" for task, number in shots.items())


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
