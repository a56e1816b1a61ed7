"""The plain running average: every token weighs the same (the baseline of Yu et al. 2022, arXiv:2111.11418, causal).

    o_i = W_o (1 / i) sum_{j <= i} W_v h_j

What attention spends on queries and keys is spent on values twice as wide, so that parameters are as many.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear
from deconattn.layers.shards import largest_part
from deconattn.layers.splits import Split, column, row
from deconattn.mixers.base import Mixer
from deconattn.mixers.cache import LayerCache, Step, SumCache
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.exchange import ContextExchange, SharedContext
from deconattn.mixers.matching import matched_dims
from deconattn.mixers.principles import Principles
from deconattn.mixers.registry import register
from deconattn.mixers.state_exchange import sent_states, shared_average
from deconattn.ops import prefix_state, reference
from deconattn.ops.precision import at_least_fp32
from deconattn.ops.prefix_average import prefix_average


class AverageDecoding(Decoding["Average"]):
    """Decoding that caches the average of the values so far and the logarithm of how many there are."""

    def new_cache(self) -> LayerCache:
        return SumCache()

    def extend(self, mixer: "Average", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        values = mixer.values(hidden)
        scores = mixer.scores(values)
        if step.first:
            mixed, state = prefix_average(scores, values), prefix_state.summarise(scores, values, step.real)
        else:
            held = cache.tensors["average"], cache.tensors["log_sum"]
            mixed = prefix_state.continued_average(scores, values, *held)
            state = prefix_state.merge(held, prefix_state.summarise(scores, values, step.real))
        cache.keep("average", state[0], step)
        cache.keep("log_sum", state[1], step)
        return mixer.output(mixed)

    def decode_flops(self, mixer: type["Average"], config: ModelConfig, work: Workload) -> int:
        return mixer.forward_flops(config, Workload(work.rows, 1))

    def cache_bytes(self, mixer: type["Average"], config: ModelConfig, work: Workload) -> int:
        heads = config.num_attention_heads
        return max(4, work.bytes_per_element) * work.rows * heads * (_width(config) + 1)


class AverageExchange(ContextExchange["Average"]):
    """Exchange of the average and the number of tokens, of the document that each rank's part ends in."""

    def mix(self, mixer: "Average", hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        values = mixer.values(hidden)
        return mixer.output(shared_average(mixer.scores(values), values, context))

    def sent_elements(self, mixer: type["Average"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        heads = largest_part(config.num_attention_heads, config.num_attention_heads, work.tp_size)
        return sent_states(heads * (_width(config) + 1), work, cp_size)


def _width(config: ModelConfig) -> int:
    return matched_dims(config, key_uses=0, value_uses=2)[1]


@register("average")
class Average(Mixer):
    """A_ij = 1 / i."""

    principles = Principles(sequence_dependent=False, softmax_form=False, position_dependent=False)
    decoding = AverageDecoding()
    context_exchange = AverageExchange()
    splits: ClassVar[Mapping[str, Split] | None] = {
        "v_proj": column("num_attention_heads"),
        "o_proj": row("num_attention_heads"),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.width = _width(config)
        self.v_proj = Linear(config.hidden_size, config.num_attention_heads * self.width, bias=config.attention_bias)
        self.o_proj = Linear(config.num_attention_heads * self.width, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        values = self.values(hidden)
        return self.output(prefix_average(self.scores(values), values, context.document_ids))

    def values(self, hidden: Tensor) -> Tensor:
        """Project to values: [R, L, d] -> [R, heads, L, width]."""
        return self.v_proj(hidden).unflatten(-1, (-1, self.width)).transpose(1, 2)

    def scores(self, values: Tensor) -> Tensor:
        """Return a score of zero for each token of each head, fp32 or finer."""
        return at_least_fp32(values.new_zeros(values.shape[:-1]))

    def output(self, mixed: Tensor) -> Tensor:
        """Join heads and project: [R, heads, L, width] -> [R, L, d]."""
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        scores = at_least_fp32(hidden.new_zeros(len(hidden), self.config.num_attention_heads, hidden.shape[1]))
        return reference.prefix_map(scores, None if context.documents is None else context.documents.ids[:, None])

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        documents = None if context.documents is None else context.documents.ids[:, None]
        visible = reference.allowed(hidden.shape[1], documents).to(hidden)
        weights = visible / visible.sum(dim=-1, keepdim=True)
        return self.output(torch.matmul(weights, self.values(hidden)))

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        width = config.num_attention_heads * _width(config)
        return 2 * config.hidden_size * width + config.attention_bias * width

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        # Beside the projections one multiply-add a channel.
        mixing = 2 * work.tokens * config.num_attention_heads * _width(config)
        return 4 * work.tokens * config.hidden_size * config.num_attention_heads * _width(config) + mixing

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes of input, values and output, and of a score and an fp32 log-sum-exp a head."""
        heads = config.num_attention_heads
        local = largest_part(heads * _width(config), heads, work.tp_size)
        scores = 2 * 4 * work.tokens * local // _width(config)
        return work.bytes_per_element * work.tokens * (config.hidden_size + 2 * local) + scores
