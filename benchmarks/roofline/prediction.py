"""Time of a training step on a card, by parts, from its works."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from benchmarks.roofline.works import PARTS
from deconattn.cost.cards import HOST_COMPILED, HOST_EAGER, Card
from deconattn.cost.work import Work

MODES = ("compiled", "eager")
"""With `--compile`, and without."""
Works = dict[Work, int]
"""How often a step does a work; of a difference of steps it may be negative."""


@dataclass(frozen=True)
class Counted:
    """A part of a micro-batch, the mean over a step's, or the update.

    Attributes:
        tflops: 1e12 FLOPs.
        gigabytes: 1e9 bytes read and written.
    """

    launches: float
    tflops: float
    gigabytes: float


@dataclass(frozen=True)
class Predicted:
    """A step on a card, milliseconds.

    Attributes:
        best, expected: at the data sheet's rates, and at those that programs reach.
        parts: of `expected`, of the device alone, the micro-batches' taken together.
        host: of the micro-batches and the update, where the host does nothing but launch.
        mfu, best_mfu: model FLOP/s (`deconattn.model.flops`) over the bf16 peak.
    """

    best: float
    expected: float
    host: float
    mfu: float
    best_mfu: float
    parts: dict[str, float]


def works_of(rows: Sequence[Mapping[str, Any]]) -> Works:
    """Return works out of a trace's answer."""
    names = [field.name for field in fields(Work)]
    return {Work(**{name: row[name] for name in names}): row["count"] for row in rows}


def deepened(shallow: Works, deep: Works, layers: int) -> Works:
    """Return the works of `layers` layers, given those of two and of three layers that differ by a middle one.

    Exact for what a layer does; works over all parameters at once (their bytes) come out right in sum.
    """
    every = {**shallow, **deep}
    found = {work: shallow.get(work, 0) + (layers - 2) * (deep.get(work, 0) - shallow.get(work, 0)) for work in every}
    return {work: count for work, count in found.items() if count}


def counted(works: Works, micro_batches: int) -> dict[str, Counted]:
    """Sum up the parts of a micro-batch, and the update, given the works of a step."""
    found = {}
    for part in PARTS:
        here = [(work, count) for work, count in works.items() if work.part == part]
        often = 1 if part == "update" else micro_batches
        found[part] = Counted(
            launches=sum(work.launches * count for work, count in here) / often,
            tflops=sum(work.flops * count for work, count in here) / often / 1e12,
            gigabytes=sum(work.bytes * count for work, count in here) / often / 1e9,
        )
    return found


def predict(works: Works, card: Card, model_flops: int, compiled: bool) -> Predicted:
    """Predict a step: its micro-batches, and the update, take as long as the device or the host needs, the longer one.

    Args:
        works: of the step.
        model_flops: that the formula asks for.
    """
    times = {part: {"best": 0.0, "expected": 0.0, "launches": 0.0} for part in PARTS}
    for work, count in works.items():
        times[work.part]["best"] += count * card.best(work)
        times[work.part]["expected"] += count * card.expected(work)
        times[work.part]["launches"] += count * work.launches
    of_layers = {"mixers' products", "feed-forward products", "mixing", "norms", "elementwise", "copies"}
    cost = {part: HOST_COMPILED if compiled and part in of_layers else HOST_EAGER for part in PARTS}

    def total(what: str, phase: bool) -> float:
        return sum(times[part][what] for part in PARTS if (part == "update") == phase)

    def host(phase: bool) -> float:
        return sum(times[p]["launches"] * cost[p] for p in PARTS if (p == "update") == phase)

    best = total("best", False) + total("best", True)
    expected = sum(max(total("expected", phase), host(phase)) for phase in (False, True))
    asked = model_flops / card.narrow
    return Predicted(
        best=1e3 * best,
        expected=1e3 * expected,
        host=1e3 * (host(False) + host(True)),
        mfu=asked / expected,
        best_mfu=asked / best,
        parts={part: 1e3 * times[part]["expected"] for part in PARTS},
    )


def as_objects(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return dataclasses as what JSON holds, rounded to what is meant."""
    return {name: {key: _rounded(value) for key, value in asdict(one).items()} for name, one in found.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
