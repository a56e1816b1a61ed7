"""Parameters and model FLOPs: what the formulas ask for; recomputation is not counted."""

from dataclasses import dataclass

from deconattn.layers.config import ModelConfig
from deconattn.mixers import Workload, mixer_class
from deconattn.model.streams import layer_output_rows


@dataclass(frozen=True)
class ParameterCount:
    """Number of trained parameters; `non_embedding` leaves out the embedding table and the head."""

    total: int
    non_embedding: int


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count a model's parameters; the random fixed stream is not trained and not counted."""
    d = config.hidden_size
    feed_forward_and_norms = 3 * d * config.intermediate_size + 2 * d
    mixers = sum(mixer_class(variant).num_parameters(config) for variant in config.layer_variants)
    non_embedding = mixers + config.num_hidden_layers * feed_forward_and_norms + d
    tables = 1 if config.tie_word_embeddings else 2
    return ParameterCount(non_embedding + tables * config.vocab_size * d, non_embedding)


def forward_flops(config: ModelConfig, rows: int, length: int) -> int:
    """FLOPs of one forward pass over `rows` sequences of `length` tokens, 2 a multiply-add.

    The fixed streams count as the extra rows that they are, in the layers that they pass.
    """
    return sum(layer_forward_flops(config, rows, length)) + head_forward_flops(config, rows, length)


def layer_forward_flops(config: ModelConfig, rows: int, length: int) -> tuple[int, ...]:
    """FLOPs of each layer's forward pass."""
    works = (Workload(written, length) for written in layer_output_rows(config, rows))
    return tuple(
        mixer_class(variant).forward_flops(config, work) + feed_forward_flops(config, work.rows, length)
        for variant, work in zip(config.layer_variants, works, strict=True)
    )


def feed_forward_flops(config: ModelConfig, rows: int, length: int) -> int:
    """FLOPs of one layer's feed-forward block in the forward pass: three matrices."""
    return 6 * rows * length * config.hidden_size * config.intermediate_size


def head_forward_flops(config: ModelConfig, rows: int, length: int) -> int:
    """FLOPs of the output head's forward pass; the embedding is a lookup."""
    return 2 * rows * length * config.hidden_size * config.vocab_size


def training_flops(config: ModelConfig, rows: int, length: int) -> int:
    """FLOPs of forward and backward pass: three times the forward pass."""
    return 3 * forward_flops(config, rows, length)
