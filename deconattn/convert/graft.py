"""A Hugging Face model's weights into a freshly initialised model of ours, and what became of each tensor."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from deconattn.checkpoint.hf_weights import HFWeights
from deconattn.errors import UserError
from deconattn.model.causal_lm import CausalLM
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


@torch.no_grad()
def graft(model: CausalLM, source: HFWeights, keep: frozenset[str] = frozenset()) -> Origins:
    """Overwrite what `model` shares with `source` by name and shape, in place.

    Args:
        keep: tensors of the model that are not to be overwritten.

    Raises:
        UserError: the model's sequences are longer than the source's fixed stream.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    taken, unused = set(), []
    for name in source:
        target = tensors.get(name)
        if target is None or name in keep:
            unused.append(name)
            continue
        value = source.read(name)
        if name in STREAMS:
            if len(value) < len(target):
                raise UserError(
                    f"--seq-len {len(target)} is beyond the fixed stream of {source.folder}, {len(value)} tokens: "
                    f"give at most that{', or --fixed-text' if name == FIXED_TEXT else ''}"
                )
            value = value[: len(target)]
        if value.shape == target.shape:
            target.copy_(value)
            taken.add(name)
        else:
            unused.append(name)
    return Origins(
        taken=[name for name in tensors if name in taken],
        initialised=[name for name in tensors if name not in taken],
        unused=unused,
    )


@torch.no_grad()
def take_fitted(model: CausalLM, tensors: Mapping[str, Tensor], path: Path) -> list[str]:
    """Overwrite tensors of `model`, in place, by those of a file that a search wrote; return their names.

    Raises:
        UserError: the model has no such tensor, or one of another shape; a fixed stream is too short for it.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, given in tensors.items():
        target, value = own.get(name), given
        if target is None:
            raise UserError(f"--fitted {path} has {name}, which this --pattern lacks: give the pattern found")
        if name in STREAMS:
            if len(value) < len(target):
                raise UserError(
                    f"--seq-len {len(target)} is beyond the fixed stream of {path}, {len(value)} tokens: give at most "
                    "that"
                )
            value = value[: len(target)]
        if value.shape != target.shape:
            shapes = f"{tuple(value.shape)}, here {tuple(target.shape)}"
            raise UserError(f"--fitted {path}: {name} is {shapes}: give the model and the pattern that it is of")
        target.copy_(value)
    return list(tensors)


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
