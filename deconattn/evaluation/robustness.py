"""What perturbed contexts change, paired by document."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from deconattn.evaluation.results import Score, figures_of

UNPERTURBED = "loglikelihood_rolling"
"""Type of tasks that score whole texts: what would be perturbed is what is scored."""


def changes(clean: dict[str, Any], perturbed: dict[str, Any], tasks: dict[str, Any]) -> dict[str, Score]:
    """Each figure of perturbed texts less that of clean ones, by title, with its standard error over documents.

    The error is of the documents' own differences; of LAMBADA's perplexity, an exponential of their mean, to first
    order. There is none for other metrics than means of documents, for groups, and of one document.

    Args:
        clean, perturbed: the harness's results of the same documents, with their `samples`.
    """
    before = {figure.title: figure for figure in figures_of(clean)}
    found = {}
    for figure in figures_of(perturbed):
        picked = [
            [sample[figure.metric] for sample in results["samples"].get(figure.task, ()) if _has(sample, figure)]
            for results in (clean, perturbed)
        ]
        error = None
        if len(picked[0]) > 1 and figure.task in tasks:
            aggregation = tasks[figure.task].aggregation().get(figure.metric)
            error = _error(getattr(aggregation, "__name__", ""), picked[0], picked[1])
        found[figure.title] = Score(figure.score.value - before[figure.title].score.value, error)
    return found


def _has(sample: dict[str, Any], figure: Any) -> bool:
    return sample["filter"] == figure.filter and figure.metric in sample


def _error(aggregation: str, clean: Sequence[Any], perturbed: Sequence[Any]) -> float | None:
    if aggregation not in ("mean", "perplexity") or not all(isinstance(v, int | float) for v in (*clean, *perturbed)):
        return None
    slopes = (1.0, 1.0)
    if aggregation == "perplexity":  # exp(-mean), whose slope is itself, negative
        slopes = (-math.exp(-fmean(clean)), -math.exp(-fmean(perturbed)))
    differences = [slopes[1] * after - slopes[0] * before for before, after in zip(clean, perturbed, strict=True)]
    return stdev(differences) / math.sqrt(len(differences))
