"""Recall by position: which symbol stood at place p?"""

from dataclasses import dataclass

import numpy as np

from deconattn.probes.task import Row, Task, nothing_asked, register_task


@register_task("positional-recall")
@dataclass(frozen=True)
class PositionalRecall(Task):
    """Random symbols, then tokens that each name a place; the symbol there is asked at each of these."""

    axis = "context"
    levels = (8, 16, 32, 64)

    context: int = 32
    """Symbols, and places that can be named."""
    queries: int = 8
    """Places that are named."""
    alphabet: int = 16
    """Different symbols."""

    @property
    def length(self) -> int:
        return self.context + self.queries

    @property
    def vocab_size(self) -> int:
        return 1 + self.alphabet + self.context

    @property
    def chance(self) -> float:
        return 1 / self.alphabet

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        symbols = generator.integers(1, 1 + self.alphabet, self.context)
        places, labels = generator.integers(0, self.context, self.queries), nothing_asked(self.length)
        labels[self.context :] = symbols[places]
        return np.concatenate([symbols, 1 + self.alphabet + places]), labels
