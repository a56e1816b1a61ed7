"""Parameters of one rank, counted without memory for the model."""

from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import largest_part
from deconattn.model.block import Block


@dataclass(frozen=True)
class RankParameters:
    """Number of parameters on one rank: one tensor-parallel part of one pipeline stage.

    Attributes:
        embedding: 0 but on the first stage.
        layers: of each layer of the stage.
        head: with the final norm; 0 but on the last stage. A tied head counts where it is another stage's copy.
        largest: elements of the largest tensor.
        hidden: elements of the layers' matrices, which Muon updates under `--optimizer muon`.
        largest_hidden: elements of the largest of them before tensor parallelism cuts it.
    """

    embedding: int
    layers: tuple[int, ...]
    head: int
    largest: int
    hidden: int
    largest_hidden: int

    @property
    def total(self) -> int:
        return self.embedding + sum(self.layers) + self.head


def rank_parameters(config: ModelConfig, span: range, tp_size: int = 1) -> RankParameters:
    """Count the parameters of the layers `span` on the one of `tp_size` tensor-parallel ranks that holds most."""
    table = largest_part(config.vocab_size, config.vocab_size, tp_size) * config.hidden_size
    first, last = span.start == 0, span.stop == config.num_hidden_layers
    tied_here = config.tie_word_embeddings and first
    layers = [_layer(config, config.layer_variants[index], tp_size) for index in span]
    return RankParameters(
        embedding=table if first else 0,
        layers=tuple(layer.total for layer in layers),
        head=(config.hidden_size + (0 if tied_here else table)) if last else 0,
        largest=max([layer.largest for layer in layers] + ([table] if first or last else [])),
        hidden=sum(layer.hidden for layer in layers),
        largest_hidden=max(layer.largest_hidden for layer in layers),
    )


@dataclass(frozen=True)
class _Layer:
    """Elements of a layer on one rank: all, of the largest tensor, of the matrices; of the largest matrix, uncut."""

    total: int
    largest: int
    hidden: int
    largest_hidden: int


@lru_cache(maxsize=256)
def _layer(config: ModelConfig, variant: str, tp_size: int) -> _Layer:
    """Count the parameters of one rank's part of a layer, in the real module."""
    with torch.device("meta"):
        block = Block(config, variant)
    counts = {id(parameter): parameter.numel() for parameter in block.parameters()}
    for module in block.modules():
        for name, split in (getattr(module, "splits", None) or {}).items():
            declared = attrgetter(name)(module)
            for parameter in [declared] if isinstance(declared, Tensor) else declared.parameters():
                if id(parameter) in counts and split.dim < parameter.ndim:
                    size = parameter.shape[split.dim]
                    pieces = split.count(config, size)
                    counts[id(parameter)] = parameter.numel() // size * largest_part(size, pieces, tp_size)
    matrices = [parameter for parameter in block.parameters() if parameter.ndim == 2]
    return _Layer(
        total=sum(counts.values()),
        largest=max(counts.values()),
        hidden=sum(counts[id(matrix)] for matrix in matrices),
        largest_hidden=max(matrix.numel() for matrix in matrices),
    )
