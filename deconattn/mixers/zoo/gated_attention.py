"""Gated attention (Qiu et al. 2025, arXiv:2505.06708): a sigmoid gate after the softmax, G1 elementwise.

    Y = softmax_{j <= i}(q_i . k_j / sqrt(d)) V,  Y' = Y * sigma(X W_g),  O = Y' W_o

X are the layer's hidden states; every channel of every head has a gate. So that parameters are as many as standard
attention's with the gate's, heads are narrower: queries and keys by one width, values and gates by another near it.
Rotary frequencies are spread over all that a full head has.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear
from deconattn.layers.shards import largest_part
from deconattn.layers.splits import Split, column
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload, rms_norm_bytes
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.map_blocks import MapBlock, softmax_blocks
from deconattn.mixers.matching import matched_dims
from deconattn.mixers.principles import Principles
from deconattn.mixers.projected import ProjectedMixer
from deconattn.mixers.registry import register
from deconattn.ops import cached_attention, reference
from deconattn.ops.softmax_attention import causal_attention


class GatedDecoding(Decoding["GatedAttention"]):
    """Decoding that caches every token's keys and values."""

    def extend(
        self, mixer: "GatedAttention", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache
    ) -> Tensor:
        queries, keys = mixer.placed(step.rotary, *mixer.queries_keys(hidden))
        values = mixer.values(hidden)
        held_keys, held_values = cache.append("keys", keys, step), cache.append("values", values, step)
        if step.first:
            return mixer.gated(causal_attention(queries, keys, values), hidden)
        visible = step.visible(queries.shape[2])
        return mixer.gated(cached_attention.softmax_attention(queries, held_keys, held_values, visible), hidden)

    def decode_flops(self, mixer: type["GatedAttention"], config: ModelConfig, work: Workload) -> int:
        mixing = 2 * work.tokens * config.num_attention_heads * sum(mixer.widths(config))
        return mixer.projection_flops(config, work.rows) + mixing

    def cache_bytes(self, mixer: type["GatedAttention"], config: ModelConfig, work: Workload) -> int:
        return work.tokens * config.num_key_value_heads * sum(mixer.widths(config)) * work.bytes_per_element


@register("gated-attention")
class GatedAttention(ProjectedMixer):
    """A = softmax(Q K^T / sqrt(width)), and gates of what it mixes."""

    principles = Principles()
    decoding = GatedDecoding()
    splits: ClassVar[Mapping[str, Split] | None] = {
        **(ProjectedMixer.splits or {}),
        "g_proj": column("num_attention_heads"),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.g_proj = Linear(config.hidden_size, config.num_attention_heads * self.value_width, bias=False)

    @classmethod
    def widths(cls, config: ModelConfig) -> tuple[int, int]:
        served = config.num_key_value_heads / config.num_attention_heads
        extra = config.attention_bias * (config.query_size + 2 * config.key_value_size)
        # Of values there are projections to the heads' values, gates and output.
        return matched_dims(config, 1 + served, 2 + served, extra, even_keys=True)

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys, values = self.queries_keys_values(hidden)
        queries, keys = self.placed(context.rotary, queries, keys)
        return self.gated(causal_attention(queries, keys, values, context.documents), hidden)

    def gated(self, mixed: Tensor, hidden: Tensor) -> Tensor:
        """Join heads [R, heads, L, width], gate and project: [R, L, d]."""
        return self.o_proj(mixed.transpose(1, 2).flatten(-2) * self.g_proj(hidden).sigmoid())

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys = self.placed(context.rotary, *self.queries_keys(hidden))
        documents = None if context.documents is None else context.documents.ids[:, None]
        return softmax_blocks(queries, self.per_query_head(keys), documents, size)

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self.placed(context.rotary, *self.queries_keys(hidden))
        documents = None if context.documents is None else context.documents.ids[:, None]
        weights = reference.softmax_map(queries, self.per_query_head(keys), documents)
        return self.gated(weights @ self.per_query_head(self.values(hidden)), hidden)

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        keys, values = cls.widths(config)
        heads, served = config.num_attention_heads, config.num_key_value_heads
        biases = heads * keys + served * (keys + values)
        weights = config.hidden_size * (biases + 2 * heads * values)
        return weights + config.attention_bias * biases + config.qk_norm * 2 * keys

    @classmethod
    def projection_flops(cls, config: ModelConfig, tokens: int) -> int:
        keys, values = cls.widths(config)
        heads, served = config.num_attention_heads, config.num_key_value_heads
        return 2 * tokens * config.hidden_size * (heads * (keys + 2 * values) + served * (keys + values))

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        mixing = work.tokens * work.length * config.num_attention_heads * sum(cls.widths(config))
        return cls.projection_flops(config, work.tokens) + mixing

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes of attention, of gates and what they make of its output, and of rotary's cosines and sines."""
        keys, values = cls.widths(config)
        heads, served = (
            largest_part(count, count, work.tp_size)
            for count in (config.num_attention_heads, config.num_key_value_heads)
        )
        kept = config.hidden_size + heads * (keys + 3 * values) + served * (keys + values)
        rotary = 2 * work.length * keys * (keys != config.head_dim)
        norms = rms_norm_bytes(work.tokens * (heads + served), keys, work.bytes_per_element, work.fused_norms)
        sums = 4 * work.tokens * heads
        return work.bytes_per_element * (work.tokens * kept + rotary) + sums + config.qk_norm * norms
