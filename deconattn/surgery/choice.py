"""A hybrid under a budget: greedy by the table, then swaps that are measured.

What swaps are chosen on, the held-out sequences, is not what the found hybrid is compared on: of many that are measured
the best looks better than it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.surgery.assignments import Assignment, Table, kept_layers
from deconattn.surgery.budget import Budget

Measure = Callable[[Assignment], float]
"""Mean loss of a hybrid, nats a token."""


class Limit(Protocol):
    """What a hybrid must keep to."""

    def fits(self, assignment: Assignment) -> bool: ...

    def start(self, table: Table) -> Assignment:
        """Return the hybrid that the table alone would choose."""


@dataclass(frozen=True)
class Kept:
    """So many layers stay as they are."""

    keep: int
    own: Assignment

    def fits(self, assignment: Assignment) -> bool:
        return len(kept_layers(assignment, self.own)) == self.keep

    def start(self, table: Table) -> Assignment:
        replaced = table.replaceable()[: len(self.own) - self.keep]
        return table.keeping([layer for layer in range(len(self.own)) if layer not in replaced])


@dataclass(frozen=True)
class Within:
    """A share of the model's own cost at most."""

    budget: Budget
    config: ModelConfig
    own: Assignment

    def fits(self, assignment: Assignment) -> bool:
        return self.budget.fits(self.config, assignment, self.own)

    def start(self, table: Table) -> Assignment:
        """Replace what costs the least loss for what it saves, until the budget is met.

        Raises:
            UserError: no variants of the table save as much.
        """
        now = self.own
        while not self.fits(now):
            cost = self.budget.cost(self.config, now)
            steps: list[tuple[float, Assignment]] = []
            for layer in range(len(now)):
                for variant in table.options(layer):
                    other = _changed(now, {layer: variant})
                    saved = cost - self.budget.cost(self.config, other)
                    if saved > 0:
                        more = table.increase(layer, variant) - table.increase(layer, now[layer])
                        # What does no harm goes first, and of two such the one that saves more.
                        steps.append((more / saved if more > 0 else more * saved, other))
            if not steps:
                reached = self.budget.part(self.config, now, self.own)
                raise UserError(
                    f"--budget {self.budget.kind}={self.budget.share:g}: these variants reach {reached:.3f} at "
                    "best; add cheaper ones to --variants, or give more"
                )
            now = min(steps)[1]
        return now


@dataclass(frozen=True)
class Step:
    """A hybrid that was measured on the way, and whether it was taken."""

    assignment: Assignment
    words: str
    loss: float
    taken: bool


@dataclass(frozen=True)
class Choice:
    """What was found, and how."""

    found: Assignment
    steps: list[Step] = field(default_factory=list)


def choose(table: Table, limit: Limit, measure: Measure, swaps: int) -> Choice:
    """Begin with what the table alone would choose, and take swaps that make the measured loss smaller.

    A swap puts a replaced layer's own mixer back and replaces another, or replaces a layer by another variant. Those
    go first that the table likes best; after one is taken, they are ordered again.

    Args:
        swaps: hybrids at most that are measured beside the first.
    """
    now = limit.start(table)
    best = measure(now)
    steps = [Step(now, "by the table", best, True)]
    tried = {now}
    while len(steps) <= swaps:
        proposal = next(((new, words) for new, words in _proposals(table, now, limit) if new not in tried), None)
        if proposal is None:
            break
        new, words = proposal
        tried.add(new)
        loss = measure(new)
        steps.append(Step(new, words, loss, loss < best))
        if loss < best:
            now, best = new, loss
    return Choice(now, steps)


def _proposals(table: Table, now: Assignment, limit: Limit) -> Iterator[tuple[Assignment, str]]:
    """Yield neighbours of a hybrid that keep to the limit, by what the table's increases add up to."""
    found: list[tuple[float, Assignment, str]] = []
    kept = kept_layers(now, table.own)
    for back in range(len(now)):
        if back in kept:
            continue
        for variant in table.options(back):
            if variant != now[back]:
                new = _changed(now, {back: variant})
                found.append((table.sum(new), new, f"layer {back + 1} {now[back]} to {variant}"))
        for layer in kept:
            best = table.best(layer)
            if best is not None:
                new = _changed(now, {back: table.own[back], layer: best})
                found.append((table.sum(new), new, f"layer {back + 1} back, layer {layer + 1} to {best}"))
    for _, new, words in sorted(found):
        if limit.fits(new):
            yield new, words


def _changed(assignment: Assignment, changes: dict[int, str]) -> Assignment:
    return tuple(changes.get(layer, variant) for layer, variant in enumerate(assignment))
