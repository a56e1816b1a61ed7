"""Parameters and model FLOPs: what the formulas ask for; recomputation is not counted."""

from dataclasses import dataclass

from deconattn.layers.config import ModelConfig
from deconattn.mixers import Workload, mixer_class
from deconattn.model.streams import Streams, layer_output_rows, shares_fixed_part


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
    """FLOPs of forward and backward pass: three times the forward pass.

    A step's useful FLOPs are those of all its rows on one replica, in however many micro-batches they are computed: the
    fixed streams count once.
    """
    return 3 * forward_flops(config, rows, length)


def stream_flops(config: ModelConfig, length: int) -> int:
    """FLOPs of the fixed streams' own pass over `length` tokens, as far as the last layer that reads one of them."""
    streams = Streams.of(config.layer_variants)
    if not streams.fixed:
        return 0
    carried = len(streams.fixed)
    mixers = [mixer_class(variant) for variant in config.layer_variants]
    *before, reader = mixers[: streams.last_fixed_layer + 1]
    passed = sum(mixer.forward_flops(config, Workload(carried, length)) for mixer in before)
    feed_forwards = len(before) * feed_forward_flops(config, carried, length)
    return passed + feed_forwards + reader.decoding.fixed_flops(reader, config, length)


def step_flops(config: ModelConfig, rows: int, length: int, micro_batches: int, held: bool = True) -> int:
    """FLOPs that one replica spends on a step of `micro_batches` of `rows` sequences each, recomputation aside.

    Args:
        held: the fixed streams are held over the step (:mod:`.held_streams`): they run forward twice and backward once.
            Otherwise they are rows of each micro-batch, as they are of a single one.
    """
    if not held or micro_batches == 1:
        return micro_batches * training_flops(config, rows, length)
    beside = head_forward_flops(config, rows, length)
    for variant in config.layer_variants:
        mixer = mixer_class(variant)
        beside += mixer.forward_flops(config, Workload(rows, length)) + feed_forward_flops(config, rows, length)
        if shares_fixed_part(mixer):
            beside -= mixer.decoding.fixed_flops(mixer, config, length)
    return 3 * micro_batches * beside + 4 * stream_flops(config, length)
