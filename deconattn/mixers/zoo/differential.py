"""Differential attention (Ye et al. 2024, arXiv:2410.05258).

    A = softmax(Q_1 K_1^T / sqrt(d)) - lambda softmax(Q_2 K_2^T / sqrt(d))
    lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init
    o = W_o (1 - lambda_init) RMSNorm(A V), of each head by itself

Both maps are causal. lambda_init is 0.8 at every depth, which the paper found as good as one that grows with depth, and
a mixer does not know its depth. Parameters are standard attention's: there are as many heads, whose queries and keys of
each map are half as wide as theirs, and whose values are as wide (the paper halves the heads instead, so that all is
twice as wide). The lambdas and the norm's weights are fewer than 0.1 % of a layer.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from deconattn.layers.config import ModelConfig
from deconattn.layers.splits import Split
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload, attention_parameters, rms_norm_bytes
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.principles import Principles
from deconattn.mixers.projected import ProjectedMixer
from deconattn.mixers.registry import register
from deconattn.ops import cached_attention, reference
from deconattn.ops.softmax_attention import causal_attention

LAMBDA_INIT = 0.8


class DifferentialDecoding(Decoding["Differential"]):
    """Decoding that caches every token's keys, of both maps, and values."""

    def extend(
        self, mixer: "Differential", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache
    ) -> Tensor:
        queries, keys = mixer.placed(step.rotary, *mixer.queries_keys(hidden))
        values = mixer.values(hidden)
        held_keys, held_values = cache.append("keys", keys, step), cache.append("values", values, step)
        maps = range(mixer.maps)
        if step.first:
            mixed = [causal_attention(queries[:, which::2], keys[:, which::2], values) for which in maps]
        else:
            visible = step.visible(queries.shape[2])
            mixed = [
                cached_attention.softmax_attention(queries[:, which::2], held_keys[:, which::2], held_values, visible)
                for which in maps
            ]
        return mixer.difference(*mixed)

    def decode_flops(self, mixer: type["Differential"], config: ModelConfig, work: Workload) -> int:
        return mixer.projection_flops(config, work.rows) + 6 * work.tokens * config.query_size

    def cache_bytes(self, mixer: type["Differential"], config: ModelConfig, work: Workload) -> int:
        keys, values = mixer.widths(config)
        return work.tokens * config.num_key_value_heads * (2 * keys + values) * work.bytes_per_element


@register("differential")
class Differential(ProjectedMixer):
    """The difference of two softmax maps; its rows sum to 1 - lambda, and some of its weights are negative."""

    principles = Principles(softmax_form=False)
    decoding = DifferentialDecoding()
    splits: ClassVar[Mapping[str, Split] | None] = ProjectedMixer.splits
    maps = 2

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(0.1 * torch.randn(self.key_width)) for _ in range(4)
        )
        self.mixed_norm = nn.RMSNorm(self.value_width, eps=config.rms_norm_eps)

    @classmethod
    def widths(cls, config: ModelConfig) -> tuple[int, int]:
        # Rotary wants even ones.
        return max(2, config.head_dim // 4 * 2), config.head_dim

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys, values = self.queries_keys_values(hidden)
        queries, keys = self.placed(context.rotary, queries, keys)
        maps = range(self.maps)
        # A head's two queries, and keys, are neighbours.
        mixed = [causal_attention(queries[:, one::2], keys[:, one::2], values, context.documents) for one in maps]
        return self.difference(*mixed)

    def strength(self) -> Tensor:
        """Compute lambda, in the parameters' dtype."""
        first, second = (self.lambda_q1 * self.lambda_k1).sum(), (self.lambda_q2 * self.lambda_k2).sum()
        return first.exp() - second.exp() + LAMBDA_INIT

    def difference(self, first: Tensor, second: Tensor) -> Tensor:
        """Join what the two maps mixed, [R, heads, L, width] each, and project: [R, L, d]."""
        mixed = self.mixed_norm((first - self.strength() * second).transpose(1, 2))
        return self.o_proj((mixed * (1 - LAMBDA_INIT)).flatten(-2))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> None:
        return None

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self.placed(context.rotary, *self.queries_keys(hidden))
        documents = None if context.documents is None else context.documents.ids[:, None]
        one, other = (
            reference.softmax_map(queries[:, which::2], self.per_query_head(keys[:, which::2]), documents)
            for which in range(2)
        )
        lambda_ = torch.exp(self.lambda_q1 @ self.lambda_k1) - torch.exp(self.lambda_q2 @ self.lambda_k2) + LAMBDA_INIT
        mixed = (one - lambda_ * other) @ self.per_query_head(self.values(hidden))
        mean_square = mixed.square().mean(dim=-1, keepdim=True)
        normed = mixed / (mean_square + self.config.rms_norm_eps).sqrt() * self.mixed_norm.weight
        return self.output((1 - LAMBDA_INIT) * normed)

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        keys, values = cls.widths(config)
        missing = (config.head_dim - 2 * keys) * (config.num_attention_heads + config.num_key_value_heads)
        norms = config.qk_norm * 2 * (keys - config.head_dim)
        every = attention_parameters(config) - missing * (config.hidden_size + config.attention_bias)
        return every + norms + 4 * keys + values

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        return cls.projection_flops(config, work.tokens) + 3 * work.tokens * work.length * config.query_size

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes of attention, twice its output and sums, of the norm and its output, and of cosines and sines."""
        queries, _ = cls.rank_widths(config, work.tp_size)
        heads = queries // config.head_dim
        norm = rms_norm_bytes(work.tokens * heads, config.head_dim, work.bytes_per_element, work.fused_norms)
        rotary = 2 * work.length * cls.widths(config)[0]
        more = work.bytes_per_element * (2 * work.tokens * queries + rotary) + 4 * work.tokens * heads
        return super().activation_bytes(config, work) + more + norm

    @classmethod
    def query_key_norm_bytes(cls, config: ModelConfig, work: Workload) -> int:
        if not config.qk_norm:
            return 0
        vectors = 2 * work.tokens * sum(cls.rank_widths(config, work.tp_size)) // config.head_dim
        return rms_norm_bytes(vectors, cls.widths(config)[0], work.bytes_per_element, work.fused_norms)
