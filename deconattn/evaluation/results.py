"""Scores, taken out of what the harness gives, and where they are kept: a file, and Weights & Biases."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deconattn.evaluation.tasks import BENCHMARKS, COLUMNS

AVERAGE = "Avg"


@dataclass(frozen=True)
class Score:
    """A figure and its standard error; accuracies are fractions, perplexities a word (WikiText) or a text (LAMBADA)."""

    value: float
    error: float | None = None


@dataclass(frozen=True)
class Row:
    """The scores of one model, by the column's title; a column that was not asked for is missing."""

    label: str
    scores: dict[str, Score]


@dataclass(frozen=True)
class Figure:
    """A figure that the harness gives: a column of table 1, or any metric of any other task or group.

    Attributes:
        title: the column's, or task and metric, with the filter where it has a name.
        filter: what picks an answer out of what the model wrote; `none` as a rule.
    """

    title: str
    task: str
    metric: str
    filter: str
    score: Score


def figures_of(found: dict[str, Any]) -> list[Figure]:
    """The figures of table 1, in its order, then every metric of the other tasks and groups."""
    figures = []
    for column in COLUMNS:
        metrics = found["results"].get(column.task, {})
        if f"{column.metric},none" in metrics:
            figures.append(Figure(column.title, column.task, column.metric, "none", _score(metrics, column.metric)))
    for task, metrics in found["results"].items():
        if task in BENCHMARKS:
            continue
        for key, value in metrics.items():
            metric, comma, picked = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                title = f"{task} {metric}" + ("" if picked == "none" else f", {picked}")
                figures.append(Figure(title, task, metric, picked, _score(metrics, metric, picked)))
    return figures


def _score(metrics: dict[str, Any], metric: str, picked: str = "none") -> Score:
    error = metrics.get(f"{metric}_stderr,{picked}")
    return Score(float(metrics[f"{metric},{picked}"]), float(error) if isinstance(error, int | float) else None)


def row_of(label: str, found: dict[str, Any]) -> Row:
    """Every figure of the harness's result."""
    return Row(label, {figure.title: figure.score for figure in figures_of(found)})


def average(row: Row) -> Score | None:
    """Mean of the seven accuracies, None unless all are there; its standard error assumes independent tasks."""
    seven = [row.scores.get(column.title) for column in COLUMNS if column.averaged]
    scores = [score for score in seven if score is not None]
    if len(scores) < len(seven):
        return None
    errors = [score.error for score in scores if score.error is not None]
    error = math.sqrt(sum(error**2 for error in errors)) / len(scores) if len(errors) == len(scores) else None
    return Score(sum(score.value for score in scores) / len(scores), error)


def as_numbers(row: Row) -> dict[str, float]:
    """Every column's figure by title, its error as `TITLE stderr`, and the average."""
    scores = dict(row.scores)
    if (mean := average(row)) is not None:
        scores[AVERAGE] = mean
    numbers = {}
    for title, score in scores.items():
        numbers[title] = score.value
        if score.error is not None:
            numbers[f"{title} stderr"] = score.error
    return numbers


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write JSON; infinities and NaN, which it lacks, become strings, and so do objects that only Python has."""
    path.write_text(json.dumps(_finite(content), indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def log_to_wandb(project: str, row: Row, config: dict[str, Any], perplexities: dict[int, float]) -> None:
    """Log a model's scores as one run; offline where there is no API key.

    Args:
        config: the model and the settings; `step` of it is the scores' step.
        perplexities: WikiText's by context length.
    """
    import wandb

    mode: Literal["offline"] | None = None if os.environ.get("WANDB_MODE") or wandb.login(prompt=False) else "offline"
    with wandb.init(project=project, name=row.label, job_type="evaluation", config=config, mode=mode) as run:
        scores = {f"eval/{title}": value for title, value in as_numbers(row).items()}
        scores |= {f"eval/Wiki ppl at {length}": value for length, value in perplexities.items()}
        run.log(scores, step=config.get("step"))
