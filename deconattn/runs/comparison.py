"""Runs beside each other: what differs in their settings and results, seeds taken together."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deconattn.errors import UserError
from deconattn.runs.differences import SEED, Group, differing, groups_of, shown
from deconattn.runs.run import Run, state_of
from deconattn.statistics import Interval, family_level, mean_interval, paired_difference

NOTHING = "-"
LAST_SHARE = 20
"""A run's training loss is the mean over the last one of so many parts of its steps: that of one step is noise."""


@dataclass(frozen=True)
class Cell:
    """Text, and what it is sorted by; nothing where it has no place in an order."""

    text: str
    sort: float | str = ""


@dataclass(frozen=True)
class Column:
    """A setting, fact or result, a cell a group."""

    title: str
    cells: list[Cell]


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, beside each other.

    Attributes:
        settings: what differs between the groups.
        facts: size and length; alike within a group, or the first run's.
        results: means over seeds, with their intervals.
        differences: from the first group, paired by seed; none where there is one group, or no seed in common.
        level: coverage of each of the differences' intervals.
        notes: what was left out, in sentences.
        texts: what each run makes of a prompt, by its name.
    """

    groups: list[Group]
    settings: list[Column]
    facts: list[Column]
    results: list[Column]
    differences: list[Column]
    level: float
    notes: list[str]
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> list[tuple[Run, int | None]]:
        """All runs, each with its seed."""
        return [
            (run, None if run.config is None else run.config.flags.optimization.seed)
            for group in self.groups
            for run in (*group.runs.values(), *group.apart)
        ]


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare runs.

    Raises:
        UserError: a configuration cannot be read, or a run has no metrics yet.
    """
    for run in runs:
        if run.config is None:
            raise UserError(f"{run.fault}; leave {run.folder} out, or restore it")
        if not run.steps:
            raise UserError(f"{run.folder} has no metrics yet{f' ({run.fault})' if run.fault else ''}: leave it out")
    groups, notes = groups_of(runs)
    measures = _measures(runs)
    results, differences = [], []
    level = family_level(len(groups) - 1)
    for title, (measure, digits) in measures.items():
        values = [
            {seed: value for seed, run in one.runs.items() if (value := measure(run)) is not None} for one in groups
        ]
        means = [mean_interval(list(one.values())) if one else None for one in values]
        if any(means):
            results.append(Column(title, [_interval(one, digits) for one in means]))
        if title in _UNPAIRED:
            continue
        paired = [paired_difference(one, values[0], level) for one in values[1:]]
        if any(paired):
            cells = [_interval(one, digits, signed=True) for one in paired]
            differences.append(Column(title, [Cell("first group"), *cells]))
    for group in groups[1:]:
        if not group.runs.keys() & groups[0].runs.keys():
            notes.append(f"{group.label} has no seed of {groups[0].label}: there is no paired difference.")
    foreign = [f"{run.name} ({', '.join(run.foreign_variants)})" for run in runs if run.foreign_variants]
    if foreign:
        notes.append(f"Parameters and FLOPs are not known where layers are a plugin's: {'; '.join(foreign)}.")
    firsts = [group.first for group in groups]
    settings = [
        Column(name.replace("_", " "), [Cell(shown(name, value), _sort(value)) for value in values])
        for name, values in differing(firsts).items()
        if name != SEED
    ]
    return Comparison(groups, settings, _facts(groups), results, differences, level, notes)


Measure = Callable[[Run], float | None]
_SPEED, _HOURS, _MEMORY = "tokens a second", "hours", "memory, GiB"
_UNPAIRED = (_SPEED, _HOURS, _MEMORY)
"""Results of machines, not of seeds."""


def _measures(runs: Sequence[Run]) -> dict[str, tuple[Measure, int]]:
    """Return what is compared, by title, each with its digits."""
    found: dict[str, tuple[Measure, int]] = {
        "training loss": (_training_loss, 4),
        "validation loss": (lambda run: _last(run, "val_loss"), 4),
        "best validation loss": (lambda run: _best(run, "val_loss"), 4),
    }
    scores = dict.fromkeys(
        name for run in runs for name in run.metrics if name.startswith("eval/") and not name.endswith(" stderr")
    )
    found |= {name.removeprefix("eval/"): (_last_of(name), 4) for name in scores}
    found[_SPEED] = (lambda run: _of_all(run, "tokens_per_second", statistics.median), 0)
    found[_HOURS] = (lambda run: _hours(run), 3)
    found[_MEMORY] = (lambda run: _of_all(run, "memory_gib", max), 2)
    return found


def _training_loss(run: Run) -> float | None:
    values = run.values("loss")
    after = values[-1][0] * (1 - 1 / LAST_SHARE) if values else 0
    late = [value for step, value in values if step > after and math.isfinite(value)]
    return statistics.fmean(late) if late else None


def _last_of(name: str) -> Measure:
    return lambda run: _last(run, name)


def _last(run: Run, name: str) -> float | None:
    values = run.values(name)
    return values[-1][1] if values and math.isfinite(values[-1][1]) else None


def _best(run: Run, name: str) -> float | None:
    return _of_all(run, name, min)


def _of_all(run: Run, name: str, choose: Callable[[list[float]], float]) -> float | None:
    finite = [value for _, value in run.values(name) if math.isfinite(value)]
    return choose(finite) if finite else None


def _hours(run: Run) -> float | None:
    try:
        return run.places([run.steps[-1]["step"]], "time")[0]
    except UserError:
        return None


def _facts(groups: Sequence[Group]) -> list[Column]:
    firsts = [group.first for group in groups]
    seeds = [Cell(f"{len(one.runs)}: {', '.join(map(str, one.runs))}", len(one.runs)) for one in groups]
    known = [run for run in firsts if not run.foreign_variants]
    last = {run.name: run.steps[-1]["step"] for run in firsts}
    flops = {run.name: run.flops(last[run.name]) for run in known}
    return [
        Column("seeds", seeds),
        Column("parameters", [_count(run.parameters) for run in firsts]),
        Column("steps", [_count(last[run.name]) for run in firsts]),
        Column("tokens", [_count(round(run.places([last[run.name]], "tokens")[0])) for run in firsts]),
        Column(
            "training FLOPs",
            [Cell(f"{flops[run.name]:.2e}", flops[run.name]) if run.name in flops else Cell(NOTHING) for run in firsts],
        ),
    ]


def _count(value: int | None) -> Cell:
    return Cell(NOTHING) if value is None else Cell(f"{value:,}", value)


def _interval(one: Interval | None, digits: int, signed: bool = False) -> Cell:
    """Show a mean with its interval; a difference whose interval excludes zero has a star."""
    if one is None:
        return Cell(NOTHING)
    text = f"{one.mean:{'+' if signed else ''},.{digits}f}"
    if one.half is not None:
        text += f" ± {one.half:,.{digits}f}"
    return Cell(text + ("*" if signed and (one.above(0) or one.below(0)) else ""), one.mean)


def _sort(value: object) -> float | str:
    return value if isinstance(value, float | int) and not isinstance(value, bool) else ""


def rows_of_runs(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return for each run its name, seed, state, last training loss and folder."""
    found: list[tuple[str, ...]] = []
    for run, seed in comparison.runs:
        loss = _training_loss(run)
        shown_loss = NOTHING if loss is None else f"{loss:.4f}"
        found.append(
            (run.name, NOTHING if seed is None else str(seed), state_of(run).told, shown_loss, str(run.folder))
        )
    return found
