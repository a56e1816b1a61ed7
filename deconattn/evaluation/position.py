"""Perplexity by position in the context, at any length: what a model makes of text that goes on beyond its training."""

import math
from typing import Any

import torch
from torch import Tensor

from deconattn.analysis.losses import PositionLosses, check_finite, token_losses
from deconattn.evaluation.logits import LogitReader
from deconattn.statistics import Interval

OCTAVE = 1
"""Bins of the table in a doubling of the context; pictures and numbers have finer ones."""


def position_losses(reader: LogitReader, ids: Tensor, label: str) -> PositionLosses:
    """Score sequences, int64 [N, L].

    Raises:
        UserError: a loss that is no number.
    """
    found = []
    for batch in ids.split(reader.batch_size(ids.shape[1])):
        found.append(token_losses(reader.head, reader.hidden(batch), batch))
        check_finite(found[-1], label)
    return PositionLosses(torch.cat(found))


def position_numbers(losses: PositionLosses) -> dict[str, Any]:
    """What results.json has of a model: perplexity with its 95 % interval over sequences, of all tokens and by bin."""
    octaves, bins = (
        [{"first": first, "last": last, **_perplexity(loss)} for first, last, loss in some]
        for some in (losses.binned(OCTAVE), losses.binned())
    )
    return {"perplexity": _perplexity(losses.loss), "octaves": octaves, "bins": bins}


def _perplexity(loss: Interval) -> dict[str, float | None]:
    low, high = (None if end is None else math.exp(end) for end in (loss.low, loss.high))
    return {"loss": loss.mean, "value": math.exp(loss.mean), "low": low, "high": high}


def position_cells(models: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    """Table of labels and their numbers: a line an octave of positions, a column a model."""
    cells = [["tokens", *(label for label, _ in models)]]
    for place, bin_ in enumerate(models[0][1]["octaves"]):
        cells.append([f"{bin_['first']} to {bin_['last']}", *(_shown(found["octaves"][place]) for _, found in models)])
    cells.append(["all", *(_shown(found["perplexity"]) for _, found in models)])
    return cells


def _shown(perplexity: dict[str, float | None]) -> str:
    value, low, high = perplexity["value"], perplexity["low"], perplexity["high"]
    return f"{value:.4g}" + ("" if low is None else f" ({low:.4g} to {high:.4g})")
