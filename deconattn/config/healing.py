"""Flags by which a run begins with a trained model and learns from one: what they say, and what is wrong with them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from deconattn.errors import UserError

if TYPE_CHECKING:
    from deconattn.config.flags import TrainingFlags

ObjectiveName = Literal["layer", "logits", "lm"]
SHARED = "shared"
"""The word for all parameters that `--init-from` gave."""
NEVER = 2**62
"""The step until which a parameter is frozen that is so for the whole run."""


@dataclass(frozen=True)
class Freeze:
    """Parameters that are frozen: a pattern of names, or :data:`SHARED`, until a step."""

    pattern: str
    until: int = NEVER


@dataclass(frozen=True)
class Lesson:
    """Steps in a row that minimise one objective.

    Attributes:
        first: the first of them, from 0.
    """

    objective: ObjectiveName
    first: int


def parse_freeze(words: Sequence[str]) -> tuple[Freeze, ...]:
    """Return what `--freeze` says.

    Raises:
        UserError: naming the word whose step is none.
    """
    rules = []
    for word in words:
        pattern, at, step = word.partition("@")
        if not pattern or (at and not (step.isascii() and step.isdigit() and int(step) > 0)):
            raise UserError(f"--freeze {word}: give a pattern of names, or PATTERN@STEP, the step above zero")
        rules.append(Freeze(pattern, int(step) if at else NEVER))
    return tuple(rules)


def lessons(flags: "TrainingFlags") -> tuple[Lesson, ...]:
    """Return what `--distill` says, in order; the last lesson lasts until the run ends. None without the flag.

    Raises:
        UserError: naming the part that cannot be.
    """
    text = flags.healing.distill
    if text is None:
        return ()
    parts, names = text.split(","), get_args(ObjectiveName)
    found, step, tokens = [], 0, 0
    for number, part in enumerate(parts):
        word, colon, length = part.strip().partition(":")
        name: ObjectiveName | None = next((name for name in names if name == word), None)
        if name is None:
            raise UserError(f"--distill {text}: {word!r} is none of {', '.join(names)}")
        found.append(Lesson(name, step))
        if number == len(parts) - 1:
            if colon:
                raise UserError(f"--distill {text}: {name} is the last, until the run ends: leave :{length} out")
            break
        if not colon:
            raise UserError(f"--distill {text}: how long is {name}? Give {name}:STEPS, or {name}:TOKENSt")
        digits = length.removesuffix("t")
        amount = int(digits) if digits.replace("_", "").isdigit() and digits.isascii() else 0
        if not amount:
            raise UserError(f"--distill {text}: {part.strip()}: the length must be a whole number above zero")
        if length.endswith("t"):
            tokens = flags.plan.tokens(step) + amount if step else amount
            step = flags.plan.steps_for(tokens)
        else:
            step += amount
    for before, after in pairwise(found):
        if names.index(after.objective) <= names.index(before.objective):
            raise UserError(f"--distill {text}: the order is {', '.join(names)}: {after.objective} cannot come there")
    if found[-1].first >= flags.total_steps:
        raise UserError(
            f"--distill {text}: {found[-1].objective} would begin after step {found[-1].first}, and the run has "
            f"{flags.total_steps}: give more --steps, or shorter lessons"
        )
    return tuple(found)


def needs_teacher(flags: "TrainingFlags", step: int) -> bool:
    """Whether the step after so many, or a later one, learns from the teacher."""
    taught = lessons(flags)
    return bool(taught) and (taught[-1].objective != "lm" or step < taught[-1].first)


def check_healing(flags: "TrainingFlags") -> None:
    """Check what is known before a folder is opened.

    Raises:
        UserError: naming the flag and the remedy.
    """
    healing = flags.healing
    if healing.init_from is not None and not flags.data.data:
        raise UserError("--init-from needs --data: name packed corpora whose tokens the model knows")
    if healing.init_from is not None and not flags.run.resume:
        check_folder("--init-from", healing.init_from)
    if (healing.teacher is None) != (healing.distill is None):
        missing, given = ("--teacher", "--distill") if healing.teacher is None else ("--distill", "--teacher")
        raise UserError(f"{given} goes with {missing}: give both, or neither")
    frozen, taught = parse_freeze(healing.freeze), lessons(flags)
    if any(rule.pattern == SHARED for rule in frozen) and not (healing.init_from or flags.run.resume):
        raise UserError("--freeze shared is what --init-from gave: give that too, or patterns of names")
    if healing.teacher is not None:
        if not flags.run.resume:  # it may have taught all that it had to
            check_folder("--teacher", healing.teacher)
        if not flags.data.data:
            raise UserError("--teacher needs --data: name packed corpora whose tokens it knows")
    if not 0 < healing.distill_temperature < math.inf:
        raise UserError(f"--distill-temperature is {healing.distill_temperature}: it must be a number above zero")
    for flag, there in (("--freeze", bool(frozen)), ("--distill", bool(taught))):
        if there and flags.engine.pp > 1:
            raise UserError(f"{flag} does not go with --pp {flags.engine.pp}: use --tp, or ZeRO to share memory out")
        if there and flags.optimization.optimizer == "muon":
            raise UserError(f"{flag} does not go with --optimizer muon, which updates all matrices: use adamw")


def check_folder(flag: str, folder: Path) -> None:
    """Raise UserError if the folder of a trained model is not there."""
    if not folder.is_dir():
        raise UserError(f"{flag} {folder}: no such folder: give a run, a checkpoint or a Hugging Face folder")
