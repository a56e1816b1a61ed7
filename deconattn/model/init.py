"""Initial weights: a function of (seed, parameter name) alone.

A number depends on its place in the whole tensor (:mod:`deconattn.model.draws`), and a rank draws those that it holds.
So the weights do not depend on the topology, on the order of construction, or on which variant the other layers
are: two models share what they have in common.

What a mixer's `__init__` makes itself is kept as it makes it: every buffer, every parameter that is not of a linear
layer or a norm, and those too if `__init__` writes to them.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import Partition, Shard, assign, buffer_shards, kept_part, shard_of
from deconattn.mixers import Mixer
from deconattn.model.causal_lm import CausalLM
from deconattn.model.draws import Draws

FIXED_TEXT = "model.fixed_ids"
"""Name of the fixed text's ids in a state dict."""
FIXED_RANDOM = "model.fixed_embeddings"
"""Name of the random stream in a state dict."""
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
    with torch.no_grad():
        own = _fill_own_state(model, seed)
        for name, parameter in model.canonical_parameters().items():
            if name in own:
                continue
            if name in norms:
                kept_part(parameter).memory.fill_(1)
            elif name.endswith(".bias"):
                kept_part(parameter).memory.zero_()
            else:
                _fill_normal(kept_part(parameter), shard_of(parameter), seed, name, model.config.initializer_range)
    fill_streams(model, seed, fixed_ids)


@torch.no_grad()
def fill_streams(model: CausalLM, seed: int, fixed_ids: Tensor | None = None) -> None:
    """Fill the fixed streams alone; a longer random stream of a seed begins with every shorter one.

    Arguments and errors are those of :func:`initialize`.
    """
    decoder = model.model
    if not decoder.is_first:
        return
    if "random" in decoder.streams:
        fixed = kept_part(decoder.fixed_embeddings)
        _fill_normal(fixed, None, seed, FIXED_RANDOM, FIXED_EMBEDDINGS_SIGMA)
    if "text" in decoder.streams:
        needed = len(decoder.fixed_ids)
        if fixed_ids is None or len(fixed_ids) < needed:
            got = 0 if fixed_ids is None else len(fixed_ids)
            raise UserError(f"the fixed text has {got} tokens but the sequence length is {needed}: give a longer one")
        decoder.fixed_ids.copy_(fixed_ids[:needed])


def _fill_normal(kept: Partition, shard: Shard | None, seed: int, name: str, sigma: float) -> None:
    """Draw the elements that this rank keeps of a matrix, and no others but for what shares a tile with them."""
    whole = kept.shape if shard is None else shard.shape
    rows, columns = range(whole[0]), range(math.prod(whole[1:]))
    if shard is not None:
        assert len(whole) == 2
        part = range(*shard.bounds[shard.rank])
        rows, columns = (part, columns) if shard.dim == 0 else (rows, part)
    for offset, numbers in Draws(seed, name, whole, sigma).flat(rows, columns, kept.start, kept.stop):
        kept.memory[offset : offset + len(numbers)].copy_(numbers)


def _fill_own_state(model: CausalLM, seed: int) -> set[str]:
    """Fill what mixers initialise themselves, a layer at a time; returns the canonical names."""
    parameters, buffers, cuts = model.canonical_parameters(), dict(model.named_buffers()), buffer_shards(model)
    filled: set[str] = set()
    for index in model.model.span:
        kind, prefix = type(model.model.layers[index].self_attn), f"model.layers.{index}.self_attn"
        names = own_names(kind, model.config)  # type: ignore[arg-type]
        if not names:
            continue
        with _generators_kept(), torch.device("cpu"), torch.enable_grad():
            seed_generators(seed, prefix)
            mixer: Mixer = kind(model.config)  # type: ignore[assignment]
        state = {**dict(mixer.named_parameters()), **dict(mixer.named_buffers())}
        for own in names:
            name, value = f"{prefix}.{own}", state[own].detach()
            shard = cuts.get(name) if name in buffers else shard_of(parameters[name])
            value = shard.take(value) if shard else value
            if name in buffers:
                buffers[name].copy_(value)
            else:
                assign(parameters[name], value)
            filled.add(name)
    return filled


@lru_cache(maxsize=64)
def own_names(kind: type[Mixer], config: ModelConfig) -> tuple[str, ...]:
    """Return names of parameters and buffers that a mixer initialises itself.

    PyTorch counts in-place writes to a tensor, and a layer as it is built has had one to each of its own.

    Raises:
        UserError: what would be lost between ranks or in checkpoints: a buffer that is not persistent, a tensor that is
            no buffer, one parameter under two names, a number that is drawn; a mixer that needs memory to be built; a
            parameter without a dimension, of which DeepSpeed makes an error of its own.
    """
    with _generators_kept():
        mixer = _without_memory(kind, config, "one")
        other = _without_memory(kind, config, "other")
    with torch.device("meta"):
        untouched = nn.Linear(1, 1).weight._version
    title = kind.__qualname__
    parameters = dict(mixer.named_parameters())
    for path, module in mixer.named_modules():
        if isinstance(module, (nn.Linear, nn.RMSNorm)):
            for name, parameter in module.named_parameters(path, recurse=False):
                if parameter._version == untouched:
                    parameters.pop(name, None)
    for name in (name for name, parameter in parameters.items() if parameter.ndim == 0):
        raise UserError(f"parameter {name!r} of {title} is a scalar, which DeepSpeed cannot train: make it [1]")
    for name, _ in mixer.named_parameters(remove_duplicate=False):
        if name not in dict(mixer.named_parameters()):
            raise UserError(
                f"parameter {name!r} of {title} is another one too, which no checkpoint holds: use one name"
            )
    buffers = dict(mixer.named_buffers())
    for name in sorted(buffers.keys() - mixer.state_dict(keep_vars=True).keys()):
        raise UserError(f"buffer {name!r} of {title} is lost in checkpoints: register it as persistent")
    plain, drawn = _plain_attributes(mixer), _plain_attributes(other)
    for name, value in plain.items():
        if isinstance(value, Tensor):
            raise UserError(f"tensor {name!r} of {title} is lost in checkpoints: register it as a buffer")
        if repr(value) != repr(drawn.get(name)):
            raise UserError(f"{name!r} of {title} is drawn and lost in checkpoints: register it as a buffer")
    return (*parameters, *buffers)


def _without_memory(kind: type[Mixer], config: ModelConfig, seed: str) -> Mixer:
    """Build a mixer on the meta device, as every model is before it is cut."""
    seed_generators(0, seed)
    try:
        with torch.device("meta"):
            return kind(config)
    except Exception as error:
        with torch.device("cpu"):
            kind(config)  # or it cannot be built at all, which has a reason of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{kind.__qualname__} is built before its tensors have values ({reason}): where its __init__ reads one, "
            'make that one with device="cpu"'
        ) from error


def _plain_attributes(mixer: Mixer) -> dict[str, Any]:
    """Return tensors and numbers of a mixer's modules that are neither parameters nor buffers, by name."""
    found: dict[str, Any] = {}
    for path, module in mixer.named_modules():
        for name, value in vars(module).items():
            entries = value if isinstance(value, (list, tuple)) else [value]
            tensors = [entry for entry in entries if isinstance(entry, Tensor)]
            if tensors or all(isinstance(entry, (bool, int, float, str)) for entry in entries):
                found[f"{path}.{name}".lstrip(".")] = tensors[0] if tensors else value
    return found


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


def _seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
