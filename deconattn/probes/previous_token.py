"""The token before, or a fixed number of tokens before: mixing by position alone."""

from dataclasses import dataclass

import numpy as np

from deconattn.probes.task import Row, Task, nothing_asked, register_task


@register_task("previous-token")
@dataclass(frozen=True)
class PreviousToken(Task):
    """Random symbols; at each, the one `gap` places before."""

    axis = "gap"
    levels = (1, 2, 8, 32)
    apart = True

    gap: int = 1
    """How far back."""
    context: int = 64
    """Tokens of a sample."""
    alphabet: int = 16
    """Different symbols."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gap >= self.context:
            self.refuse("gap", f"reaches beyond the {self.context} tokens of a sample")

    @property
    def length(self) -> int:
        return self.context

    @property
    def vocab_size(self) -> int:
        return 1 + self.alphabet

    @property
    def chance(self) -> float:
        return 1 / self.alphabet

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        tokens, labels = generator.integers(1, self.vocab_size, self.length), nothing_asked(self.length)
        labels[self.gap :] = tokens[: -self.gap]
        return tokens, labels
