"""The search itself, and the table that it is judged by: the model, the found hybrid, patterns, random draws, all."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from typing import Protocol

from torch import Tensor, nn

from deconattn.errors import UserError
from deconattn.mixers import Mixer
from deconattn.statistics import Interval, mean_interval
from deconattn.surgery.activations import Activations
from deconattn.surgery.assignments import Assignment, Table, all_keeping, drawn, kept_layers, named
from deconattn.surgery.budget import Budget, read_budget
from deconattn.surgery.choice import Choice, Kept, Limit, Within, choose
from deconattn.surgery.folder import Own, SearchFolder
from deconattn.surgery.request import Goal, Request
from deconattn.surgery.sensitivity import Stopped, losses_from, variants_for
from deconattn.surgery.subject import Subject

FOUND, TABLE, RANDOM, BEST = "found", "table", "random", "exhaustive"


class Told(Protocol):
    """Observer of the hybrids that are measured."""

    def __call__(self, words: str, losses: Sequence[float]) -> None: ...


class Hybrids:
    """Losses of hybrids of fitted replacements, measured once each and kept in the folder."""

    def __init__(self, subject: Subject, request: Request, folder: SearchFolder, told: Told, stop: Callable[[], bool]):
        self.subject, self.request, self.folder, self.told, self.stop = subject, request, folder, told, stop
        self._mixers: dict[tuple[int, str], Mixer] = {}

    def losses(self, assignment: Assignment, sequences: str, words: str) -> list[float]:
        """Return each sequence's loss, nats a token.

        Args:
            sequences: `held_out` or `tested`.
            words: what the hybrid is called while it is measured.

        Raises:
            Stopped: a stop was asked for.
        """
        found = self.folder.hybrid(assignment, sequences)
        if found is None:
            if self.stop():
                raise Stopped
            ids: Tensor = getattr(self.subject, sequences)
            names = dict(enumerate(assignment))
            mixers: dict[int, nn.Module] = {
                layer: self.mixer(layer, variant)
                for layer, variant in names.items()
                if variant != self.subject.config.layer_variants[layer]
            }
            # What this one has not is let go: all cells' mixers are several times the model's own.
            self._mixers = {place: one for place, one in self._mixers.items() if assignment[place[0]] == place[1]}
            found = losses_from(Activations(self.subject, ids), mixers, names)
            self.folder.record_hybrid(assignment, sequences, found)
        self.told(words, found)
        return found

    def mixer(self, layer: int, variant: str) -> Mixer:
        """Return a fitted mixer, read once while hybrids that follow each other have it."""
        if (layer, variant) not in self._mixers:
            mixer = self.subject.fresh_mixer(layer, variant, self.request.seed)
            mixer.load_state_dict(self.folder.weights(layer, variant))
            self._mixers[layer, variant] = mixer.requires_grad_(False).eval()
        return self._mixers[layer, variant]


@dataclass(frozen=True)
class Line:
    """A row of the comparison.

    Attributes:
        name: of the pattern, or `found`.
        assignments: one hybrid; of random draws all.
        losses: of the tested sequences, of each hybrid.
        own: the model's losses of them.
        part: of the model's own cost, where there is a budget.
    """

    name: str
    assignments: list[Assignment]
    losses: list[list[float]]
    own: list[float]
    part: float | None = None

    @property
    def loss(self) -> Interval:
        """Loss, over sequences; of random draws over draws."""
        if len(self.losses) > 1:
            return mean_interval([mean(one) for one in self.losses])
        return mean_interval(self.losses[0])

    @property
    def increase(self) -> Interval:
        """Loss less that of the model, paired by sequence; of random draws over draws."""
        return self.beyond(self.own)

    def beyond(self, others: Sequence[float]) -> Interval:
        """Return the loss less that of another model on the same sequences, paired; of random draws over draws."""
        if len(self.losses) > 1:
            return mean_interval([mean(one) - mean(others) for one in self.losses])
        return mean_interval([mine - its for mine, its in zip(self.losses[0], others, strict=True)])


@dataclass(frozen=True)
class Pair:
    """Two layers replaced together: increases on the held-out sequences, nats a token."""

    layers: tuple[int, int]
    variants: tuple[str, str]
    both: Interval
    sum: float


@dataclass(frozen=True)
class Comparison:
    """What a search came to."""

    goal: Goal
    budget: Budget | None
    choice: Choice
    lines: list[Line] = field(default_factory=list)


def table_of(subject: Subject, request: Request, folder: SearchFolder, own: Own) -> tuple[Table, list[str]]:
    """Return the table of what has been measured, and what is missing, in words."""
    increases: dict[tuple[int, str], float] = {}
    missing: list[str] = []
    for layer in range(subject.depth):
        for variant in variants_for(subject, request, layer):
            cell = folder.cell(layer, variant)
            if cell is None:
                missing.append(f"layer {layer + 1} {variant}")
            elif cell.losses is not None:
                increases[layer, variant] = mean(cell.losses) - mean(own.held_out)
    return Table(subject.config.layer_variants, increases), missing


def read_limit(goal: Goal, subject: Subject) -> tuple[Limit, Budget | None]:
    """Return what hybrids must keep to (UserError where there are not as many layers)."""
    own = subject.config.layer_variants
    if goal.budget is not None:
        budget = read_budget(goal.budget, goal.budget_length, goal.budget_rows, goal.budget_gpu)
        return Within(budget, subject.config, own), budget
    assert goal.keep is not None
    if not 0 <= goal.keep < subject.depth:
        raise UserError(f"--keep {goal.keep}: the model has {subject.depth} layers, give 0 to {subject.depth - 1}")
    return Kept(goal.keep, own), None


def search(hybrids: Hybrids, table: Table, goal: Goal, own: Own) -> Comparison:
    """Find a hybrid, and put it beside the patterns, the random draws and, where they are few, all.

    Raises:
        UserError: see :func:`read_limit` and :class:`~deconattn.surgery.choice.Within`; a layer of which every
            replacement failed is kept, and may be one too many.
    """
    subject = hybrids.subject
    limit, budget = read_limit(goal, subject)
    stuck = subject.depth - len(table.replaceable())
    if goal.keep is not None and goal.keep < stuck:
        raise UserError(f"--keep {goal.keep}: {stuck} layers have no replacement that works, give {stuck} or more")

    def measured(assignment: Assignment) -> float:
        return mean(hybrids.losses(assignment, "held_out", "swap"))

    choice = choose(table, limit, measured, goal.swaps)
    keep = len(kept_layers(choice.found, table.own))
    lines: list[Line] = []

    def add(name: str, assignments: list[Assignment]) -> None:
        losses = [hybrids.losses(one, "tested", name) for one in assignments]
        part = None
        if budget is not None:
            parts = [budget.part(subject.config, one, table.own) for one in assignments]
            part = sum(parts) / len(parts)
        lines.append(Line(name, assignments, losses, own.tested, part))

    add(FOUND, [choice.found])
    add(TABLE, [choice.steps[0].assignment])
    for name, assignment in named(table):
        add(name, [assignment])
    if goal.random:
        add(RANDOM, drawn(table, keep, goal.random, hybrids.request.seed))
    if comb(subject.depth, keep) <= goal.exhaustive:
        everything = list(all_keeping(table, keep))
        add(BEST, [min(everything, key=lambda one: mean(hybrids.losses(one, "held_out", BEST)))])
    return Comparison(goal, budget, choice, lines)


def measure_pairs(hybrids: Hybrids, table: Table, count: int, own: Own) -> list[Pair]:
    """Replace layers two by two, each by its least harmful variant: half of them neighbours, all drawn at random."""
    layers = sorted(table.replaceable())
    neighbours = [(one, one + 1) for one in layers if one + 1 in layers]
    apart = [pair for pair in combinations(layers, 2) if pair[1] - pair[0] > 1]
    generator = random.Random(hybrids.request.seed)
    chosen = generator.sample(neighbours, min(count - count // 2, len(neighbours)))
    chosen += generator.sample(apart, min(count - len(chosen), len(apart)))
    found = []
    for pair in sorted(chosen):
        variants = tuple(table.options(layer)[0] for layer in pair)
        changed: Mapping[int, str] = dict(zip(pair, variants, strict=True))
        assignment = tuple(changed.get(layer, variant) for layer, variant in enumerate(table.own))
        losses = hybrids.losses(assignment, "held_out", f"layers {pair[0] + 1} and {pair[1] + 1}")
        both = mean_interval([now - before for now, before in zip(losses, own.held_out, strict=True)])
        found.append(Pair(pair, (variants[0], variants[1]), both, table.sum(assignment)))
    return found


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
