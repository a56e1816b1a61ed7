"""List the runs of a folder, and remove some: runs [DIR] [--remove NAME...]."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from deconattn import durable
from deconattn.cli import parse, show
from deconattn.errors import UserError
from deconattn.program import command


@dataclass(frozen=True)
class Arguments:
    """List the runs of a folder: model, state, tokens, losses, size on the disk, age.

    A run is finished, stopped (at the checkpoint that --resume goes on from), training now, or broken.
    """

    dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = Path("runs")
    """The folder that holds the runs."""
    sort: Literal["name", "age", "loss", "size"] = "name"
    """By name, or the newest, the best or the largest first."""
    remove: tuple[str, ...] = ()
    """Remove these runs, by their names in the list, with all their checkpoints."""
    yes: bool = False
    """With --remove: do not ask."""


def main(words: Sequence[str]) -> int | None:
    """Read the flags, and list or remove; 1 where what was asked was answered with no."""
    arguments = parse(Arguments, words, program=command("runs"))
    if arguments.remove:
        with durable.disk_errors(arguments.dir):
            return _remove(arguments)
    if arguments.yes:
        raise UserError("--yes is of --remove: give the names of runs to remove, or leave it out")
    from deconattn.runs.listing import listing_table, runs_in

    listed = runs_in(arguments.dir, arguments.sort)
    if listed:
        show(listing_table(listed))
    else:
        print(f"{arguments.dir} holds no runs")
    for left in durable.left_by_removals(arguments.dir):
        print(f"note: a killed removal has left {left}, which the next --remove takes", file=sys.stderr)
    return None


def _remove(arguments: Arguments) -> int | None:
    from deconattn.runs.listing import bytes_of, disk_size
    from deconattn.runs.removal import checked, remove

    runs = checked(arguments.dir, arguments.remove)
    sizes = {run: disk_size(bytes_of(run)) for run in runs}
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise UserError("--remove asks first, and nobody can answer here: add --yes")
        named = ", ".join(f"{run} ({size})" for run, size in sizes.items())
        try:
            answer = input(f"remove {named} for good? [y/N] ")
        except (EOFError, KeyboardInterrupt):
            answer = ""
            print()
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return 1
    for run, size in sizes.items():
        remove(run)
        print(f"removed: {run} ({size})")
    for left in durable.sweep_removed(arguments.dir):
        print(f"removed: {left}, which a killed removal had left")
    return None
