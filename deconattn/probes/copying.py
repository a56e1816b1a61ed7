"""Copying: a string is told, then said again.

Jelassi et al. 2024, "Repeat after me", section 3: models with a state of fixed size cannot copy long strings.
"""

from dataclasses import dataclass

import numpy as np

from deconattn.probes.task import Row, Task, nothing_asked, register_task

MARKER = 1


@register_task("copy")
@dataclass(frozen=True)
class Copy(Task):
    """Random symbols, a marker, and the symbols again, each asked at the token before it."""

    axis = "symbols"
    levels = (4, 8, 16, 32)

    symbols: int = 16
    """Symbols to copy."""
    alphabet: int = 16
    """Different symbols."""

    @property
    def length(self) -> int:
        return 2 * self.symbols

    @property
    def vocab_size(self) -> int:
        return 2 + self.alphabet

    @property
    def chance(self) -> float:
        return 1 / self.alphabet

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        symbols = generator.integers(2, self.vocab_size, self.symbols)
        labels = nothing_asked(self.length)
        labels[self.symbols :] = symbols
        return np.concatenate([symbols, [MARKER], symbols[:-1]]), labels
