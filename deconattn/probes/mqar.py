"""Multi-query associative recall: pairs of key and value, then keys whose values are asked.

Arora et al. 2023, "Zoology", section 3 and appendix B: queries come after the pairs, their gaps by a power law, and
random tokens between them.
"""

from dataclasses import dataclass

import numpy as np

from deconattn.probes.task import Row, Task, nothing_asked, register_task

POWER = 0.01
"""Exponent of the gaps' distribution, as in Zoology's experiments."""


@register_task("mqar")
@dataclass(frozen=True)
class MultiQueryRecall(Task):
    """Keys are 1 .. alphabet, values follow them; the value is asked at each second appearance of a key."""

    axis = "pairs"
    levels = (2, 4, 8, 16)

    pairs: int = 8
    """Pairs of key and value, each asked once."""
    context: int = 32
    """Tokens of a sample; at least four for each pair."""
    alphabet: int = 32
    """Keys, and as many values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs > self.alphabet:
            self.refuse("pairs", f"is more than the {self.alphabet} keys of the alphabet")

    @property
    def length(self) -> int:
        return max(self.context, 4 * self.pairs)

    @property
    def vocab_size(self) -> int:
        return 1 + 2 * self.alphabet

    @property
    def chance(self) -> float:
        return 1 / self.alphabet

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        tokens, labels = generator.integers(1, self.vocab_size, self.length), nothing_asked(self.length)
        keys = 1 + generator.permutation(self.alphabet)[: self.pairs]
        values = generator.integers(1 + self.alphabet, self.vocab_size, self.pairs)
        told = 2 * self.pairs
        tokens[:told:2], tokens[1:told:2] = keys, values
        # Waiting times with rates 1 / gap^(1 - POWER): the first to arrive are drawn by the power law, none twice.
        waits = generator.standard_exponential((self.length - told) // 2)
        waits *= np.arange(1, len(waits) + 1) ** (1 - POWER)
        asked = told + 2 * waits.argsort()[: self.pairs]
        tokens[asked], labels[asked] = keys, values
        return tokens, labels
