"""StaticEmbQK: queries and keys from the static token embeddings (paper, section 3.2)."""

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.mixers.costs import Workload
from deconattn.mixers.principles import Principles
from deconattn.mixers.registry import register
from deconattn.mixers.standard import Standard


@register("staticemb")
class StaticEmb(Standard):
    """A = softmax(Q K^T / sqrt(head_dim)), Q and K from e = Emb(t) through the layer's input norm."""

    principles = Principles(current_queries_and_keys=False)
    needs_static_embeddings = True

    def source(self, hidden: Tensor, static: Tensor | None) -> Tensor:
        assert static is not None, "the decoder passes static embeddings where needs_static_embeddings is set"
        return static

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        return super().activation_bytes(config, work) + work.bytes_per_element * work.tokens * config.hidden_size
