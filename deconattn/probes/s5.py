"""State tracking: the product of permutations so far.

Merrill et al. 2024, "The Illusion of State in State-Space Models", section 4: the word problem of S5 is complete for
NC1, which models of fixed depth with attention, or with a diagonal state, are believed not to compute.
"""

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from deconattn.probes.task import Row, Task, nothing_asked, register_task


@register_task("s5")
@dataclass(frozen=True)
class Permutations(Task):
    """Random permutations; at each, the product of all so far, the latest applied last."""

    axis = "steps"
    levels = (2, 4, 8, 16)

    steps: int = 8
    """Permutations of a sample."""
    objects: int = 5
    """What is permuted: 5 of them make S5; S4 and below can be tracked by fewer layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objects > 6:
            self.refuse("objects", "is at most 6, which has 720 permutations")

    @property
    def length(self) -> int:
        return self.steps

    @property
    def vocab_size(self) -> int:
        return 1 + len(products(self.objects))

    @property
    def chance(self) -> float:
        return 1 / len(products(self.objects))

    def draw(self, generator: np.random.Generator) -> tuple[Row, Row]:
        table = products(self.objects)
        steps, labels = generator.integers(0, len(table), self.steps), nothing_asked(self.steps)
        state = 0
        for place, step in enumerate(steps):
            state = table[state, step]
            labels[place] = 1 + state
        return 1 + steps, labels


@cache
def products(objects: int) -> npt.NDArray[np.int64]:
    """Return the group's table: [n, n], the number of "first a, then b" in lexicographic order; 0 is the identity."""
    every = list(itertools.permutations(range(objects)))
    number = {permutation: place for place, permutation in enumerate(every)}
    return np.array([[number[tuple(b[a[i]] for i in range(objects))] for b in every] for a in every])
