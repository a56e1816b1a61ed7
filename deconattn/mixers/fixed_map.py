"""What the variants with input-independent maps share: Q and K from a fixed stream, V from the data."""

from abc import ABC
from collections.abc import Iterator

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.mixers.base import MixerContext, ProjectedMixer
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.map_blocks import MapBlock, softmax_blocks
from deconattn.ops import cached_attention, reference
from deconattn.ops.fixed_map import fixed_map_attention
from deconattn.ops.softmax_attention import causal_attention


class FixedMap(ProjectedMixer, ABC):
    """A = softmax(Q K^T / sqrt(head_dim)), Q and K from the fixed stream X; every row gets the same map.

    With document masks a document of n tokens gets the top-left n x n block, what it would get alone.
    """

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self._fixed_queries_keys(hidden, context)
        values = self.values(hidden[: context.output_rows])
        if context.documents is None:
            return self.output(fixed_map_attention(queries, keys, values))
        documents = context.documents.rows(len(values))
        queries, keys = (heads[:, documents.position_ids].transpose(0, 1) for heads in (queries, keys))
        return self.output(causal_attention(queries, keys, values, documents))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self._fixed_queries_keys(hidden, context)
        keys = self.per_query_head(keys)
        if context.documents is None:
            return reference.softmax_map(queries, keys).expand(len(hidden), -1, -1, -1)
        positions = context.documents.position_ids
        queries, keys = queries[:, positions].transpose(0, 1), keys[:, positions].transpose(0, 1)
        return reference.softmax_map(queries, keys, context.documents.ids[:, None])

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys = self._fixed_queries_keys(hidden, context)
        keys = self.per_query_head(keys)
        if context.documents is None:
            for weights, scores in softmax_blocks(queries, keys, None, size):
                assert scores is not None
                yield MapBlock(*(one.expand(len(hidden), -1, -1, -1) for one in (weights, scores)))
            return
        positions = context.documents.position_ids
        queries, keys = queries[:, positions].transpose(0, 1), keys[:, positions].transpose(0, 1)
        yield from softmax_blocks(queries, keys, context.documents.ids[:, None], size)

    def extend(self, hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        queries, keys = cache.fixed
        values, tokens = self.values(hidden), hidden.shape[1]
        held = cache.append("values", values, step)
        if step.first:
            return self.output(fixed_map_attention(queries[:, :tokens], keys[:, :tokens], values))
        visible = step.visible(tokens)
        if step.positions is None:
            mixed = cached_attention.fixed_map_attention(queries, keys, held, step.past, tokens, visible)
        else:
            assert visible is not None
            mixed = cached_attention.fixed_map_attention_by_row(queries, keys, held, step.positions, visible)
        return self.output(mixed)

    def fixed_part(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> tuple[Tensor, ...]:
        queries, keys = self._fixed_queries_keys(hidden, context)
        return queries.contiguous(), keys.contiguous()  # read at every step

    def _fixed_queries_keys(self, hidden: Tensor, context: MixerContext) -> tuple[Tensor, Tensor]:
        """Rotated queries [heads, L, head_dim] and keys [key_value_heads, L, head_dim] of the fixed stream."""
        assert self.fixed_stream is not None
        row = context.fixed_rows[self.fixed_stream]
        stream = hidden[row].unsqueeze(0)
        queries, keys = context.rotary.row(row)(*self.queries_keys(stream))
        return queries.squeeze(0), keys.squeeze(0)

    @classmethod
    def forward_flops(cls, config: ModelConfig, rows: int, length: int) -> int:
        # Queries and keys of the stream; values and outputs of every row; one map, which every row's values go through.
        projections = 2 * rows * length * config.hidden_size * (config.query_size + config.key_value_size)
        return cls.fixed_flops(config, length) + projections + (1 + rows) * length**2 * config.query_size

    @classmethod
    def decode_flops(cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
        projections = 2 * rows * config.hidden_size * (config.query_size + config.key_value_size)
        return projections + 2 * (1 + rows) * length * config.query_size

    @classmethod
    def cache_bytes(cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
        return rows * length * config.key_value_size * bytes_per_element

    @classmethod
    def fixed_flops(cls, config: ModelConfig, length: int) -> int:
        return 2 * length * config.hidden_size * (config.query_size + config.key_value_size)

    @classmethod
    def fixed_bytes(cls, config: ModelConfig, length: int, bytes_per_element: int) -> int:
        return length * (config.query_size + config.key_value_size) * bytes_per_element

    @classmethod
    def activation_bytes(
        cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int, shards: int, fused_norms: bool
    ) -> int:
        # Of every row the input, the values and the mixed values; of the stream alone queries, keys and the fp32
        # log-normaliser.
        queries, keys = cls.rank_widths(config, shards)
        kept = bytes_per_element * length * (rows * (config.hidden_size + keys + queries) + queries + keys)
        kept += 4 * length * queries // config.head_dim
        return kept + cls.query_key_norm_bytes(config, length, bytes_per_element, shards, fused_norms)
