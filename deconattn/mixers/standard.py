"""Standard: softmax attention over the layer's own hidden states (paper, section 2)."""

from collections.abc import Iterator

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.exchange import ContextExchange, SharedContext, over_heads, sent_in_turn, some_heads
from deconattn.mixers.map_blocks import MapBlock, softmax_blocks
from deconattn.mixers.principles import Principles
from deconattn.mixers.projected import ProjectedMixer
from deconattn.mixers.registry import register
from deconattn.ops import cached_attention
from deconattn.ops.documents import Documents
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


class AttentionExchange(ContextExchange["Standard"]):
    """Exchange of tokens for heads before the mixing, and back (Ulysses, arXiv:2309.14509).

    In between a rank has whole rows of some heads. Where heads do not divide, each rank attends with all heads of its
    own queries, and others' keys and values, or queries, come to it in turn (:mod:`deconattn.parallel.ring`). Per token
    of its part, with queries q and keys k wide, a rank's two passes send 4 (q + k) (n - 1) / n elements by heads,
    5.3 on 3 ranks and 6 on 4 where q = k = 1; in turn up to 6 and 11, and 6 more with every two ranks. So heads come
    first.
    """

    def mix(self, mixer: "Standard", hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        queries, keys, values = mixer.operands(hidden, static, context)
        ranks = context.ranks
        served = over_heads(queries.shape[1], keys.shape[1], ranks.size)
        if served is None:
            if type(mixer).mix is not Standard.mix:  # a subclass's mixing is unknown here
                return super().mix(mixer, hidden, static, context)
            return mixer.output(ranks.attend(queries, keys, values, context.whole_documents))
        keys, values = (some_heads(ranks, shared, served) for shared in (keys, values))
        mixed = mixer.mix(ranks.to_heads(queries), keys, values, context.whole_documents)
        return mixer.output(ranks.to_tokens(mixed))

    def sent_elements(self, mixer: type["Standard"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        return self._sent(mixer, config, work, cp_size)[0]

    def sent_backward(self, mixer: type["Standard"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        return self._sent(mixer, config, work, cp_size)[1]

    def gathers(self, mixer: type["Standard"], config: ModelConfig, work: Workload, cp_size: int) -> bool:
        return mixer.mix is not Standard.mix and self._served(mixer, config, work, cp_size) is None

    def returned(self, mixer: type["Standard"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        queries, _ = mixer.rank_widths(config, work.tp_size)
        return 0 if self._served(mixer, config, work, cp_size) is None else queries

    def _served(self, mixer: type["Standard"], config: ModelConfig, work: Workload, cp_size: int) -> int | None:
        """Return :func:`over_heads` of the heads of a tensor-parallel rank."""
        queries, keys = mixer.rank_widths(config, work.tp_size)
        return over_heads(queries // config.head_dim, keys // config.head_dim, cp_size)

    def _sent(self, mixer: type["Standard"], config: ModelConfig, work: Workload, cp_size: int) -> tuple[int, int]:
        """Return what is sent forward and backward."""
        queries, keys = mixer.rank_widths(config, work.tp_size)
        heads, shared = queries // config.head_dim, keys // config.head_dim
        served = self._served(mixer, config, work, cp_size)
        if served is not None:
            a_token = 2 * queries + 2 * served * config.head_dim
            either = work.tokens // cp_size * a_token * (cp_size - 1) // cp_size
            return either, either
        if self.gathers(mixer, config, work, cp_size):
            either = super().sent_elements(mixer, config, work, cp_size)
            return either, either
        return sent_in_turn(config.head_dim, heads, shared, work, cp_size)


@register("standard")
class Standard(ProjectedMixer):
    """A = softmax(Q K^T / sqrt(head_dim)), Q and K from H."""

    principles = Principles()
    decoding = KeyValueDecoding()
    context_exchange = AttentionExchange()

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        return self.output(self.mix(*self.operands(hidden, static, context), context.documents))

    def operands(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is mixed: queries [R, heads, L, head_dim], keys and values [R, key_value_heads, L, head_dim]."""
        source = self.source(hidden, static)
        if source is hidden:
            queries, keys, values = self.queries_keys_values(hidden, self.rotates)
        else:
            queries, keys, values = *self.queries_keys(source), self.values(hidden)
        return *self.placed(context.rotary, queries, keys), values

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor, documents: Documents | None) -> Tensor:
        """Mix the values of whole rows, of some or all heads: [R, heads, L, head_dim]."""
        return causal_attention(queries, keys, values, documents)

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
