"""Variants with input-independent maps: Q and K from a fixed stream, V from the data (paper, section 3.2)."""

from abc import ABC
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import rows
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.exchange import ContextExchange, SharedContext, over_heads, some_heads
from deconattn.mixers.map_blocks import MapBlock, softmax_blocks
from deconattn.mixers.principles import Principles
from deconattn.mixers.projected import ProjectedMixer
from deconattn.ops import cached_attention
from deconattn.ops.documents import Documents
from deconattn.ops.fixed_map import fixed_map_attention
from deconattn.ops.softmax_attention import causal_attention


class ValueDecoding(Decoding["FixedMap"]):
    """Decoding that caches values; queries and keys of the stream are those of every sequence."""

    shares_fixed_part = True

    def extend(self, mixer: "FixedMap", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        queries, keys = cache.fixed
        values, tokens = mixer.values(hidden), hidden.shape[1]
        held = cache.append("values", values, step)
        if step.first:
            return mixer.output(fixed_map_attention(queries[:, :tokens], keys[:, :tokens], values))
        visible = step.visible(tokens)
        if step.positions is None:
            mixed = cached_attention.fixed_map_attention(queries, keys, held, step.past, tokens, visible)
        else:
            assert visible is not None
            mixed = cached_attention.fixed_map_attention_by_row(queries, keys, held, step.positions, visible)
        return mixer.output(mixed)

    def fixed_part(
        self, mixer: "FixedMap", hidden: Tensor, static: Tensor | None, context: MixerContext
    ) -> tuple[Tensor, ...]:
        queries, keys = mixer.fixed_queries_keys(hidden, context)
        return queries.contiguous(), keys.contiguous()  # read at every step

    def decode_flops(self, mixer: type["FixedMap"], config: ModelConfig, work: Workload) -> int:
        return _projection_flops(config, work.rows) + 2 * (1 + work.rows) * work.length * config.query_size

    def cache_bytes(self, mixer: type["FixedMap"], config: ModelConfig, work: Workload) -> int:
        return work.tokens * config.key_value_size * work.bytes_per_element

    def fixed_flops(self, mixer: type["FixedMap"], config: ModelConfig, length: int) -> int:
        return _projection_flops(config, length)

    def fixed_bytes(self, mixer: type["FixedMap"], config: ModelConfig, length: int, bytes_per_element: int) -> int:
        return length * (config.query_size + config.key_value_size) * bytes_per_element


class FixedMapExchange(ContextExchange["FixedMap"]):
    """Exchange of tokens for heads, of values and what comes of them: queries and keys are those of one row.

    Where heads do not divide, whole rows are gathered.
    """

    def mix(self, mixer: "FixedMap", hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        values = mixer.values(context.read(hidden))
        ranks = context.ranks
        heads = mixer.per_query_head(values[:1]).shape[1]
        served = over_heads(heads, values.shape[1], ranks.size)
        if served is None:
            return super().mix(mixer, hidden, static, context)
        queries, keys = context.fixed or self.held(mixer.fixed_queries_keys(hidden, context), context)
        mixed = mixer.mix(queries, keys, some_heads(ranks, values, served), context.whole_documents)
        return mixer.output(ranks.to_tokens(mixed))

    def held(self, fixed: tuple[Tensor, ...], context: SharedContext) -> tuple[Tensor, ...]:
        queries, keys = fixed
        ranks = context.ranks
        served = over_heads(len(queries), len(keys), ranks.size)
        if served is None:
            return super().held(fixed, context)
        return ranks.to_heads(queries[None])[0], some_heads(ranks, keys[None], served)[0]

    def sent_elements(self, mixer: type["FixedMap"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        queries, keys = mixer.rank_widths(config, work.tp_size)
        served = over_heads(queries // config.head_dim, keys // config.head_dim, cp_size)
        if served is None:
            return super().sent_elements(mixer, config, work, cp_size)
        # Of every row values, and what is mixed of them; of the stream queries and keys.
        width = queries + served * config.head_dim
        return (work.tokens + work.length) // cp_size * width * (cp_size - 1) // cp_size

    def gathers(self, mixer: type["FixedMap"], config: ModelConfig, work: Workload, cp_size: int) -> bool:
        queries, keys = mixer.rank_widths(config, work.tp_size)
        return over_heads(queries // config.head_dim, keys // config.head_dim, cp_size) is None

    def returned(self, mixer: type["FixedMap"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        queries, _ = mixer.rank_widths(config, work.tp_size)
        return queries


class FixedMap(ProjectedMixer, ABC):
    """A = softmax(Q K^T / sqrt(head_dim)), Q and K from the fixed stream X; every row gets the same map.

    With document masks a document of n tokens gets the top-left n x n block, what it would get alone.
    """

    principles = Principles(sequence_dependent=False)
    decoding = ValueDecoding()
    context_exchange = FixedMapExchange()

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self.fixed_queries_keys(hidden, context)
        return self.output(self.mix(queries, keys, self.values(context.read(hidden)), context.documents))

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor, documents: Documents | None) -> Tensor:
        """Mix whole rows of values [R, heads, L, head_dim] by the stream's queries and keys [heads, L, head_dim]."""
        if documents is None:
            return fixed_map_attention(queries, keys, values)
        documents = documents.rows(len(values))
        queries, keys = (heads[:, documents.position_ids].transpose(0, 1) for heads in (queries, keys))
        return causal_attention(queries, keys, values, documents)

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys = self.fixed_queries_keys(hidden, context)
        keys = self.per_query_head(keys)
        if context.documents is None:
            for weights, scores in softmax_blocks(queries, keys, None, size):
                assert scores is not None
                yield MapBlock(*(one.expand(len(hidden), -1, -1, -1) for one in (weights, scores)))
            return
        positions = context.documents.position_ids
        queries, keys = queries[:, positions].transpose(0, 1), keys[:, positions].transpose(0, 1)
        yield from softmax_blocks(queries, keys, context.documents.ids[:, None], size)

    def fixed_queries_keys(self, hidden: Tensor, context: MixerContext) -> tuple[Tensor, Tensor]:
        """Return rotated queries [heads, L, head_dim] and keys [key_value_heads, L, head_dim] of the fixed stream."""
        if context.fixed is not None:
            queries, keys = context.fixed
            return queries, keys
        assert self.fixed_stream is not None
        row = context.fixed_rows[self.fixed_stream]
        stream = rows(hidden, slice(row, row + 1 or None))
        queries, keys = context.rotary.row(row)(*self.queries_keys(stream))
        return queries.squeeze(0), keys.squeeze(0)

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        # Queries and keys of the stream; values and outputs of every row; one map, which every row's values go through.
        streams = _projection_flops(config, work.length)
        mixing = (1 + work.rows) * work.length**2 * config.query_size
        return streams + _projection_flops(config, work.tokens) + mixing

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        # Of every row the input, the values and the mixed values; of the stream alone queries, keys and the fp32 lse.
        queries, keys = cls.rank_widths(config, work.tp_size)
        kept = work.tokens * (config.hidden_size + keys + queries) + work.length * (queries + keys)
        stream = replace(work, rows=1)
        lse = 4 * work.length * queries // config.head_dim
        return work.bytes_per_element * kept + lse + cls.query_key_norm_bytes(config, stream)


def _projection_flops(config: ModelConfig, tokens: int) -> int:
    """FLOPs of the query and key projections, or of the value and output projections."""
    return 2 * tokens * config.hidden_size * (config.query_size + config.key_value_size)
