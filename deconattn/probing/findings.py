"""What the rows of a grid show: means over seeds with their intervals, and verdicts where those carry them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

from deconattn.config.pattern import STANDARD
from deconattn.errors import UserError
from deconattn.mixers import relaxed_by
from deconattn.probing.request import UNIFORM
from deconattn.probing.results import Row
from deconattn.statistics import LEVEL, Interval, family_level, mean_interval, paired_difference, values_needed

SOLVED = 0.9
"""A model solves a difficulty where the whole interval of its accuracy is above this."""
MARGIN = 0.05
"""Accuracies nearer than this are as good as one another, and one so near to chance is not clearly better than it."""


class Problem(NamedTuple):
    """A task with its other fields, as `context=64&alphabet=64`."""

    task: str
    settings: str


class Kind(NamedTuple):
    """A model but for its size and seed."""

    variant: str
    pattern: str

    @property
    def label(self) -> str:
        """Name in words: a uniform model is called as its variant."""
        return self.variant if self.pattern == UNIFORM else f"{self.variant} {self.pattern}"


BASELINE = Kind(STANDARD, UNIFORM)


@dataclass
class Cell:
    """Models that differ by seed alone, on one problem.

    Attributes:
        scores: their rows at the rate that was chosen, by difficulty and seed.
        failed: rows of those that failed, at any rate.
        sweep: rows of all rates that were tried, on the seed of the sweep.
    """

    scores: dict[int, dict[int, Row]] = field(default_factory=dict)
    failed: list[Row] = field(default_factory=list)
    sweep: list[Row] = field(default_factory=list)

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds that were scored at every difficulty of the cell."""
        held = [set(found) for found in self.scores.values()]
        return sorted(set.intersection(*held)) if held else []

    @cached_property
    def lost(self) -> list[int]:
        """Seeds that failed at the chosen rate, or at every rate."""
        alive = {row.seed for row in self.sweep} | {seed for found in self.scores.values() for seed in found}
        return sorted({row.seed for row in self.failed if row.chosen or row.seed not in alive})

    def interval(self, difficulty: int | None = None, level: float = LEVEL) -> Interval | None:
        """Accuracy at a difficulty, or its mean over all; None where no seed is scored."""
        values = self.values(difficulty)
        return mean_interval(list(values.values()), level, self.error(difficulty)) if values else None

    def values(self, difficulty: int | None = None) -> dict[int, float]:
        """Accuracy by seed."""
        if difficulty is not None:
            return {seed: _accuracy(row) for seed, row in self.scores.get(difficulty, {}).items()}
        return {seed: fmean(_accuracy(found[seed]) for found in self.scores.values()) for seed in self.seeds}

    def error(self, difficulty: int | None = None) -> float:
        """Standard error of an accuracy by the number of positions that it is a share of.

        Where all or none is answered rightly the seeds do not differ, and their spread alone would make an interval of
        no width. So each mean has this error beside that of the spread, as if all seeds were asked the same: answers
        of one sample depend on each other, which it does not count. Two right and two wrong answers are added, after
        Agresti and Coull 1998, or it would be nothing at an accuracy of 0 or 1.
        """
        found = [self.scores.get(difficulty, {})] if difficulty is not None else list(self.scores.values())
        return math.hypot(*(_sampling_error(list(rows.values())) for rows in found if rows)) / max(len(found), 1)

    def chance(self, difficulty: int | None = None) -> float | None:
        """Accuracy of guessing; None where the task does not say."""
        found = [self.scores.get(difficulty, {})] if difficulty is not None else self.scores.values()
        chances = [next(iter(rows.values())).chance for rows in found if rows]
        known = [chance for chance in chances if chance is not None]
        return fmean(known) if known and len(known) == len(chances) else None

    def solves(self, difficulty: int) -> bool | None:
        """Tell whether the interval is above what counts as solved, or below; None: neither, or a seed failed."""
        found = self.interval(difficulty)
        if found is None or self.lost:
            return None
        return True if found.above(SOLVED) else False if found.below(SOLVED) else None

    def beats_chance(self) -> bool | None:
        """Tell whether the mean over difficulties is clearly better than chance, or is not; None: it is open."""
        found, chance = self.interval(), self.chance()
        if found is None or chance is None or self.lost:
            return None
        return True if found.above(chance + MARGIN) else False if found.below(chance + MARGIN) else None


@dataclass(frozen=True)
class Difference:
    """A kind's mean accuracy over difficulties minus that of standard attention, over the seeds of both."""

    kind: Kind
    interval: Interval

    @property
    def shows(self) -> str | None:
        """One of better, worse and same; None: it is undecided."""
        if self.interval.above(0):
            return "better"
        if self.interval.below(0):
            return "worse"
        return "same" if self.interval.above(-MARGIN) and self.interval.below(MARGIN) else None

    @property
    def more_seeds(self) -> int | None:
        """Seeds that would decide it if mean and spread stay as they are; None: more than can be told."""
        mean = abs(self.interval.mean)
        needed = values_needed(self.interval, max(mean, MARGIN - mean))
        return None if needed is None else max(needed - self.interval.count, 1)


class Findings:
    """Rows by problem, kind of model and size; everything in the order in which the rows have it, sizes by parameters.

    Attributes:
        difficulties: of each problem, from easy to hard as the axis has them.
        axes: the name of each problem's axis.
        kinds: standard attention, then kinds that relax the same principles beside each other.
        relaxed: which principles each kind's variant relaxes.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self.cells: dict[tuple[Problem, Kind, str], Cell] = {}
        levels: dict[Problem, set[int]] = {}
        for row in self.rows:
            problem = Problem(row.task, row.settings)
            levels.setdefault(problem, set()).add(row.difficulty)
            cell = self.cells.setdefault((problem, Kind(row.variant, row.pattern), row.size), Cell())
            if row.state == "failed" or row.accuracy is None:
                cell.failed.append(row)
            elif row.chosen:
                seeds = cell.scores.setdefault(row.difficulty, {})
                if row.seed in seeds:
                    raise UserError(
                        f"two models of {row.task}, {row.variant}, {row.pattern}, {row.size}, seed {row.seed} have "
                        f"{row.axis} = {row.difficulty}: give tasks that share a difficulty an --out each"
                    )
                seeds[row.seed] = row
        self._place_sweeps()
        self.difficulties = {problem: sorted(found) for problem, found in levels.items()}
        self.axes = {Problem(row.task, row.settings): row.axis for row in self.rows}
        self.kinds = list(dict.fromkeys(kind for _, kind, _ in self.cells))
        self.relaxed = {kind: relaxed_by(kind.variant) for kind in self.kinds}
        groups = list(dict.fromkeys(self.relaxed.values()))
        self.kinds.sort(key=lambda kind: (kind != BASELINE, groups.index(self.relaxed[kind])))
        parameters: dict[str, int] = {}
        for row in self.rows:
            parameters[row.size] = max(row.parameters, parameters.get(row.size, 0))
        self.sizes = sorted(parameters, key=lambda size: parameters[size])

    def _place_sweeps(self) -> None:
        """Give each cell the rows of the seed that several rates were tried on."""
        rates: dict[tuple[Problem, Kind, str, int], list[Row]] = {}
        for row in self.rows:
            if row.accuracy is not None:
                place = (Problem(row.task, row.settings), Kind(row.variant, row.pattern), row.size, row.seed)
                rates.setdefault(place, []).append(row)
        for (problem, kind, size, _), found in rates.items():
            if len({row.lr for row in found}) > 1:
                self.cells[problem, kind, size].sweep = sorted(found, key=lambda row: row.lr)

    @property
    def problems(self) -> list[Problem]:
        """Problems, in the order of the rows."""
        return list(self.difficulties)

    def label(self, problem: Problem) -> str:
        """Name of a problem: the task's, and its settings where it has several."""
        several = sum(other.task == problem.task for other in self.difficulties) > 1
        return f"{problem.task}?{problem.settings}" if several and problem.settings else problem.task

    def cell(self, problem: Problem, kind: Kind, size: str) -> Cell:
        """Return a cell, which may be empty."""
        return self.cells.get((problem, kind, size), Cell())

    def family(self, problem: Problem, size: str) -> float:
        """Return the level of each comparison with standard attention at which a problem's hold together with 95 %."""
        return family_level(sum(kind != BASELINE for kind in self.kinds if (problem, kind, size) in self.cells))

    def difference(self, problem: Problem, kind: Kind, size: str) -> Difference | None:
        """Compare a kind with standard attention at its size, both trained from the same seeds.

        None where they do not share two seeds and all difficulties, or where one has failed.
        """
        own, baseline = self.cell(problem, kind, size), self.cell(problem, BASELINE, size)
        if own.lost or baseline.lost or own.scores.keys() != baseline.scores.keys():
            return None
        error = math.hypot(own.error(), baseline.error())
        found = paired_difference(own.values(), baseline.values(), self.family(problem, size), error)
        return None if found is None or found.count < 2 else Difference(kind, found)

    def smallest(self, problem: Problem, kind: Kind, difficulty: int) -> tuple[str | None, bool]:
        """Return the smallest size that solves a difficulty, or None, and whether no smaller or other size is open."""
        closed = True
        for size in self.sizes:
            if (problem, kind, size) not in self.cells:
                continue
            solves = self.cell(problem, kind, size).solves(difficulty)
            if solves:
                return size, closed
            closed &= solves is False
        return None, closed and any((problem, kind, size) in self.cells for size in self.sizes)


@dataclass(frozen=True)
class Verdict:
    """What can be said of a problem at a size: pairs of what, and of which models with which numbers."""

    problem: Problem
    size: str
    said: list[tuple[str, str]]


def verdicts(findings: Findings) -> list[Verdict]:
    """Say of every problem and size what its intervals carry, and what they leave open."""
    return [
        Verdict(problem, size, list(_said(findings, problem, size)))
        for problem in findings.problems
        for size in findings.sizes
        if any((problem, kind, size) in findings.cells for kind in findings.kinds)
    ]


def _said(findings: Findings, problem: Problem, size: str) -> Iterator[tuple[str, str]]:
    kinds = [kind for kind in findings.kinds if (problem, kind, size) in findings.cells]
    cells = {kind: findings.cell(problem, kind, size) for kind in kinds}
    yield from _solved(findings, problem, cells)
    baseline = findings.cell(problem, BASELINE, size)
    judged = [kind for kind in kinds if kind != BASELINE and _open(cells[kind]) is None]
    if (gate := _gate(baseline)) is not None:
        yield "Nothing is claimed of the others", gate
    else:
        low = [kind for kind in judged if cells[kind].beats_chance() is False]
        if low:
            yield "Not better than chance", _listed(f"{kind.label} {percent(cells[kind].interval())}" for kind in low)
        found = [found for kind in judged if (found := findings.difference(problem, kind, size)) is not None]
        for shows, words in (("better", "Better than standard"), ("worse", "Worse than standard")):
            told = [f"{one.kind.label} by {points(one.interval)}" for one in found if one.shows == shows]
            if told:
                yield words, _listed(told)
        told = [f"{one.kind.label} {points(one.interval, True)}" for one in found if one.shows == "same"]
        if told:
            yield f"As good as standard, within {100 * MARGIN:g} points", _listed(told)
        told = [f"{one.kind.label} {points(one.interval, True)}, {_more(one)}" for one in found if one.shows is None]
        if told:
            yield "Undecided at this size", _listed(told, "; ")
        alone = [kind.label for kind in judged if kind not in {one.kind for one in found}]
        if alone:
            yield "Not compared with standard, for want of two seeds that both have at all difficulties", _listed(alone)
    closed = [f"{kind.label} ({why})" for kind in kinds if (why := _open(cells[kind])) is not None]
    if closed:
        yield "Not judged", _listed(closed)


def _solved(findings: Findings, problem: Problem, cells: dict[Kind, Cell]) -> Iterator[tuple[str, str]]:
    levels, axis = findings.difficulties[problem], findings.axes[problem]
    groups: dict[tuple[int, ...], list[str]] = {}
    for kind, cell in cells.items():
        solved = tuple(level for level in levels if cell.solves(level))
        if solved:
            groups.setdefault(solved, []).append(kind.label)
    for solved, names in sorted(groups.items(), reverse=True, key=lambda group: (len(group[0]), group[0])):
        where = "every difficulty, " if len(solved) == len(levels) else ""
        yield f"Solved at {where}{axis} = {_listed(map(str, solved))}", _listed(names)
    nothing = [kind.label for kind, cell in cells.items() if all(cell.solves(level) is False for level in levels)]
    if nothing:
        yield "Solved at no difficulty", _listed(nothing)


def _gate(baseline: Cell) -> str | None:
    """Return why nothing can be said of others against standard attention, or None."""
    if not baseline.scores and not baseline.failed:
        return "standard attention was not trained at this size"
    if (why := _open(baseline)) is not None:
        return f"of standard attention there is too little: {why}"
    if baseline.chance() is None:
        return "the task does not say what accuracy guessing has"
    if not baseline.beats_chance():
        chance = 100 * (baseline.chance() or 0.0)
        told = percent(baseline.interval())
        return f"standard attention, {told} over all difficulties, is not clearly better than chance, {chance:.1f} %"
    return None


def _open(cell: Cell) -> str | None:
    """Return why a cell itself cannot be judged, or None."""
    if cell.lost:
        return f"failed with seed {_listed(map(str, cell.lost))}"
    if not cell.seeds:
        return "no seed is done"
    return "one seed: no interval" if len(cell.seeds) == 1 else None


def _more(difference: Difference) -> str:
    more = difference.more_seeds
    if more is None:
        return "and no number of seeds would do at this spread"
    return f"{more} more {'seed' if more == 1 else 'seeds'} would decide"


def percent(interval: Interval | None) -> str:
    """Format an accuracy in per cent with the ends of its interval, which stay between 0 and 100."""
    if interval is None:
        return "\N{EN DASH}"
    if interval.low is None or interval.high is None:
        return f"{100 * interval.mean:.1f} %"
    low, high = 100 * max(interval.low, 0.0), 100 * min(interval.high, 1.0)
    return f"{100 * interval.mean:.1f} % [{low:.1f}, {high:.1f}]"


def points(interval: Interval, signed: bool = False) -> str:
    """Format a difference of accuracies in points, with the ends of its interval; unsigned, as a distance."""
    assert interval.low is not None
    assert interval.high is not None
    ends = (max(interval.low, -1.0), interval.mean, min(interval.high, 1.0))
    low, mean, high = (100 * value for value in ends)
    if not signed and mean < 0:
        low, mean, high = -high, -mean, -low
    sign = "+" if signed else ""
    return f"{mean:{sign}.1f} points [{low:{sign}.1f}, {high:{sign}.1f}]".replace("-", "\N{MINUS SIGN}")


def _listed(words: Iterable[str], between: str = ", ") -> str:
    return between.join(words)


def _accuracy(row: Row) -> float:
    assert row.accuracy is not None
    return row.accuracy


def _sampling_error(rows: Sequence[Row]) -> float:
    asked = min(row.asked for row in rows) + 4
    share = (fmean(_accuracy(row) for row in rows) * (asked - 4) + 2) / asked
    return math.sqrt(share * (1 - share) / asked)
