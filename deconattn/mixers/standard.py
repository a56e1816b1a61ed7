"""Standard: softmax attention over the layer's own hidden states (paper, section 2)."""

from collections.abc import Iterator

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.map_blocks import MapBlock, softmax_blocks
from deconattn.mixers.principles import Principles
from deconattn.mixers.projected import ProjectedMixer
from deconattn.mixers.registry import register
from deconattn.ops import cached_attention
from deconattn.ops.softmax_attention import causal_attention


class KeyValueDecoding(Decoding["Standard"]):
    """Decoding that caches every token's keys and values."""

    def extend(self, mixer: "Standard", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        queries, keys = mixer.placed(step.rotary, *mixer.queries_keys(mixer.source(hidden, static)))
        values = mixer.values(hidden)
        held_keys, held_values = cache.append("keys", keys, step), cache.append("values", values, step)
        if step.first:
            return mixer.output(causal_attention(queries, keys, values))
        visible = step.visible(queries.shape[2])
        return mixer.output(cached_attention.softmax_attention(queries, held_keys, held_values, visible))

    def decode_flops(self, mixer: type["Standard"], config: ModelConfig, work: Workload) -> int:
        return mixer.projection_flops(config, work.rows) + 4 * work.tokens * config.query_size

    def cache_bytes(self, mixer: type["Standard"], config: ModelConfig, work: Workload) -> int:
        return 2 * work.tokens * config.key_value_size * work.bytes_per_element


@register("standard")
class Standard(ProjectedMixer):
    """A = softmax(Q K^T / sqrt(head_dim)), Q and K from H."""

    principles = Principles()
    decoding = KeyValueDecoding()

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        source = self.source(hidden, static)
        if source is hidden:
            queries, keys, values = self.queries_keys_values(hidden, self.rotates)
        else:
            queries, keys, values = *self.queries_keys(source), self.values(hidden)
        queries, keys = self.placed(context.rotary, queries, keys)
        return self.output(causal_attention(queries, keys, values, context.documents))

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys = self.placed(context.rotary, *self.queries_keys(self.source(hidden, static)))
        documents = None if context.documents is None else context.documents.ids[:, None]
        return softmax_blocks(queries, self.per_query_head(keys), documents, size)

    def source(self, hidden: Tensor, static: Tensor | None) -> Tensor:
        """Return the input of the query and key projections, [R, L, d]."""
        return hidden

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        return cls.projection_flops(config, work.tokens) + 2 * work.tokens * work.length * config.query_size
