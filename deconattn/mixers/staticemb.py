"""StaticEmbQK: queries and keys from the static token embeddings (paper, section 3.2)."""

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.mixers.registry import register
from deconattn.mixers.standard import Standard


@register("staticemb")
class StaticEmb(Standard):
    """A = softmax(Q K^T / sqrt(head_dim)), Q and K from e = Emb(t) through the layer's input norm."""

    needs_static_embeddings = True

    def source(self, hidden: Tensor, static: Tensor | None) -> Tensor:
        assert static is not None, "the decoder passes static embeddings where needs_static_embeddings is set"
        return static

    @classmethod
    def activation_bytes(
        cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int, shards: int, fused_norms: bool
    ) -> int:
        kept = super().activation_bytes(config, rows, length, bytes_per_element, shards, fused_norms)
        return kept + bytes_per_element * rows * length * config.hidden_size
