"""Samples of a ladder for training and measuring, drawn once and kept for all models that read them."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from deconattn.ops.cross_entropy import IGNORED
from deconattn.probes import Task, stream
from deconattn.probing.grid import Ladder

KEPT_BYTES = 2**28
"""What a worker keeps of a ladder's training samples at most; later ones are drawn again for each model."""
LADDERS = 2
"""Ladders whose samples a worker keeps, each of a seed."""
ASKED = 2500
"""Positions asked in a measurement: the standard error of an accuracy is 1 % or less, were they independent."""
SAMPLES = 250
"""Samples of a measurement at least: answers within one depend on each other."""
MEASURED_AT_ONCE = 8192
"""Tokens of a forward pass."""


@dataclass(frozen=True)
class Questions:
    """Samples, and what is asked of them.

    Attributes:
        tokens: int64 [B, L].
        asked: int64 [n], the asked positions among B x L.
        answers: int64 [n].
    """

    tokens: Tensor
    asked: Tensor
    answers: Tensor

    @classmethod
    def of(cls, task: Task, seed: int, indices: range) -> "Questions":
        tokens, labels = (torch.from_numpy(part) for part in task.batch(seed, indices))
        asked = (labels.flatten() != IGNORED).nonzero()[:, 0]
        return cls(tokens, asked, labels.flatten()[asked])

    def to(self, device: torch.device) -> "Questions":
        return Questions(*(part.to(device, torch.long) for part in (self.tokens, self.asked, self.answers)))

    def small(self) -> "Questions":
        return Questions(*(part.to(torch.int32) for part in (self.tokens, self.asked, self.answers)))

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in (self.tokens, self.asked, self.answers))


class Samples:
    """Samples of one ladder and seed: each step one difficulty's, in turn."""

    def __init__(self, ladder: Ladder, seed: int, batch_size: int) -> None:
        self.ladder, self.seed, self.batch_size = ladder, seed, batch_size
        self._kept: list[Questions] = []
        self._bytes = 0
        self._measured: dict[Task, list[Questions]] = {}
        self._checks: dict[Task, Questions] = {}

    def step(self, step: int) -> Questions:
        """Return the samples of a step, from 0."""
        if step < len(self._kept):
            return self._kept[step]
        turn, level = divmod(step, len(self.ladder.tasks))
        indices = range(turn * self.batch_size, (turn + 1) * self.batch_size)
        drawn = Questions.of(self.ladder.tasks[level], stream(self.seed, "train"), indices).small()
        if step == len(self._kept) and self._bytes < KEPT_BYTES:
            self._kept.append(drawn)
            self._bytes += drawn.bytes
        return drawn

    def held_out(self, task: Task) -> list[Questions]:
        """Return the samples that a model's accuracy is measured on."""
        if task not in self._measured:
            self._measured[task] = self._draw(task)
        return self._measured[task]

    def check(self, task: Task) -> Questions:
        """Return the samples that tell whether training can end."""
        if task not in self._checks:
            self._checks[task] = Questions.of(task, stream(self.seed, "check"), range(self.batch_size))
        return self._checks[task]

    def fixed_ids(self, length: int) -> Tensor:
        """Return the text of the fixed stream, int64 [length]: the first tokens of the hardest samples."""
        task = self.ladder.tasks[-1]
        tokens, _ = task.batch(stream(self.seed, "train"), range(-(-length // task.length)))
        return torch.from_numpy(np.concatenate(list(tokens)))[:length]

    def _draw(self, task: Task) -> list[Questions]:
        first = Questions.of(task, stream(self.seed, "held-out"), range(1))
        samples = max(SAMPLES, -(-ASKED // max(1, len(first.asked))))
        at_once = max(1, MEASURED_AT_ONCE // task.length)
        ends = [*range(0, samples, at_once), samples]
        return [
            Questions.of(task, stream(self.seed, "held-out"), range(start, end)).small()
            for start, end in pairwise(ends)
        ]


@lru_cache(maxsize=LADDERS)
def samples_of(ladder: Ladder, seed: int, batch_size: int) -> Samples:
    """Return a ladder's samples, those that this process has drawn already among them."""
    return Samples(ladder, seed, batch_size)
