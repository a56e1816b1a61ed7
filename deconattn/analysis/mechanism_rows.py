"""Rows of mechanisms, that figures are drawn from; layers and heads count from 1, losses are in nats."""

from collections.abc import Sequence

from deconattn.analysis.ablation import HEAD, MIXER, Place
from deconattn.analysis.agreement import Agreement
from deconattn.analysis.findings import ModelFindings, Row
from deconattn.analysis.induction import SCORES
from deconattn.statistics import Interval

NO_MAP = "no map: the mixer mixes nothing, or shows none"
NO_HEADS = "no heads before an output projection"


def induction_rows(models: Sequence[ModelFindings]) -> list[Row]:
    """Both scores of each head; a layer without a map has one row, which says so."""
    rows = []
    for model in models:
        if (found := model.induction) is None:
            continue
        for layer, scores in enumerate(found.layers):
            origin = _origin(model, layer)
            if scores is None:
                rows += [_row(origin, None, score, None, NO_MAP) for score in SCORES]
                continue
            for head in range(scores.shape[1]):
                both = zip(SCORES, found.of_head(layer, head), strict=True)
                rows += [_row(origin, head, score, interval) for score, interval in both]
    return rows


def position_rows(models: Sequence[ModelFindings]) -> list[Row]:
    """Loss of the tokens of each bin of positions, `first` to `last`, counted from 1."""
    return [
        {"model": model.label, "step": model.step, "first": first, "last": last, **_interval("loss", loss)}
        for model in models
        if model.position is not None
        for first, last, loss in model.position.binned()
    ]


def ablation_rows(models: Sequence[ModelFindings]) -> list[Row]:
    """Loss and its difference for each replacement of each mixer."""
    return [
        _ablated(model, (layer, None, name))
        for model in models
        if model.ablations is not None
        for layer in range(len(model.layers))
        for name in MIXER
        if (layer, None, name) in model.ablations.found
    ]


def head_ablation_rows(models: Sequence[ModelFindings]) -> list[Row]:
    """The same of each head; a layer without heads has one row, which says so."""
    rows = []
    for model in models:
        if (found := model.ablations) is None:
            continue
        for layer in range(len(model.layers)):
            if layer in found.without_heads:
                nothing = {**_interval("loss", None), **_interval("difference", None)}
                rows.append({**_origin(model, layer), "head": None, "replaced by": None, **nothing, "note": NO_HEADS})
            heads = sorted({head for at, head, _ in found.found if at == layer and head is not None})
            rows += [_ablated(model, (layer, head, name)) for head in heads for name in HEAD]
    return rows


def agreement_rows(models: Sequence[ModelFindings], found: Agreement) -> list[Row]:
    """CKA of every two layers with maps, each pair once, and a row that says so of each layer without one."""
    rows = []
    for one, first in enumerate(found.maps):
        for other, second in enumerate(found.maps[: one + 1]):
            value = found.of(one, other)
            note = None if value is not None else "a uniform map agrees with nothing"
            rows.append({**_layer(models, first, ""), **_layer(models, second, "other "), **_interval("cka", value)})
            rows[-1]["note"] = note
    for place in found.without:
        nothing = dict.fromkeys(("other model", "other layer", "other variant"))
        rows.append({**_layer(models, place, ""), **nothing, **_interval("cka", None), "note": NO_MAP})
    return rows


def _ablated(model: ModelFindings, place: Place) -> Row:
    assert model.ablations is not None
    layer, head, name = place
    counted = None if head is None else head + 1
    loss, difference = model.ablations.loss(place), model.ablations.difference(place)
    measured = {**_interval("loss", loss), **_interval("difference", difference)}
    return {**_origin(model, layer), "head": counted, "replaced by": name, **measured, "note": None}


def _origin(model: ModelFindings, layer: int) -> Row:
    variant = model.layers[layer].variant
    return {"model": model.label, "step": model.step, "layer": layer + 1, "variant": variant}


def _layer(models: Sequence[ModelFindings], place: tuple[int, int], prefix: str) -> Row:
    model, layer = models[place[0]], place[1]
    named = {"model": model.label, "layer": layer + 1, "variant": model.layers[layer].variant}
    return {f"{prefix}{name}": value for name, value in named.items()}


def _row(origin: Row, head: int | None, score: str, interval: Interval | None, note: str | None = None) -> Row:
    counted = None if head is None else head + 1
    return {**origin, "head": counted, "score": score, **_interval("value", interval), "note": note}


def _interval(name: str, interval: Interval | None) -> Row:
    """A mean, the ends of its 95 % interval (None for one sequence), and the number of sequences."""
    if interval is None:
        return {name: None, f"{name} low": None, f"{name} high": None, "sequences": 0}
    return {
        name: interval.mean,
        f"{name} low": interval.low,
        f"{name} high": interval.high,
        "sequences": interval.count,
    }
