"""Initial weights: a function of (seed, parameter name) alone.

Every whole tensor is drawn on the CPU by its own generator, and a rank that holds a part of it takes that part.
So the weights do not depend on the topology, on the order of construction, or on which variant the other layers
are: two models share what they have in common.

What a mixer's `__init__` makes itself is kept as it makes it: every buffer, every parameter that is not of a linear
layer or a norm, and those too if `__init__` writes to them.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import numpy
import torch
from torch import Tensor, nn

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import buffer_shards, shard_of
from deconattn.mixers import Mixer
from deconattn.model.causal_lm import CausalLM

FIXED_TEXT = "model.fixed_ids"
"""Name of the fixed text's ids in a state dict."""
FIXED_EMBEDDINGS_SIGMA = 0.02
"""Standard deviation of the random fixed stream; the initialiser's range (the paper leaves it open)."""


def initialize(model: CausalLM, seed: int, fixed_ids: Tensor | None = None) -> None:
    """Fill parameters and buffers in place: matrices N(0, initializer_range^2), norms one, biases zero.

    A mixer's own state is what its `__init__` gives it under a generator of the seed and the layer's name.

    Args:
        fixed_ids: int64 [at least max_position_embeddings], the text of the fixed stream, where a layer reads it.

    Raises:
        UserError: a layer reads the fixed text and `fixed_ids` is missing or too short.
    """
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.RMSNorm)}
    own = _own_state(model, seed)
    _fill_buffers(model, own)
    with torch.no_grad():
        for name, parameter in model.canonical_parameters().items():
            shard = shard_of(parameter)
            if name in own:
                parameter.copy_(shard.take(own[name]) if shard else own[name])
            elif name in norms:
                parameter.fill_(1)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                whole = _normal(seed, name, shard.shape if shard else parameter.shape, model.config.initializer_range)
                parameter.copy_(shard.take(whole) if shard else whole)
    decoder = model.model
    if not decoder.is_first:
        return
    if "random" in decoder.streams:
        name = "model.fixed_embeddings"
        decoder.fixed_embeddings.copy_(_normal(seed, name, decoder.fixed_embeddings.shape, FIXED_EMBEDDINGS_SIGMA))
    if "text" in decoder.streams:
        needed = len(decoder.fixed_ids)
        if fixed_ids is None or len(fixed_ids) < needed:
            got = 0 if fixed_ids is None else len(fixed_ids)
            raise UserError(f"the fixed text has {got} tokens but the sequence length is {needed}: give a longer one")
        decoder.fixed_ids.copy_(fixed_ids[:needed])


def _fill_buffers(model: CausalLM, own: Mapping[str, Tensor]) -> None:
    shards = buffer_shards(model)
    for name, buffer in model.named_buffers():
        if name in own:
            buffer.copy_(shards[name].take(own[name]) if name in shards else own[name])


def _own_state(model: CausalLM, seed: int) -> dict[str, Tensor]:
    """Return what mixers have initialised themselves, unsharded, by canonical name."""
    found: dict[str, Tensor] = {}
    for index in model.model.span:
        kind, prefix = type(model.model.layers[index].self_attn), f"model.layers.{index}.self_attn"
        names = own_names(kind, model.config)  # type: ignore[arg-type]
        if names:
            with _generators_kept(), torch.device("cpu"):
                seed_generators(seed, prefix)
                mixer: Mixer = kind(model.config)  # type: ignore[assignment]
            state = {**dict(mixer.named_parameters()), **dict(mixer.named_buffers())}
            found |= {f"{prefix}.{name}": state[name].detach() for name in names}
    return found


@lru_cache(maxsize=64)
def own_names(kind: type[Mixer], config: ModelConfig) -> tuple[str, ...]:
    """Return names of parameters and buffers that a mixer initialises itself.

    PyTorch counts in-place writes to a tensor, and a layer as it is built has had one to each of its own.

    Raises:
        UserError: a buffer that is not persistent, which no checkpoint and no export would hold; a parameter without
            a dimension, of which DeepSpeed makes an error of its own.
    """
    with torch.device("meta"):
        mixer, untouched = kind(config), nn.Linear(1, 1).weight._version
    parameters = dict(mixer.named_parameters())
    for path, module in mixer.named_modules():
        if isinstance(module, (nn.Linear, nn.RMSNorm)):
            for name, parameter in module.named_parameters(path, recurse=False):
                if parameter._version == untouched:
                    del parameters[name]
    for name in (name for name, parameter in parameters.items() if parameter.ndim == 0):
        raise UserError(
            f"parameter {name!r} of {kind.__qualname__} is a scalar, which DeepSpeed cannot train: make it [1]"
        )
    buffers = dict(mixer.named_buffers())
    for name in sorted(buffers.keys() - mixer.state_dict(keep_vars=True).keys()):
        raise UserError(f"buffer {name!r} of {kind.__qualname__} is lost in checkpoints: register it as persistent")
    return (*parameters, *buffers)


def seed_generators(seed: int, name: str) -> None:
    """Seed the generators that code of third parties may draw from: Python's, NumPy's and torch's global ones.

    Args:
        name: what is drawn next; equal draws for equal seeds and names.
    """
    derived = _seed(seed, name)
    random.seed(derived)
    numpy.random.seed(derived % 2**32)
    torch.manual_seed(derived)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Give the global generators back the state that they had before the block."""
    of_python, of_numpy = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(of_python)
        numpy.random.set_state(of_numpy)


def _normal(seed: int, name: str, shape: tuple[int, ...], sigma: float) -> Tensor:
    generator = torch.Generator().manual_seed(_seed(seed, name))
    return torch.empty(shape).normal_(0, sigma, generator=generator)


def _seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
