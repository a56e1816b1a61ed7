"""A run folder as its files tell of it: configuration, the rows of its metrics, and how far it has come."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from deconattn import locks
from deconattn.checkpoint.format import steps_in
from deconattn.checkpoint.manifest import MANIFEST, is_whole, step_of
from deconattn.config.run_config import RUN_CONFIG, RunConfig, read_run_config
from deconattn.errors import UserError
from deconattn.json_files import reason
from deconattn.layers.head_parts import mixer_names
from deconattn.metric_rows import METRICS, MetricRow, kind_of, read_rows

OWN_FIELDS = ("step", "tokens", "profiled", "save_failed")
"""Fields of rows that are no measurements."""
X_TITLES = {"step": "steps", "tokens": "tokens", "flops": "training FLOPs", "time": "hours of training steps"}


@dataclass(frozen=True)
class Run:
    """A run that was read.

    Attributes:
        name: of its folder, with as much of the path above it as tells several runs apart.
        config: None where it cannot be read, for the reason in `fault`.
    """

    folder: Path
    name: str
    config: RunConfig | None
    fault: str = ""
    rows: Sequence[MetricRow] = field(default=(), repr=False)

    @cached_property
    def steps(self) -> list[MetricRow]:
        """Rows of training steps."""
        return [row for row in self.rows if kind_of(row) == "step"]

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of what was measured, in the order of the file."""
        found = dict.fromkeys(
            name for row in self.rows for name, value in row.items() if isinstance(value, float | int)
        )
        return tuple(name for name in found if name not in OWN_FIELDS)

    @property
    def total_steps(self) -> int | None:
        return None if self.config is None else self.config.total_steps or self.config.flags.total_steps

    def values(self, metric: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric, what is not finite included."""
        return [(row["step"], float(row[metric])) for row in self.rows if isinstance(row.get(metric), float | int)]

    def places(self, steps: Sequence[int], x: str) -> list[float]:
        """Return the places of steps on an axis: `step`, `tokens`, `flops` or `time`, hours.

        Raises:
            UserError: the run's files do not tell.
        """
        if x == "step":
            return [float(step) for step in steps]
        if x == "time":
            known, places = [0, *(row["step"] for row in self.steps)], [0.0, *_hours(self.steps)]
            if not any(places):
                raise UserError(f"--x time: {self.folder} has no tokens_per_second yet: give --x step")
            return [float(place) for place in np.interp(steps, known, places)]
        if self.config is None:
            raise UserError(f"--x {x}: {self.fault}; give --x step")
        plan = self.config.flags.plan
        if x == "tokens":
            told = {row["step"]: row["tokens"] for row in self.steps if "tokens" in row}
            return [float(told.get(step, plan.tokens(step))) for step in steps]
        return [self.flops(step) for step in steps]

    def flops(self, step: int) -> float:
        """Return the useful FLOPs of so many steps' forward and backward passes; recomputation is not counted.

        Raises:
            UserError: a layer is of a variant that is not ours.
        """
        return self._cost_at(step)

    @cached_property
    def parameters(self) -> int | None:
        """Number of trained parameters; None where a layer is of a variant that is not ours."""
        from deconattn.model.flops import count_parameters

        return None if self.config is None or self.foreign_variants else count_parameters(self.config.model).total

    @cached_property
    def foreign_variants(self) -> list[str]:
        """Variants of its layers whose code is a plugin's, which is not run to look at a run."""
        from deconattn.mixers import known_names

        assert self.config is not None
        known = set(known_names()) - set(self.config.plugin_code)
        return sorted(set(mixer_names(self.config.model.layer_variants)) - known)

    @cached_property
    def _cost_at(self) -> "_Cost":
        assert self.config is not None
        if self.foreign_variants:
            raise UserError(
                f"--x flops: {self.folder} has layers of {self.foreign_variants[0]!r}, a plugin's: give --x tokens"
            )
        return _Cost(self.config)


class _Cost:
    """FLOPs by step of a run."""

    def __init__(self, config: RunConfig) -> None:
        from deconattn.model.flops import training_flops

        self._stretches = config.flags.plan.stretches
        self._each = [training_flops(config.model, one.batch, one.seq_len) for one in self._stretches]

    def __call__(self, step: int) -> float:
        ends = [*(stretch.first for stretch in self._stretches[1:]), step]
        spans = zip(self._stretches, ends, self._each, strict=True)
        return float(sum(max(0, min(end, step) - stretch.first) * each for stretch, end, each in spans))


def _hours(rows: Sequence[MetricRow]) -> list[float]:
    """Return the hours that steps have taken at each row; a row's rate is of the steps since the row before.

    Where a start left it out, the median of the others stands in. Validations and checkpoints are not in it.
    """
    rates = [row["tokens_per_second"] for row in rows if row.get("tokens_per_second")]
    if not rates:
        return [0.0] * len(rows)
    usual, hours, before = float(np.median(rates)), 0.0, 0
    found = []
    for row in rows:
        tokens = row.get("tokens", before)
        hours += (tokens - before) / (row.get("tokens_per_second") or usual) / 3600
        before = tokens
        found.append(hours)
    return found


class NoRunError(UserError):
    """A folder holds no run."""


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read a run folder; what is damaged in it is told in :attr:`Run.fault`.

    Raises:
        NoRunError: no training has written configuration, metrics or a checkpoint there.
    """
    config, rows, faults = None, list[MetricRow](), list[str]()
    try:
        config = read_run_config(folder, "restore it, every checkpoint has a copy")
    except OSError as error:
        faults.append(f"{folder / RUN_CONFIG} cannot be read ({reason(error)})")
    except UserError as error:
        faults.append(str(error))
    try:
        rows = read_rows(folder / METRICS)
    except FileNotFoundError:
        pass  # it has not begun
    except OSError as error:
        faults.append(f"{folder / METRICS} cannot be read ({reason(error)})")
    if config is None and not rows and not _has_checkpoint(folder):
        raise NoRunError(f"{folder} is no run folder: give one, with {RUN_CONFIG} and {METRICS}")
    return Run(folder, name or folder.resolve().name, config, "; ".join(faults), rows)


def _has_checkpoint(folder: Path) -> bool:
    try:
        return any((step / MANIFEST).is_file() for step in steps_in(folder))
    except UserError:
        return False


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read several run folders, and give them names that differ.

    Raises:
        UserError: none is given, one is no run, or is named twice.
    """
    if not folders:
        raise UserError("there is no run: give run folders")
    paths = [folder.resolve() for folder in folders]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise UserError(f"{folders[place]} is named twice: leave one out")
    depth = 1
    while len(names := {"/".join(path.parts[-depth:]) for path in paths}) < len(paths):
        depth += 1
    assert len(names) == len(paths)
    return [read_run(folder, "/".join(path.parts[-depth:])) for folder, path in zip(folders, paths, strict=True)]


@dataclass(frozen=True)
class State:
    """How far a run has come.

    Attributes:
        word: `training`, `finished`, `stopped`, `begun` (no checkpoint yet) or `broken`.
        told: the same in full.
    """

    word: str
    told: str


def state_of(run: Run) -> State:
    """Look at the lock and the checkpoints of a run; nothing is verified but that the newest is whole."""
    total = run.total_steps
    reached = run.steps[-1]["step"] if run.steps else 0
    of = f" of {total}" if total else ""
    try:
        locks.check_unused(run.folder)
    except UserError:
        return State("training", f"training, step {reached}{of}")
    try:
        folders = steps_in(run.folder)
    except UserError as error:
        return State("broken", f"broken: {error}")
    newest = next((step_of(folder) for folder in folders if is_whole(folder)), None)
    if run.config is None:
        return State("broken", f"broken: {run.fault}")
    if newest is None:
        if folders:
            return State("broken", "broken: no checkpoint is whole")
        return State("begun", f"stopped before its first checkpoint, at step {reached}{of}")
    if newest == total:
        return State("finished", f"finished, {total} steps")
    return State("stopped", f"stopped at step {newest}{of}")


def age(seconds: float) -> str:
    """Say how long ago a time is, in one unit."""
    passed = max(0.0, time.time() - seconds)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if passed >= 2 * size or (unit == "min" and passed >= size):
            return f"{passed / size:.0f} {unit}"
    return f"{passed:.0f} s"
