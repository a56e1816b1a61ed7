"""The rows that each layer computes: the batch's sequences, and the fixed streams as far as a layer reads them."""

from deconattn.layers.config import ModelConfig
from deconattn.mixers import mixer_class


def layer_rows(config: ModelConfig, batch: int) -> tuple[int, ...]:
    """Rows of each layer's input: `batch`, plus the fixed streams up to and including the last layer that reads one."""
    streams, last_fixed = fixed_streams(config)
    return tuple(batch + (streams if index <= last_fixed else 0) for index in range(config.num_hidden_layers))


def layer_output_rows(config: ModelConfig, batch: int) -> tuple[int, ...]:
    """Rows of each layer's output: what the next one reads."""
    return (*layer_rows(config, batch)[1:], batch)


def fixed_streams(config: ModelConfig) -> tuple[int, int]:
    """How many fixed streams the model carries, and the last layer that reads one (-1: none)."""
    classes = [mixer_class(variant) for variant in config.layer_variants]
    streams = {mixer.fixed_stream for mixer in classes} - {None}
    last_fixed = max((index for index, mixer in enumerate(classes) if mixer.fixed_stream), default=-1)
    return len(streams), last_fixed
