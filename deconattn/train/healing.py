"""What one run has to do with trained models: the weights it begins with, what of them stays, whom it learns from."""

import math
from collections.abc import Callable
from typing import Any

import torch

from deconattn.checkpoint.format import Checkpoint
from deconattn.checkpoint.tensors import expected_headers
from deconattn.config.flags import TrainingFlags
from deconattn.healing import freezing
from deconattn.healing.distillation import Distillation, check_teacher
from deconattn.healing.teacher import Teacher
from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM, Objective
from deconattn.train.engine import Engine
from deconattn.train.warm_start import WarmStart, open_everywhere


class Healing:
    """Start, freezing and distillation of a run; made and called on every rank.

    Args:
        checkpoint: what the run goes on from; it has the weights then.

    Attributes:
        frozen: the step until which parameters are frozen, by canonical name, of those that are.

    Raises:
        UserError: on every rank: a model that cannot be begun with, or a pattern that is no parameter's.
    """

    def __init__(self, flags: TrainingFlags, config: ModelConfig, checkpoint: Checkpoint | None) -> None:
        self._flags, self._config = flags, config
        begins = flags.healing.init_from is not None and checkpoint is None
        self._start = WarmStart(flags, config) if begins else None
        self._origin: dict[str, Any] = self._start.origin if self._start else {}
        if checkpoint:
            self._origin = checkpoint.origin
        parameters, _ = expected_headers(config)
        self._sizes = {name: math.prod(shape) for name, (_, shape) in parameters.items()}
        shared = freezing.shared_parameters(config, self._origin)
        self.frozen = freezing.frozen_until(flags, [*parameters], shared)
        self._distillation: Distillation | None = None
        self._begun = False

    @property
    def origin(self) -> dict[str, Any]:
        """Fields of the run's configuration about the model that it began with."""
        return self._origin

    def fill_buffers(self, model: CausalLM) -> None:
        """Give a fresh model the buffers of the one that it begins with."""
        if self._start:
            self._start.fill_buffers(model)

    def attach(self, engine: Engine) -> None:
        """Give a fresh engine the weights that it begins with, and have the teacher where the engine is."""
        if self._start:
            self._start.fill_parameters(engine)
        if self._flags.healing.distill:
            self._distillation = Distillation(self._flags, lambda: self._teacher(engine))

    def report(self) -> list[str]:
        """Return lines about what was taken and what is frozen."""
        return (self._start.report() if self._start else []) + freezing.report(self.frozen, self._sizes)

    def objective(self, step: int, say: Callable[[str], None]) -> Objective | None:
        """Return what a step, from 0, minimises, None for the usual loss; a collective call, where a teacher is read.

        Args:
            say: is told when another objective begins, and where the run goes on.
        """
        if self._distillation is None:
            return None
        lesson = self._distillation.lesson(step)
        objective = self._distillation.objective(step)
        if step == lesson.first or not self._begun:
            self._begun = True
            by = f", of {self._flags.healing.teacher}" if objective else ""
            say(f"distillation, from step {lesson.first + 1}: {lesson.objective}{by}")
        return objective

    def marks(self, step: int) -> dict[str, str]:
        """Return what a step's row of metrics has of it: what the loss in it is."""
        return {"objective": self._distillation.lesson(step).objective} if self._distillation else {}

    def _teacher(self, engine: Engine) -> Teacher:
        flags = self._flags
        assert flags.healing.teacher is not None
        source = open_everywhere(flags.healing.teacher, flags)
        check_teacher(flags, self._config, source)
        dtype = torch.bfloat16 if flags.engine.precision == "bf16" else torch.float32
        parallel, longest = flags.engine.sequence_parallel, flags.plan.longest
        return Teacher(source, engine.topology, parallel, longest, engine.device, dtype)
