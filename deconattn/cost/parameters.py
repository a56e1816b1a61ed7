"""Parameter counts without building the model."""

from dataclasses import dataclass

from deconattn.mixers import mixer_class
from deconattn.model.config import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Trained parameters. `non_embedding` leaves out the embedding table and the head."""

    total: int
    non_embedding: int


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Counts for one model; the random fixed stream is not trained and not counted."""
    d = config.hidden_size
    feed_forward_and_norms = 3 * d * config.intermediate_size + 2 * d
    mixers = sum(mixer_class(variant).num_parameters(config) for variant in config.layer_variants)
    non_embedding = mixers + config.num_hidden_layers * feed_forward_and_norms + d
    tables = 1 if config.tie_word_embeddings else 2
    return ParameterCount(non_embedding + tables * config.vocab_size * d, non_embedding)
