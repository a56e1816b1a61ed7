"""Standard: softmax attention over the layer's own hidden states (paper, section 2)."""

from collections.abc import Iterator

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.mixers.base import MixerContext, ProjectedMixer
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.map_blocks import MapBlock, softmax_blocks
from deconattn.mixers.registry import register
from deconattn.ops import cached_attention, reference
from deconattn.ops.softmax_attention import causal_attention


@register("standard")
class Standard(ProjectedMixer):
    """A = softmax(Q K^T / sqrt(head_dim)), Q and K from H."""

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = context.rotary(*self.queries_keys(self.source(hidden, static)))
        return self.output(causal_attention(queries, keys, self.values(hidden), context.documents))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = context.rotary(*self.queries_keys(self.source(hidden, static)))
        documents = None if context.documents is None else context.documents.ids[:, None]
        return reference.softmax_map(queries, self.per_query_head(keys), documents)

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys = context.rotary(*self.queries_keys(self.source(hidden, static)))
        documents = None if context.documents is None else context.documents.ids[:, None]
        return softmax_blocks(queries, self.per_query_head(keys), documents, size)

    def extend(self, hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        queries, keys = step.rotary(*self.queries_keys(self.source(hidden, static)))
        values = self.values(hidden)
        held_keys, held_values = cache.append("keys", keys, step), cache.append("values", values, step)
        if step.first:
            return self.output(causal_attention(queries, keys, values))
        visible = step.visible(queries.shape[2])
        return self.output(cached_attention.softmax_attention(queries, held_keys, held_values, visible))

    def source(self, hidden: Tensor, static: Tensor | None) -> Tensor:
        """What queries and keys are projected from, [R, L, d]."""
        return hidden

    @classmethod
    def forward_flops(cls, config: ModelConfig, rows: int, length: int) -> int:
        return cls.projection_flops(config, rows, length) + 2 * rows * length**2 * config.query_size

    @classmethod
    def decode_flops(cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
        return cls.projection_flops(config, rows, 1) + 4 * rows * length * config.query_size

    @classmethod
    def cache_bytes(cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
        return 2 * rows * length * config.key_value_size * bytes_per_element
