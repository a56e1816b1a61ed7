"""Model FLOPs: what the formulas ask for, not what an implementation spends (recomputation is not counted)."""

from deconattn.layers.config import ModelConfig
from deconattn.mixers import Workload, mixer_class
from deconattn.model.streams import layer_output_rows


def forward_flops(config: ModelConfig, rows: int, length: int) -> int:
    """FLOPs of one forward pass over `rows` sequences of `length` tokens, 2 a multiply-add.

    The fixed streams count as the extra rows that they are, in the layers that they pass.
    """
    return sum(layer_forward_flops(config, rows, length)) + head_forward_flops(config, rows, length)


def layer_forward_flops(config: ModelConfig, rows: int, length: int) -> tuple[int, ...]:
    """The same of each layer."""
    works = (Workload(written, length) for written in layer_output_rows(config, rows))
    return tuple(
        mixer_class(variant).forward_flops(config, work) + feed_forward_flops(config, work.rows, length)
        for variant, work in zip(config.layer_variants, works, strict=True)
    )


def feed_forward_flops(config: ModelConfig, rows: int, length: int) -> int:
    """Of one layer's feed-forward block, the forward pass: three matrices."""
    return 6 * rows * length * config.hidden_size * config.intermediate_size


def head_forward_flops(config: ModelConfig, rows: int, length: int) -> int:
    """Of the projection on the vocabulary; the embedding is a lookup."""
    return 2 * rows * length * config.hidden_size * config.vocab_size


def training_flops(config: ModelConfig, rows: int, length: int) -> int:
    """Forward and backward: three times the forward pass."""
    return 3 * forward_flops(config, rows, length)
