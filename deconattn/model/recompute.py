"""Recomputation in the backward pass: a part of each layer keeps its inputs alone.

Korthikanti et al. 2023, section 5. A module is recomputed as it is called, with its hooks: those of tensor parallelism
stand around it, so that what is kept of its input is this rank's part. Recomputing ends with the last tensor that the
backward pass needs, before the sum over ranks that the module's output goes through.
"""

from functools import cache
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deconattn.model.decoder import Decoder


class Recomputed(nn.Module):
    """Base class of a module whose call is made again in the backward pass, instead of keeping what it computes."""

    def __call__(self, *arguments: Any) -> Any:
        call = super().__call__
        if not torch.is_grad_enabled():
            return call(*arguments)
        return checkpoint(call, *arguments, use_reentrant=False)


def recompute(decoder: Decoder, part: Literal["none", "mixer", "mlp", "layer"]) -> None:
    """Have each layer's mixer, feed-forward block or all of it recomputed; names and tensors stay as they are."""
    decoder.activation_checkpointing = part == "layer"
    if part in ("mixer", "mlp"):
        for block in decoder.blocks:
            module: nn.Module = block.self_attn if part == "mixer" else block.mlp
            # As FSDP does: a module in a wrapper would have other names.
            kind: Any = type(module)
            module.__class__ = _recomputed(kind)


@cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class's recomputed form, one for all layers, which torch.compile takes for the same code then."""
    metaclass: Any = type(kind)
    made: type[nn.Module] = metaclass(
        kind.__name__, (Recomputed, kind), {"__doc__": kind.__doc__, "__module__": kind.__module__}
    )
    return made
