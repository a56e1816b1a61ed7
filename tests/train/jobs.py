"""Trainings inside a process group that has been started.

A flag list may begin with `stop=N` (rank 0 is asked to stop in step N), with `stop_validation=N` or `stop_scores=N`
(the last rank is asked to in the validation, or as the scores begin, after step N), and with `poison=N` and `until=M`
(a gradient is NaN in steps N to M, from 0), and with `sleeper=N` (rank N sleeps in each forward pass).
"""

import time
from collections.abc import Iterator
from typing import Any

from deconattn.config.command_line import parse_training_flags
from deconattn.data import Batch
from deconattn.errors import UserError
from deconattn.evaluation.in_loop import scorer
from deconattn.launch import ranks
from deconattn.train.run_folder import check_run_folder
from deconattn.train.trainer import Trainer

SLEEP_SECONDS = 0.2


class Stop:
    """Asks for a stop before step `at` has ended; never, if that is None."""

    launcher_lost = False

    def __init__(self, at: int | None = None) -> None:
        self.at, self.trainer, self.asked = at, None, False

    def __bool__(self) -> bool:
        return self.asked or (
            self.at is not None and self.trainer is not None and self.trainer.progress.step + 1 >= self.at
        )


def run_job(arguments: list[str]) -> Trainer:
    """Train in this process group, which must have been started."""
    special: dict[str, int] = {}
    while arguments and "=" in arguments[0]:
        name, value = arguments[0].split("=")
        special[name], arguments = int(value), arguments[1:]
    flags = parse_training_flags(arguments)
    check_run_folder(flags)
    stop = Stop(special.get("stop") if ranks.rank() == 0 else None)  # one rank's wish is all ranks' command
    trainer = Trainer(flags, stop, scorer(flags.evaluation))
    stop.trainer = trainer
    if ranks.rank() == ranks.world_size() - 1:
        _ask_in_validation(trainer, special.get("stop_validation"))
        _ask_in_scores(trainer, special.get("stop_scores"))
    if "poison" in special:
        _poison(trainer, special["poison"], special.get("until", 10**9))
    if special.get("sleeper") == ranks.rank():
        trainer.engine.model.model.blocks[0].register_forward_pre_hook(lambda *_: time.sleep(SLEEP_SECONDS))
    trainer.run()
    return trainer


def train(arguments: list[str]) -> str | None:
    """:func:`run_job` for ranks; the message of a UserError, if it ends in one."""
    try:
        run_job(arguments).engine.destroy()
    except UserError as error:
        return str(error)
    return None


def train_and_listen(arguments: list[str]) -> list[str]:
    """:func:`run_job` for ranks; the lines that rank 0 said."""
    said: list[str] = []
    say = Trainer._say

    def listening(trainer: Trainer, line: str) -> None:
        said.append(line)
        say(trainer, line)

    Trainer._say = listening  # type: ignore[method-assign]
    try:
        run_job(arguments).engine.destroy()
    finally:
        Trainer._say = say  # type: ignore[method-assign]
    return said


def _ask_in_validation(trainer: Trainer, step: int | None) -> None:
    batches_of = trainer.data.validation_batches

    def asking(*place: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches_of(*place)):
            if number and trainer.progress.step == step:
                trainer.stop.asked = True
            yield batch

    trainer.data.validation_batches = asking  # type: ignore[method-assign]


def _ask_in_scores(trainer: Trainer, step: int | None) -> None:
    score = trainer._score

    def asking() -> None:
        trainer.stop.asked |= trainer.progress.step == step
        score()

    trainer._score = asking  # type: ignore[method-assign]


def _poison(trainer: Trainer, first: int, until: int) -> None:
    if not trainer.engine.model.model.is_last:
        return
    parameter = trainer.engine.model.model.norm.weight

    def hook(gradient: Any) -> Any:
        return gradient * float("nan") if first <= trainer.progress.step < until else gradient

    parameter.register_hook(hook)
