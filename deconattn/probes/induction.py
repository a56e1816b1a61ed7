"""Induction: what came after the marker when it was last seen?

The induction heads task of Dao et al. 2022 ("Hungry Hungry Hippos", section 3.1) and Gu and Dao 2023 ("Mamba",
section 4.1.2); the circuit is that of Olsson et al. 2022.
"""

from dataclasses import dataclass

import numpy as np

from deconattn.probes.task import Row, Task, nothing_asked, register_task

MARKER = 1


@register_task("induction")
@dataclass(frozen=True)
class Induction(Task):
    """Random symbols with a marker among them; the sample ends with the marker again."""

    axis = "context"
    levels = (8, 16, 32, 64)

    context: int = 32
    """Tokens of a sample."""
    alphabet: int = 16
    """Symbols."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 3:
            self.refuse("context", "must be at least 3: a marker, what follows, and the marker")

    @property
    def length(self) -> int:
        return self.context

    @property
    def vocab_size(self) -> int:
        return 2 + self.alphabet

    @property
    def chance(self) -> float:
        return 1 / self.alphabet

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        tokens, labels = generator.integers(2, self.vocab_size, self.length), nothing_asked(self.length)
        place = generator.integers(0, self.length - 2)
        tokens[place] = tokens[-1] = MARKER
        labels[-1] = tokens[place + 1]
        return tokens, labels
