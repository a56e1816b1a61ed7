"""Fuzzy recall: keys and values of one to three tokens each.

Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures" (MAD), appendix B.1.2.
"""

from dataclasses import dataclass

import numpy as np

from deconattn.probes.task import BLANK, Row, Task, nothing_asked, register_task


@register_task("fuzzy-recall")
@dataclass(frozen=True)
class FuzzyRecall(Task):
    """All pairs, then all pairs again in another order, where each token of a value is asked.

    No key begins another, so that it is known where a key ends. What is left of the length is blank.
    """

    axis = "pairs"
    levels = (2, 4, 8)

    pairs: int = 4
    """Pairs of key and value, each asked once."""
    widest: int = 3
    """Most tokens of a key or a value."""
    alphabet: int = 32
    """Tokens of keys, and as many of values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 2 * self.pairs > self.alphabet:  # or there might be no key left that begins no other
            self.refuse("pairs", f"is more than half of the {self.alphabet} tokens of the alphabet")

    @property
    def length(self) -> int:
        return 4 * self.pairs * self.widest

    @property
    def vocab_size(self) -> int:
        return 1 + 2 * self.alphabet

    @property
    def chance(self) -> float:
        return 1 / self.alphabet

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        keys: list[Row] = []
        while len(keys) < self.pairs:
            key = self._tokens(generator, 1)
            if not any(_begins(key, other) or _begins(other, key) for other in keys):
                keys.append(key)
        values = [self._tokens(generator, 1 + self.alphabet) for _ in keys]
        tokens, labels, end = np.full(self.length, BLANK), nothing_asked(self.length), 0
        for turn in range(2):
            for pair in generator.permutation(self.pairs):
                key, value = keys[pair], values[pair]
                answers = end + len(key)
                end = answers + len(value)
                tokens[answers - len(key) : end] = np.concatenate([key, value])
                if turn:
                    labels[answers - 1 : end - 1] = value
        return tokens, labels

    def _tokens(self, generator: np.random.Generator, first: int) -> Row:
        return generator.integers(first, first + self.alphabet, generator.integers(1, self.widest + 1))


def _begins(short: Row, long: Row) -> bool:
    return bool(np.array_equal(short, long[: len(short)]))
