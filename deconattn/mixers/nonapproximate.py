"""Non-approximate: one score a token, softmax over the prefix (paper, section 3.1)."""

from torch import Tensor
from torch.nn.functional import silu

from deconattn.mixers.base import MixerContext, ProjectedMixer
from deconattn.mixers.registry import register
from deconattn.model.config import ModelConfig
from deconattn.ops import reference
from deconattn.ops.prefix_average import prefix_attention


@register("nonapproximate")
class NonApproximate(ProjectedMixer):
    """A_ij = exp(s_j) / sum_{m<=i} exp(s_m), s_j = sum(silu(q_j) * k_j) / sqrt(head_dim).

    q and k meet at the same position, where rotary embeddings cancel: none are applied.
    """

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self.queries_keys(hidden)
        return self.output(prefix_attention(queries, keys, self.values(hidden), context.document_ids))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self.queries_keys(hidden)
        documents = None if context.documents is None else context.documents.ids[:, None]
        return reference.prefix_map(reference.token_scores(silu(queries), self.per_query_head(keys)), documents)

    @classmethod
    def forward_flops(cls, config: ModelConfig, rows: int, length: int) -> int:
        # A score, an exponential and one multiply-add a channel; chunking costs more but is not the formula.
        return cls.projection_flops(config, rows, length) + 4 * rows * length * config.query_size

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
