"""A Hugging Face model's weights into a freshly initialised model of ours, and what became of each tensor."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from deconattn.checkpoint.hf_weights import HFWeights
from deconattn.checkpoint.origins import STREAMS, Origins
from deconattn.errors import UserError
from deconattn.mixers import Mixer
from deconattn.model.causal_lm import CausalLM
from deconattn.progress import progress_bar

_IN_A_MIXER = re.compile(r"(model\.layers\.(\d{1,9})\.self_attn\.)(.+)")


@torch.no_grad()
def graft(model: CausalLM, source: HFWeights, keep: frozenset[str] = frozenset()) -> Origins:
    """Overwrite what `model` shares with `source` by name and shape, in place; of a layer by heads, what its parts do.

    A fixed stream that is longer than the source's has its rows first, and its own ones from there on.

    Args:
        keep: tensors of the model that are not to be overwritten.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    taken: set[str] = set()
    unused, continued = [], {}
    for name in _counted([*source]):
        match = _IN_A_MIXER.fullmatch(name)
        layer = int(match[2]) if match else -1
        if name in keep or (name not in tensors and not 0 <= layer < model.config.num_hidden_layers):
            unused.append(name)
            continue
        value = source.read(name)
        if name in STREAMS:
            target = tensors[name]
            if len(value) < len(target):
                continued[name] = (len(value), len(target))
            value = torch.cat([value.to(target.dtype), target[len(value) :]])[: len(target)]
        found = {name: value}
        if match and 0 <= layer < model.config.num_hidden_layers:
            mixer: Mixer = model.model.layers[layer].self_attn  # type: ignore[assignment]
            found = {match[1] + own: part for own, part in mixer.taken_from(match[3], value).items()}
        fitting = {own for own, part in found.items() if own in tensors and tensors[own].shape == part.shape}
        for own in fitting:
            tensors[own].copy_(found[own])
        taken |= fitting
        if not fitting:
            unused.append(name)
    return Origins(
        taken=[name for name in tensors if name in taken],
        initialised=[name for name in tensors if name not in taken],
        unused=unused,
        continued=continued,
    )


def _counted(names: list[str]) -> Iterator[str]:
    with progress_bar("taking weights", len(names), "tensors") as advance:
        for name in names:
            yield name
            advance(1)


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
