"""List of a folder's runs."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.table import Table
from rich.text import Text

from deconattn.errors import UserError
from deconattn.pages.axis import short
from deconattn.runs.comparison import NOTHING
from deconattn.runs.run import METRICS, NoRunError, Run, State, age, read_run, state_of
from deconattn.shown import one_line


@dataclass(frozen=True)
class Listed:
    """A run of the list.

    Attributes:
        bytes: of its files, what links point to not counted.
        changed: when its metrics were written last, or the folder itself, seconds since the epoch.
    """

    run: Run
    state: State
    bytes: int
    changed: float

    @cached_property
    def best(self) -> float | None:
        """The least validation loss, nats."""
        return min((value for _, value in self.run.values("val_loss") if value == value), default=None)

    @property
    def last(self) -> float | None:
        """The last training loss, nats."""
        values = self.run.values("loss")
        return values[-1][1] if values else None


SORTS: dict[str, Callable[[Listed], tuple[bool, float | str]]] = {
    "name": lambda one: (False, one.run.name),
    "age": lambda one: (False, -one.changed),
    "loss": lambda one: (one.best is None, one.best or 0.0),
    "size": lambda one: (False, -one.bytes),
}
"""Orders of a list: by name, the newest, the best or the largest first."""


def runs_in(folder: Path, sort: str = "name") -> list[Listed]:
    """Return the runs of a folder; those in folders of it are not looked for.

    Raises:
        UserError: it is no folder, or cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give one that holds runs")
    with suppress(NoRunError):
        read_run(folder)
        raise UserError(f"{folder} is a run: give the folder that holds it, {folder.resolve().parent}")
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        try:
            run = read_run(path, path.name)
        except NoRunError:
            continue
        metrics = path / METRICS
        changed = (metrics if metrics.is_file() else path).stat().st_mtime
        found.append(Listed(run, state_of(run), bytes_of(path), changed))
    return sorted(found, key=SORTS[sort])


def bytes_of(folder: Path) -> int:
    """Sum the sizes of a folder's files; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total


def disk_size(size: int) -> str:
    """Show a number of bytes."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} B"


def listing_table(listed: list[Listed]) -> Table:
    """Tabulate a list."""
    table = Table()
    names = ("name", "model", "parameters", "state", "tokens", "loss", "best validation", "disk", "changed")
    for name in names:
        table.add_column(name, justify="left" if name in ("name", "model", "state") else "right", overflow="fold")
    for one in listed:
        run = one.run
        tokens = run.steps[-1].get("tokens") if run.steps else None
        cells = [f"{run.name} (link)" if run.folder.is_symlink() else run.name, _model(run)]
        cells += [NOTHING if run.parameters is None else short(run.parameters), one.state.told]
        cells += [NOTHING if tokens is None else short(tokens)]
        cells += [NOTHING if value is None else f"{value:.4f}" for value in (one.last, one.best)]
        table.add_row(*(Text(one_line(cell)) for cell in [*cells, disk_size(one.bytes), f"{age(one.changed)} ago"]))
    return table


def _model(run: Run) -> str:
    if run.config is None:
        return NOTHING
    model = run.config.flags.model
    return " ".join([model.size, model.variant, *([model.pattern] if model.variant != "standard" else [])])
