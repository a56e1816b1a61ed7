"""Memorisation: facts that no context tells, to be kept in the weights.

Poli et al. 2024 (MAD, appendix B.1.4). Nothing needs to be mixed: the control among the tasks.
"""

from dataclasses import dataclass

import numpy as np

from deconattn.probes.task import Row, Task, nothing_asked, register_task

FACTS_SEED = 20_240_326
"""Of the facts, which are the same for every seed of the samples."""


@register_task("memorise")
@dataclass(frozen=True)
class Memorise(Task):
    """Random keys; the value that belongs to each is asked there."""

    axis = "facts"
    levels = (16, 64, 256, 1024)

    facts: int = 128
    """Keys, each with a value."""
    context: int = 32
    """Keys in a sample."""
    alphabet: int = 32
    """Different values."""

    @property
    def length(self) -> int:
        return self.context

    @property
    def vocab_size(self) -> int:
        return 1 + self.facts + self.alphabet

    @property
    def chance(self) -> float:
        return float(np.bincount(self._values()).max() / self.facts)

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        values = self._values()
        keys, labels = generator.integers(0, self.facts, self.length), nothing_asked(self.length)
        labels[:] = 1 + values[keys]
        return 1 + self.alphabet + keys, labels

    def _values(self) -> Row:
        return np.random.Generator(np.random.Philox(key=FACTS_SEED)).integers(0, self.alphabet, self.facts)
