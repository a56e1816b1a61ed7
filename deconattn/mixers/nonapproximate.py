"""Non-approximate: one score a token, softmax over the prefix (paper, section 3.1)."""

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import silu

from deconattn.layers.config import ModelConfig
from deconattn.mixers.base import MixerContext, ProjectedMixer
from deconattn.mixers.cache import LayerCache, Step, SumCache
from deconattn.mixers.map_blocks import MapBlock, prefix_blocks
from deconattn.mixers.registry import register
from deconattn.ops import prefix_state, reference
from deconattn.ops.precision import at_least_fp32
from deconattn.ops.prefix_average import prefix_attention


@register("nonapproximate")
class NonApproximate(ProjectedMixer):
    """A_ij = exp(s_j) / sum_{m<=i} exp(s_m), s_j = sum(silu(q_j) * k_j) / sqrt(head_dim).

    q and k meet at the same position, where rotary embeddings cancel: none are applied.
    """

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self.queries_keys(hidden)
        return self.output(prefix_attention(queries, keys, self.values(hidden), context.document_ids))

    def new_cache(self) -> LayerCache:
        return SumCache()

    def extend(self, hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        queries, keys = self.queries_keys(hidden)
        values = self.per_query_head(self.values(hidden))
        keys = self.per_query_head(keys)
        scores = reference.token_scores(silu(at_least_fp32(queries)), at_least_fp32(keys))
        if step.first:
            mixed = prefix_attention(queries, keys, values)
            state = prefix_state.summarise(scores, values, step.real)
        else:
            held = cache.tensors["average"], cache.tensors["log_sum"]
            if queries.shape[2] == 1:
                state = prefix_state.step(scores[..., 0], values[:, :, 0], *held)
                mixed = state[0][:, :, None].to(values.dtype)
            else:
                mixed = prefix_state.continued_average(scores, values, *held)
                state = prefix_state.merge(held, prefix_state.summarise(scores, values, step.real))
        cache.keep("average", state[0], step)
        cache.keep("log_sum", state[1], step)
        return self.output(mixed)

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self.queries_keys(hidden)
        documents = None if context.documents is None else context.documents.ids[:, None]
        return reference.prefix_map(reference.token_scores(silu(queries), self.per_query_head(keys)), documents)

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys = self.queries_keys(hidden)
        documents = None if context.documents is None else context.documents.ids[:, None]
        return prefix_blocks(reference.token_scores(silu(queries), self.per_query_head(keys)), documents, size)

    @classmethod
    def forward_flops(cls, config: ModelConfig, rows: int, length: int) -> int:
        # A score, an exponential and one multiply-add a channel; chunking costs more but is not the formula.
        return cls.projection_flops(config, rows, length) + 4 * rows * length * config.query_size

    @classmethod
    def decode_flops(cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
        return cls.forward_flops(config, rows, 1)

    @classmethod
    def cache_bytes(cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
        # The average and the logarithm of the weights' sum, at least fp32.
        return max(4, bytes_per_element) * rows * (config.query_size + config.num_attention_heads)

    @classmethod
    def activation_bytes(
        cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int, shards: int, fused_norms: bool
    ) -> int:
        # Input, queries, keys, values and mixed values; scores and log-normalisers in fp32.
        tokens = rows * length
        queries, keys = cls.rank_widths(config, shards)
        kept = bytes_per_element * tokens * (config.hidden_size + 2 * queries + 2 * keys)
        kept += 8 * tokens * queries // config.head_dim
        return kept + cls.query_key_norm_bytes(config, tokens, bytes_per_element, shards, fused_norms)
