"""Non-approximate: one score a token, softmax over the prefix (paper, section 3.1)."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import silu

from deconattn.layers.config import ModelConfig
from deconattn.mixers.cache import LayerCache, Step, SumCache
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.exchange import ContextExchange, SharedContext
from deconattn.mixers.map_blocks import MapBlock, prefix_blocks
from deconattn.mixers.principles import Principles
from deconattn.mixers.projected import ProjectedMixer
from deconattn.mixers.registry import register
from deconattn.mixers.state_exchange import sent_states, shared_average
from deconattn.ops import prefix_scan, prefix_state, reference
from deconattn.ops.precision import at_least_fp32
from deconattn.ops.prefix_average import prefix_attention


class SumDecoding(Decoding["NonApproximate"]):
    """Decoding that caches the weighted average over the tokens so far and its log-sum-exp."""

    def new_cache(self) -> LayerCache:
        return SumCache()

    def extend(
        self, mixer: "NonApproximate", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache
    ) -> Tensor:
        queries, keys = mixer.queries_keys(hidden)
        values = mixer.per_query_head(mixer.values(hidden))
        keys = mixer.per_query_head(keys)
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
        return mixer.output(mixed)

    def decode_flops(self, mixer: type["NonApproximate"], config: ModelConfig, work: Workload) -> int:
        return mixer.forward_flops(config, replace(work, length=1))

    def cache_bytes(self, mixer: type["NonApproximate"], config: ModelConfig, work: Workload) -> int:
        return max(4, work.bytes_per_element) * work.rows * (config.query_size + config.num_attention_heads)


class SumExchange(ContextExchange["NonApproximate"]):
    """Exchange of the weighted average and its log-sum-exp, of the document that each rank's part ends in."""

    def mix(self, mixer: "NonApproximate", hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        queries, keys, values = mixer.queries_keys_values(hidden, rotated=False)
        return mixer.output(shared_average(prefix_scan.token_scores(queries, keys), values, context))

    def sent_elements(self, mixer: type["NonApproximate"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        queries, _ = mixer.rank_widths(config, work.tp_size)
        return sent_states(queries + queries // config.head_dim, work, cp_size)


@register("nonapproximate")
class NonApproximate(ProjectedMixer):
    """A_ij = exp(s_j) / sum_{m<=i} exp(s_m), s_j = sum(silu(q_j) * k_j) / sqrt(head_dim).

    q and k meet at the same position, where rotary embeddings cancel: none are applied.
    """

    principles = Principles(softmax_form=False, position_dependent=False)
    decoding = SumDecoding()
    context_exchange = SumExchange()

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys, values = self.queries_keys_values(hidden, rotated=False)
        return self.output(prefix_attention(queries, keys, values, context.document_ids))

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys = self.queries_keys(hidden)
        documents = None if context.documents is None else context.documents.ids[:, None]
        return prefix_blocks(reference.token_scores(silu(queries), self.per_query_head(keys)), documents, size)

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        # A score, an exponential and one multiply-add a channel; chunking costs more but is not the formula.
        return cls.projection_flops(config, work.tokens) + 4 * work.tokens * config.query_size

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        # Beside what softmax attention saves, an fp32 score for each log-sum-exp.
        queries, _ = cls.rank_widths(config, work.tp_size)
        return super().activation_bytes(config, work) + 4 * work.tokens * queries // config.head_dim
