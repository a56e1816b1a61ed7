"""Initial weights: a function of (seed, parameter name) alone.

Every whole tensor is drawn on the CPU by its own generator, and a rank that holds a part of it takes that part.
So the weights do not depend on the topology, on the order of construction, or on which variant the other layers
are: two models share what they have in common.
"""

import hashlib

import torch
from torch import Tensor, nn

from deconattn.errors import UserError
from deconattn.model.causal_lm import CausalLM
from deconattn.parallel.shards import shard_of

FIXED_EMBEDDINGS_SIGMA = 0.02
"""Standard deviation of the random fixed stream; the initialiser's range (the paper leaves it open)."""


def initialize(model: CausalLM, seed: int, fixed_ids: Tensor | None = None) -> None:
    """Fill parameters and buffers in place: matrices N(0, initializer_range^2), norms one, biases zero.

    Args:
        fixed_ids: int64 [at least max_position_embeddings], the text of the fixed stream, where a layer reads it.

    Raises:
        UserError: a layer reads the fixed text and `fixed_ids` is missing or too short.
    """
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.RMSNorm)}
    with torch.no_grad():
        for name, parameter in model.canonical_parameters().items():
            if name in norms:
                parameter.fill_(1)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                shard = shard_of(parameter)
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


def _normal(seed: int, name: str, shape: tuple[int, ...], sigma: float) -> Tensor:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape).normal_(0, sigma, generator=generator)
