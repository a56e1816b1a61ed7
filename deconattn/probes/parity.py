"""Parity of all bits so far: the smallest task of state tracking.

Hahn 2020 shows that attention of a fixed depth cannot compute it at every length, Grazzi et al. 2025 ("Unlocking
State-Tracking in Linear RNNs Through Negative Eigenvalues") that linear recurrences without such cannot either.
"""

from dataclasses import dataclass

import numpy as np

from deconattn.probes.task import Row, Task, nothing_asked, register_task

ZERO, EVEN = 1, 3


@register_task("parity")
@dataclass(frozen=True)
class Parity(Task):
    """Random bits; at each, whether an odd number of ones has come."""

    axis = "bits"
    levels = (4, 8, 16, 32)

    bits: int = 32
    """Bits of a sample."""

    @property
    def length(self) -> int:
        return self.bits

    @property
    def vocab_size(self) -> int:
        return 5

    @property
    def chance(self) -> float:
        return 0.5

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        bits, labels = generator.integers(0, 2, self.bits), nothing_asked(self.bits)
        labels[:] = EVEN + bits.cumsum() % 2
        return ZERO + bits, labels
