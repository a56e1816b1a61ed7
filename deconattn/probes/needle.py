"""A needle in a haystack: one of several marked strings, hidden in text with structure of its own, is asked.

After Kamradt 2023 ("Needle in a haystack") and the multi-key tasks of Hsieh et al. 2024 ("RULER", section 3).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from deconattn.probes.task import Row, Task, nothing_asked, register_task

WORDS, DIGITS = 32, 10
"""Words of the haystack, and digits of a needle."""
NEXT = 4
"""Words that may follow a word."""


@register_task("needle")
@dataclass(frozen=True)
class Needle(Task):
    """Text of a Markov chain with needles in it, each a name and some digits; the sample ends with one of the names.

    The digits are asked one after the other, each told before the next.
    """

    axis = "context"
    levels = (32, 64, 128, 256)

    context: int = 64
    """Tokens of haystack and needles."""
    needles: int = 4
    """Needles, one of which is asked."""
    digits: int = 3
    """Digits of a needle."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needles * (self.digits + 1) > self.context:
            self.refuse("needles", f"leaves no room in a context of {self.context} tokens")

    @property
    def length(self) -> int:
        return self.context + self.digits

    @property
    def vocab_size(self) -> int:
        return 1 + WORDS + DIGITS + self.needles

    @property
    def chance(self) -> float:
        return 1 / DIGITS

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        names = 1 + WORDS + DIGITS + np.arange(self.needles)
        digits = 1 + WORDS + generator.integers(0, DIGITS, (self.needles, self.digits))
        words = _walk(generator, self.context - digits.size - self.needles)
        cuts = np.sort(generator.integers(0, len(words) + 1, self.needles))
        parts: list[Row] = []
        for name, cut, before in zip(generator.permutation(self.needles), cuts, [0, *cuts[:-1]], strict=True):
            parts += [words[before:cut], names[[name]], digits[name]]
        asked = generator.integers(self.needles)
        parts += [words[cuts[-1] :], names[[asked]], digits[asked, :-1]]
        labels = nothing_asked(self.length)
        labels[self.context :] = digits[asked]
        return np.concatenate(parts), labels


def _walk(generator: np.random.Generator, length: int) -> Row:
    """Draw words of the haystack, 1 .. WORDS."""
    words, word, follow = np.empty(length, dtype=np.int64), generator.integers(WORDS), _chain()
    for place, choice in enumerate(generator.integers(NEXT, size=length)):
        word = follow[word, choice]
        words[place] = 1 + word
    return words


@cache
def _chain() -> npt.NDArray[np.int64]:
    """Return the words that may follow each word, the same in every sample: [WORDS, NEXT]."""
    generator = np.random.Generator(np.random.Philox(key=0))
    return np.stack([generator.permutation(WORDS)[:NEXT] for _ in range(WORDS)])
