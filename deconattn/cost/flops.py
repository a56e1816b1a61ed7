"""Model FLOPs: what the formulas ask for, not what an implementation spends (recomputation is not counted)."""

from deconattn.mixers import mixer_class
from deconattn.model.config import ModelConfig


def forward_flops(config: ModelConfig, rows: int, length: int) -> int:
    """FLOPs of one forward pass over `rows` sequences of `length` tokens, 2 a multiply-add.

    The fixed streams count as the extra rows that they are, in the layers that they pass.
    """
    classes = [mixer_class(variant) for variant in config.layer_variants]
    streams = {mixer.fixed_stream for mixer in classes} - {None}
    last_fixed = max((i for i, mixer in enumerate(classes) if mixer.fixed_stream), default=-1)
    total = 2 * rows * length * config.hidden_size * config.vocab_size
    for index, mixer in enumerate(classes):
        here = rows + (len(streams) if index <= last_fixed else 0)
        total += mixer.forward_flops(config, here, length)
        total += 6 * here * length * config.hidden_size * config.intermediate_size
    return total


def training_flops(config: ModelConfig, rows: int, length: int) -> int:
    """Forward and backward: three times the forward pass."""
    return 3 * forward_flops(config, rows, length)
