"""A mixer cut for tensor parallelism and tried on the spot: what all ranks' parts give must sum to the whole."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from deconattn.errors import UserError
from deconattn.mixers import Mixer, MixerContext, mixer_class
from deconattn.model.config import ModelConfig
from deconattn.model.rotary import Rotary
from deconattn.parallel.tensor import cut_tensors

LENGTH = 16
TOLERANCE = 1e-3
"""Of the largest output; parts that are added in fp32 differ by some 1e-6 of it."""


def check_cut(variant: str, config: ModelConfig, ranks: int) -> None:
    """Compute a layer's mixer whole and as `ranks` parts, in this process, for a few tokens.

    Raises:
        UserError: it cannot be cut as its class declares, or its parts do not sum to the whole.
    """
    length = min(LENGTH, config.max_position_embeddings)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        whole = mixer_class(variant)(config)
        hidden = torch.randn(4, length, config.hidden_size)  # the last two are the fixed streams' rows
        static = torch.randn_like(hidden) if whole.needs_static_embeddings else None
    rotary = Rotary.of(config, torch.arange(length)[None], hidden.dtype)
    inputs = hidden, static, MixerContext(rotary, None, {"random": -2, "text": -1})
    refusal = f"--tp {ranks}: variant {variant!r} cannot be cut as its class declares in `splits`: "
    with torch.no_grad():
        expected = whole(*inputs)[:2]
        try:
            total = sum(_part(whole, config, rank, ranks)(*inputs)[:2] for rank in range(ranks))
        except Exception as error:
            raise UserError(
                f"{refusal}{type(error).__name__}: {error}; name there what belongs to some heads, or use --tp 1"
            ) from error
    assert isinstance(total, Tensor)
    if total.shape != expected.shape or (total - expected).abs().max() > TOLERANCE * expected.abs().max():
        raise UserError(f"{refusal}the sum of its {ranks} parts is not the whole; declare another cut, or use --tp 1")


def _part(whole: Mixer, config: ModelConfig, rank: int, ranks: int) -> Mixer:
    part = deepcopy(whole)
    values = {(id(owner), name): tensor for owner, name, tensor in _tensors(part)}
    for owner, name, shard in cut_tensors(part, config, rank, ranks):
        getattr(owner, name).copy_(shard.take(values[id(owner), name]))
    return part


def _tensors(module: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    return [
        (owner, name, tensor)
        for owner in module.modules()
        for name, tensor in [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
    ]
