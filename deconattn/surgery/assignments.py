"""A variant for each layer: from the table, from patterns, at random, and as the flag that launch.sh takes."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from math import comb

from deconattn.config.pattern import layer_variants

Assignment = tuple[str, ...]
"""The variant of each layer, first layer first."""
PATTERNS = ("even", "odd", "top", "middle", "bottom", "25%", "first", "last", "bilateral")
"""The paper's nine (table 11)."""
OTHER = "mlp"
"""What stands for a layer that a pattern replaces, until the table says by which variant."""


@dataclass(frozen=True)
class Table:
    """Mean increase of the loss, nats a token, with one layer replaced.

    Attributes:
        own: the model's variants.
        increases: by layer, from 0, and variant.
    """

    own: Assignment
    increases: Mapping[tuple[int, str], float]

    def options(self, layer: int) -> list[str]:
        """Return the variants measured in a layer's place, the least harmful first."""
        found = [(increase, variant) for (place, variant), increase in self.increases.items() if place == layer]
        return [variant for _, variant in sorted(found)]

    def best(self, layer: int) -> str | None:
        """Return the least harmful variant in a layer's place; None: there is none."""
        return next(iter(self.options(layer)), None)

    def increase(self, layer: int, variant: str) -> float:
        """Return the increase with a variant in a layer's place, 0 with its own."""
        return 0.0 if variant == self.own[layer] else self.increases[layer, variant]

    def sum(self, assignment: Assignment) -> float:
        """Return what increases would add up to."""
        return sum(self.increase(layer, variant) for layer, variant in enumerate(assignment))

    def replaceable(self) -> list[int]:
        """Return the layers that can be replaced, the least harmed first."""
        layers = [layer for layer in range(len(self.own)) if self.best(layer) is not None]
        return sorted(layers, key=lambda layer: (self.increase(layer, self.options(layer)[0]), layer))

    def keeping(self, kept: Sequence[int]) -> Assignment:
        """Return the model with all but some layers replaced, each by the variant that is least harmful there."""
        return tuple(own if layer in kept else self.best(layer) or own for layer, own in enumerate(self.own))


def kept_layers(assignment: Assignment, own: Assignment) -> tuple[int, ...]:
    """Return the layers that are as they were."""
    return tuple(layer for layer, (now, before) in enumerate(zip(assignment, own, strict=True)) if now == before)


def named(table: Table) -> Iterator[tuple[str, Assignment]]:
    """Yield the paper's patterns with the layers that they keep, those replaced each by the table's best variant."""
    for name in PATTERNS:
        layers = layer_variants(name, OTHER, len(table.own), (OTHER, "standard"))
        yield name, table.keeping([layer for layer, variant in enumerate(layers) if variant == "standard"])


def drawn(table: Table, keep: int, count: int, seed: int) -> list[Assignment]:
    """Return random hybrids that keep so many layers, none twice; all of them where there are no more."""
    layers, generator = range(len(table.own)), random.Random(seed)
    if comb(len(layers), keep) <= count:
        return [table.keeping(kept) for kept in combinations(layers, keep)]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        found[tuple(sorted(generator.sample(layers, keep)))] = None
    return [table.keeping(kept) for kept in found]


def all_keeping(table: Table, keep: int) -> Iterator[Assignment]:
    """Yield every hybrid that keeps so many layers, the others each replaced by the table's best variant."""
    for kept in combinations(range(len(table.own)), keep):
        yield table.keeping(kept)


def as_flag(assignment: Assignment) -> str:
    """Return an assignment as `--pattern` takes it: `3*mlp,standard`; of one layer `1*mlp`."""
    runs = [(variant, len(list(group))) for variant, group in groupby(assignment)]
    words = [variant if count == 1 and len(runs) > 1 else f"{count}*{variant}" for variant, count in runs]
    return ",".join(words)
