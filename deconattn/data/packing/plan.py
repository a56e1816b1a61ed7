"""What the result of a pack depends on, so that an unfinished one goes on only where it gives the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deconattn.data.reading.inputs import Input
from deconattn.errors import UserError

_FORMAT = 1


def make_plan(flags: Mapping[str, Any], inputs: Sequence[Input]) -> dict[str, Any]:
    """The plan as JSON types. `flags` are those that matter, by their names on the command line."""
    return {"format": _FORMAT, "flags": dict(flags), "inputs": [[source.name, source.stamp] for source in inputs]}


def check_plan(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Compare the plan of the unfinished pack in `folder` with that of this one. Raises UserError naming a change."""
    change = _change(old, new)
    if change is not None:
        raise UserError(f"{folder} holds an unfinished pack, but {change}; undo that, or give --restart to discard it")


def _change(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    if old["format"] != new["format"]:
        return "another version of deconattn began it"
    for flag, value in new["flags"].items():
        before = old["flags"].get(flag)
        if before != value:
            return f"{flag} was {_shown(before)} and is {_shown(value)}"
    before, now = dict(old["inputs"]), dict(new["inputs"])
    for name, stamp in now.items():
        if name not in before:
            return f"{name} was not among the inputs"
        if before[name] != stamp:
            return f"{name} has changed since"
    for name in before:
        if name not in now:
            return f"{name} is no longer among the inputs"
    return "the inputs are in another order" if list(before) != list(now) else None


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)
