"""Costs of generation: FLOPs of prefill and of a decoding step, and bytes of the cache.

FLOPs are those of :mod:`deconattn.model.flops`. The batch carries no fixed streams: what decoding needs of them is
computed and held once for a cache (:func:`~deconattn.model.flops.stream_flops`, `fixed_bytes`), whatever the batch.
"""

from deconattn.layers.config import ModelConfig
from deconattn.mixers import Mixer, Workload, mixer_class
from deconattn.model.decoding_cache import fixed_length
from deconattn.model.flops import feed_forward_flops, head_forward_flops


def prefill_flops(config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
    """FLOPs of the first cached pass over `rows` prompts of `length` tokens, into a cache with room for as many.

    Only the logits of a prompt's last token are read: the head counts for one position a row.
    """
    work = Workload(rows, length, bytes_per_element)
    layers = sum(mixer.decoding.prefill_flops(mixer, config, work) for mixer in _mixers(config))
    feed_forwards = config.num_hidden_layers * feed_forward_flops(config, rows, length)
    return layers + feed_forwards + head_forward_flops(config, rows, 1)


def decode_flops(config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
    """FLOPs of one new token in each of `rows` sequences, the last of `length`, in a cache with room for as many."""
    work = Workload(rows, length, bytes_per_element)
    layers = sum(mixer.decoding.decode_flops(mixer, config, work) for mixer in _mixers(config))
    feed_forwards = config.num_hidden_layers * feed_forward_flops(config, rows, 1)
    return layers + feed_forwards + head_forward_flops(config, rows, 1)


def cache_bytes(config: ModelConfig, rows: int, capacity: int, bytes_per_element: int) -> int:
    """Bytes that all layers hold for `rows` sequences with room for `capacity` tokens each."""
    work = Workload(rows, capacity, bytes_per_element)
    return sum(mixer.decoding.cache_bytes(mixer, config, work) for mixer in _mixers(config))


def fixed_bytes(config: ModelConfig, capacity: int, bytes_per_element: int) -> int:
    """Bytes held once for all rows of a cache with room for `capacity` tokens a row."""
    length = fixed_length(config, capacity)
    return sum(mixer.decoding.fixed_bytes(mixer, config, length, bytes_per_element) for mixer in _mixers(config))


def _mixers(config: ModelConfig) -> tuple[type[Mixer], ...]:
    return tuple(mixer_class(variant) for variant in config.layer_variants)
