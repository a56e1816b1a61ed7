"""Origins of a model's tensors: which of them a trained model gave, told to a reader."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from torch import Tensor

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.rope_scaling import NONE
from deconattn.model.init import FIXED_RANDOM, FIXED_TEXT

STREAMS = (FIXED_TEXT, FIXED_RANDOM)
"""Buffers whose first rows are the stream of a shorter sequence."""


@dataclass(frozen=True)
class Origins:
    """Names of tensors, ours in the model's order.

    Attributes:
        taken: overwritten by the source's.
        initialised: left as a fresh run has them.
        unused: the source's that have no place.
        continued: of those taken, fixed streams that are longer than the source's: rows of both.
    """

    taken: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    continued: dict[str, tuple[int, int]] = field(default_factory=dict)


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
    return "\n".join(lines + continued_streams(origins.continued, source, seed))


def continued_streams(
    continued: Mapping[str, tuple[int, int]], source: str, seed: int, text: Path | None = None
) -> list[str]:
    """Return a line for each fixed stream that goes on where a shorter one ends.

    Args:
        continued: rows of the shorter and of the longer stream, by the tensor's name.
        source: whose the shorter one is.
        text: file that the fixed text is of; by default the corpus.
    """
    lines = []
    for name, (before, now) in continued.items():
        ways = {FIXED_RANDOM: f"are drawn on by --seed {seed}", FIXED_TEXT: f"follow in {text or 'the corpus'}"}
        lines.append(
            f"{name} goes on: its first {before} positions are those of {source}, the other {now - before} {ways[name]}"
        )
    return lines


def check_continued_text(given: Tensor, before: Tensor, text: Path, source: object) -> None:
    """Check that `--fixed-text`, where it is longer than a trained model's fixed text, begins with that; int64 ids.

    Raises:
        UserError: it begins otherwise.
    """
    if len(given) > len(before) and not given[: len(before)].equal(before):
        raise UserError(
            f"--fixed-text {text} does not begin with the {len(before)} tokens of the fixed stream of {source}, which "
            f"--seq-len {len(given)} goes beyond: give a text that does, leave it out, or give at most that length"
        )


def lengthened(scaling: str, length: int, origin: ModelConfig) -> list[str]:
    """Return what to say of the positions of a run that begins with a trained model: at most a line.

    Args:
        scaling: the run's rotary scaling, as `--rope-scaling` has it.
        length: tokens of its longest sequence.
        origin: the trained model's configuration.
    """
    own = NONE if origin.rope_scaling is None else str(origin.rope_scaling)
    if scaling != own:
        return [f"rotary scaling: {scaling} in the place of the model's {own}"]
    if length > origin.max_position_embeddings:
        return [f"note: --seq-len {length} is beyond the {origin.max_position_embeddings} positions of the model"]
    return []


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
