"""The folder of a grid.

    OUT/
        request.json      what was asked for so far
        cells/CELL.json   a model that has been trained, or failed
        locks/            who works on which shard
        results.json, results.parquet, and the page

Each file appears whole, by a rename, so that a process may end at any moment. A model's file has the name of what it
is: a grid that grows, and one that is gone on with, finds what is there.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deconattn import durable, locks
from deconattn.errors import UserError
from deconattn.json_files import read_json
from deconattn.mixers.plugins import code_digest
from deconattn.probing.cell import Measure, Trained
from deconattn.probing.grid import Cell, Grid, Group, make_grid
from deconattn.probing.request import GROWS, Request
from deconattn.probing.results import Row, write_results

FORMAT = 1


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: either of the two."""

    trained: Trained | None
    reason: str | None = None


@dataclass(frozen=True)
class GridFolder:
    """The places in the folder `out`."""

    out: Path

    @cached_property
    def request(self) -> Path:
        return self.out / "request.json"

    def cell(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.file

    def lock(self, shard: str) -> Path:
        return self.out / "locks" / f"shard-{shard.replace('/', '-of-')}"

    @property
    def common_lock(self) -> Path:
        """Lock of the files that every shard writes: the request and the results."""
        return self.out / "locks" / "results"

    def outcome(self, cell: Cell) -> Outcome | None:
        """Return what came of a cell; None: it is still to be trained, or its file cannot be read."""
        try:
            return TypeAdapter(Outcome).validate_python(read_json(self.cell(cell))["outcome"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def record(self, cell: Cell, outcome: Outcome) -> None:
        """Write what came of a cell."""
        path = self.cell(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        group = cell.group
        what = {"task": group.ladder.words, "variant": group.variant, "pattern": group.pattern}
        what |= {"size": str(group.size), "seed": str(cell.seed), "lr": f"{cell.lr:g}"}
        durable.write_json(path, what | {"outcome": asdict(outcome)})

    def forget(self, cell: Cell) -> None:
        self.cell(cell).unlink(missing_ok=True)


class Ledger:
    """What is known of the cells of a grid."""

    def __init__(self, folder: GridFolder, grid: Grid) -> None:
        self.folder, self.grid = folder, grid
        self._known: dict[Cell, Outcome] = {}

    def outcome(self, cell: Cell) -> Outcome | None:
        """Return what came of a cell; a file that appears later is seen."""
        if cell not in self._known:
            found = self.folder.outcome(cell)
            if found is None:
                return None
            self._known[cell] = found
        return self._known[cell]

    def record(self, cell: Cell, outcome: Outcome) -> None:
        self.folder.record(cell, outcome)
        self._known[cell] = outcome

    def retry(self, groups: list[Group]) -> None:
        """Forget what failed."""
        for cell in self.cells(groups):
            outcome = self.outcome(cell)
            if outcome is not None and outcome.trained is None:
                self.folder.forget(cell)
                del self._known[cell]

    def rate(self, group: Group) -> float | None:
        """Return the rate that the group's models get; None: it is not known yet, or none of the sweep came to an end.

        That is the rate of the highest mean accuracy on the first seed, and of equals the one of the lowest loss.
        """
        rates = self.grid.rates
        if len(rates) == 1:
            return rates[0]
        found: dict[float, tuple[float, float]] = {}
        for cell in self.grid.sweep(group):
            outcome = self.outcome(cell)
            if outcome is None:
                return None
            if outcome.trained is not None:
                measures = outcome.trained.measures
                found[cell.lr] = sum(each.accuracy for each in measures), -sum(each.loss for each in measures)
        return max(found, key=found.__getitem__) if found else None

    def cells(self, groups: list[Group]) -> Iterator[Cell]:
        """Yield all cells whose rate is known: those of the sweep, and then the other seeds' at the chosen rate."""
        for group in groups:
            yield from self.grid.sweep(group)
        for seed in range(1, len(self.grid.seeds)):
            for group in groups:
                rate = self.rate(group)
                if rate is not None:
                    yield self.grid.others(group, rate)[seed - 1]

    def failed(self, groups: list[Group]) -> list[tuple[Cell, str]]:
        """Return the cells that failed, each with its reason."""
        known = ((cell, self.outcome(cell)) for cell in self.cells(groups))
        return [(cell, outcome.reason) for cell, outcome in known if outcome is not None and outcome.reason is not None]

    def rows(self) -> list[Row]:
        """Return the results of all cells that have been trained or failed."""
        rows: list[Row] = []
        for cell in self.cells(list(self.grid.groups)):
            outcome = self.outcome(cell)
            if outcome is not None:
                rows += _rows(cell, outcome, self.rate(cell.group) == cell.lr)
        return rows


def _rows(cell: Cell, outcome: Outcome, chosen: bool) -> Iterator[Row]:
    group, trained = cell.group, outcome.trained
    for place, task in enumerate(group.ladder.tasks):
        measure = trained.measures[place] if trained else Measure(0, 0, 0)
        yield Row(
            task=group.ladder.name,
            settings=group.ladder.settings,
            axis=group.ladder.axis,
            difficulty=group.ladder.levels[place],
            chance=task.chance,
            variant=group.variant,
            pattern=group.pattern,
            size=str(group.size),
            hidden_size=group.size.width,
            layers=group.size.layers,
            parameters=trained.parameters if trained else 0,
            seed=cell.seed,
            lr=cell.lr,
            chosen=chosen,
            steps=trained.steps if trained else 0,
            tokens=trained.tokens if trained else 0,
            solved_at=trained.solved_at if trained else None,
            accuracy=measure.accuracy if trained else None,
            loss=measure.loss if trained else None,
            asked=measure.asked,
            seconds=round(trained.seconds, 2) if trained else 0.0,
            state="done" if trained else "failed",
            reason=outcome.reason,
        )


def merge_request(folder: GridFolder, given: Request) -> Request:
    """Write what the folder is asked for with `given`, and return it: all that it was asked for before, too.

    Raises:
        UserError: the folder was begun with other steps, rates or code, or by a later version, or what was asked for
            before and what is asked for now make no grid together.
    """
    code = {file.name: code_digest(file) for file in given.plugin}
    with locks.hold_lock(folder.common_lock, wait=True):
        stored = _stored(folder)
        merged = given
        if stored is not None:
            before, code_before = stored
            _check_same(folder, before, given)
            for name, digest in code_before.items():
                if code.get(name) != digest:
                    what = "has changed since" if name in code else "is not given"
                    raise UserError(
                        f"{folder.out} was begun with --plugin {name}, which {what}: give it as it was, or another "
                        "--out"
                    )
            grown: dict[str, Any] = {
                name: tuple(dict.fromkeys((*getattr(before, name), *getattr(given, name)))) for name in GROWS
            }
            merged = dataclasses.replace(given, **grown | {"seeds": max(before.seeds, given.seeds)})
        make_grid(merged)
        content = {"format": FORMAT, "request": _json(merged), "code": code}
        durable.write_json(folder.request, content)
    return merged


def stored_request(folder: GridFolder) -> Request:
    """Return what the folder was asked for (UserError where that cannot be read)."""
    stored = _stored(folder)
    if stored is None:
        raise UserError(f"--render: {folder.out} holds no grid of probes; check --out")
    return stored[0]


def _stored(folder: GridFolder) -> tuple[Request, dict[str, str]] | None:
    try:
        content = read_json(folder.request)
    except OSError:
        return None
    except ValueError as error:
        raise UserError(f"{folder.request} cannot be read ({error}): give another --out") from error
    if content.get("format") != FORMAT:
        raise UserError(f"{folder.request} has format {content.get('format')}, not {FORMAT}: give another --out")
    try:
        request = TypeAdapter(Request).validate_python(content["request"])
        return request, TypeAdapter(dict[str, str]).validate_python(content["code"])
    except (KeyError, ValidationError) as error:
        raise UserError(f"{folder.request} cannot be read: give another --out") from error


def _check_same(folder: GridFolder, before: Request, given: Request) -> None:
    for field in ("lr", "steps", "batch_size"):
        was, now = getattr(before, field), getattr(given, field)
        if was != now:
            flag = "--" + field.replace("_", "-")
            raise UserError(
                f"{folder.out} was begun with {flag} {_shown(was)} and the flags now say {_shown(now)}: give what it "
                "was begun with, or another --out (tasks, variants, patterns, sizes and seeds can be added)"
            )


def _shown(value: Any) -> str:
    return " ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else str(value)


def _json(request: Request) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TypeAdapter(Request).dump_json(request))
    return found


def write_all(folder: GridFolder) -> Path:
    """Write the results of all that the folder was asked for, and their page, which is returned."""
    from deconattn.probing.page import write_page

    with locks.hold_lock(folder.common_lock, wait=True):
        request = stored_request(folder)
        rows = Ledger(folder, make_grid(request)).rows()
        write_results(folder.out, _json(request), rows)
        return write_page(rows, folder.out)
