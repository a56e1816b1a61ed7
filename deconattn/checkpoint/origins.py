"""Origins of a model's tensors: which of them a trained model gave, told to a reader."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from deconattn.model.init import FIXED_TEXT

STREAMS = (FIXED_TEXT, "model.fixed_embeddings")
"""Buffers whose first rows are the stream of a shorter sequence."""


@dataclass(frozen=True)
class Origins:
    """Names of tensors, ours in the model's order.

    Attributes:
        taken: overwritten by the source's.
        initialised: left as a fresh run has them.
        unused: the source's that have no place.
    """

    taken: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def summary(origins: Origins, layer_variants: Sequence[str], source: str, seed: int) -> str:
    """Lines for a reader; layers are numbered from 0, as in the tensors' names."""
    sections = {
        f"taken from {source}": origins.taken,
        f"initialised as by --seed {seed}": origins.initialised,
        f"left unused in {source}": origins.unused,
    }
    lines = []
    for title, names in sections.items():
        lines.append(f"{title}: {_count(len(names))}")
        lines += [f"  {line}" for line in _lines(names, layer_variants)]
    return "\n".join(lines)


def _lines(names: Sequence[str], layer_variants: Sequence[str]) -> list[str]:
    outside: list[str] = []
    by_layer: dict[int, list[str]] = {}
    for name in names:
        module = re.sub(r"\.(weight|bias)$", "", name)
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        modules, module = (by_layer.setdefault(int(match[1]), []), match[2]) if match else (outside, module)
        if module not in modules:
            modules.append(module)
    alike: dict[tuple[str, str], list[int]] = {}
    for layer, modules in sorted(by_layer.items()):
        alike.setdefault((layer_variants[layer], _braced(modules)), []).append(layer)
    lines = [", ".join(outside)] if outside else []
    for (variant, modules_of_each), layers in alike.items():
        lines.append(f"{'layer' if len(layers) == 1 else 'layers'} {_ranges(layers)} ({variant}): {modules_of_each}")
    return lines


def _braced(modules: Sequence[str]) -> str:
    """`self_attn.q_proj, self_attn.k_proj, input_layernorm` -> `input_layernorm, self_attn.{q_proj, k_proj}`."""
    by_parent: dict[str, list[str]] = {}
    for module in sorted(modules):
        parent, _, leaf = module.rpartition(".")
        by_parent.setdefault(parent, []).append(leaf)
    own = by_parent.pop("", [])
    return ", ".join([*own, *(f"{parent}.{{{', '.join(leaves)}}}" for parent, leaves in by_parent.items())])


def _ranges(layers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> `0-2, 5`."""
    runs = []
    for _, group in groupby(enumerate(layers), lambda pair: pair[1] - pair[0]):
        run = [layer for _, layer in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(runs)


def _count(tensors: int) -> str:
    return {0: "nothing", 1: "1 tensor"}.get(tensors, f"{tensors} tensors")
