"""Distillation of a run: which objective each step minimises, and the teacher for as long as one needs it."""

from collections.abc import Callable

from deconattn.config.flags import TrainingFlags
from deconattn.config.healing import Lesson, ObjectiveName, lessons
from deconattn.errors import UserError
from deconattn.healing.objectives import LayerObjective, LogitsObjective
from deconattn.healing.source import Source
from deconattn.healing.teacher import Teacher, as_teacher
from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import Objective


class Distillation:
    """Objectives of a run's steps.

    Args:
        make: makes the teacher, a collective call; made when a step first needs it.
    """

    def __init__(self, flags: TrainingFlags, make: Callable[[], Teacher]) -> None:
        self._lessons, self._temperature = lessons(flags), flags.healing.distill_temperature
        self._make = make
        self._teacher: Teacher | None = None
        self._current: tuple[ObjectiveName, Objective | None] | None = None

    def lesson(self, step: int) -> Lesson:
        """Return the lesson that a step, from 0, is of."""
        return next(lesson for lesson in reversed(self._lessons) if lesson.first <= step)

    def objective(self, step: int) -> Objective | None:
        """Return what a step minimises; None: the loss on labels. The first of a lesson is a collective call."""
        name = self.lesson(step).objective
        if self._current is None or self._current[0] != name:
            self._current = name, self._objective(name)
        return self._current[1]

    def _objective(self, name: ObjectiveName) -> Objective | None:
        if name == "lm":
            self._teacher = None  # its memory is free from now on
            return None
        self._teacher = self._teacher or self._make()
        return LayerObjective(self._teacher) if name == "layer" else LogitsObjective(self._teacher, self._temperature)


def check_teacher(flags: TrainingFlags, config: ModelConfig, source: Source) -> None:
    """Check that a model can learn from a teacher; nothing is read.

    Raises:
        UserError: what does not fit, and the remedy.
    """
    theirs = as_teacher(source.config, flags.plan.longest)
    named = f"--teacher {source.folder}"
    if theirs.vocab_size != config.vocab_size:
        raise UserError(
            f"{named} predicts {theirs.vocab_size} words and the model {config.vocab_size}: give --vocab-size "
            f"{theirs.vocab_size}, or --init-from a model that has as many"
        )
    if any(lesson.objective == "layer" for lesson in lessons(flags)):
        for name in ("hidden_size", "num_hidden_layers"):
            if getattr(theirs, name) != getattr(config, name):
                raise UserError(
                    f"{named} has {name} {getattr(theirs, name)} and the model {getattr(config, name)}: --distill "
                    "layer compares layer with layer; leave it out, or give a teacher of the model's dimensions"
                )
    if theirs.max_position_embeddings < flags.plan.longest:
        raise UserError(
            f"--seq-len {flags.plan.longest} is beyond the fixed stream of {named}, {theirs.max_position_embeddings} "
            "tokens: give at most that"
        )
    try:
        flags.engine.check(theirs, flags.plan.longest)
    except UserError as error:
        raise UserError(f"{named}: {error}") from None
