"""Compression: a whole sequence brought into the output of its last token.

After the compression task of Poli et al. 2024 (MAD, appendix B.1.6), whose model has an encoder and a decoder; here
the one answer is the number of the sequence among all of its length, so that a language model can give it.
"""

from dataclasses import dataclass

import numpy as np

from deconattn.probes.task import Row, Task, nothing_asked, register_task

MARKER = 1
MOST = 2**14
"""Answers that a vocabulary may hold."""


@register_task("compress")
@dataclass(frozen=True)
class Compress(Task):
    """Random symbols and a marker, where the number that they are the digits of is asked, the first the highest."""

    axis = "symbols"
    levels = (2, 3, 4, 5)

    symbols: int = 4
    """Symbols that are brought together."""
    alphabet: int = 4
    """Different symbols."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symbols > 32 or self.alphabet**self.symbols > MOST:
            self.refuse("symbols", f"makes more than {MOST} answers with an alphabet of {self.alphabet}")

    @property
    def length(self) -> int:
        return self.symbols + 1

    @property
    def vocab_size(self) -> int:
        return 2 + self.alphabet + self.alphabet**self.symbols

    @property
    def chance(self) -> float:
        return 1 / self.alphabet**self.symbols

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        digits, labels = generator.integers(0, self.alphabet, self.symbols), nothing_asked(self.length)
        number = int(digits @ self.alphabet ** np.arange(self.symbols)[::-1])
        labels[-1] = 2 + self.alphabet + number
        return np.append(2 + digits, MARKER), labels
