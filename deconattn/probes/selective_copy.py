"""Selective copying: symbols lie among blanks, at places that differ from sample to sample, and are said in order.

Gu and Dao 2023, "Mamba", section 4.1.1, after Arjovsky et al. 2016. A fixed map of positions cannot do it.
"""

from dataclasses import dataclass

import numpy as np

from deconattn.probes.task import BLANK, Row, Task, nothing_asked, register_task

MARKER = 1


@register_task("selective-copy")
@dataclass(frozen=True)
class SelectiveCopy(Task):
    """A context of blanks with symbols in it, then a marker for each symbol, where it is asked."""

    axis = "context"
    levels = (8, 16, 32)

    context: int = 32
    """Tokens among which the symbols lie."""
    symbols: int = 4
    """Symbols to copy."""
    alphabet: int = 8
    """Different symbols."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symbols > self.context:
            self.refuse("symbols", f"is more than the {self.context} tokens of the context")

    @property
    def length(self) -> int:
        return self.context + self.symbols

    @property
    def vocab_size(self) -> int:
        return 2 + self.alphabet

    @property
    def chance(self) -> float:
        return 1 / self.alphabet

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        tokens, labels = np.full(self.length, MARKER), nothing_asked(self.length)
        symbols = generator.integers(2, self.vocab_size, self.symbols)
        tokens[: self.context] = BLANK
        tokens[np.sort(generator.permutation(self.context)[: self.symbols])] = symbols
        labels[self.context :] = symbols
        return tokens, labels
