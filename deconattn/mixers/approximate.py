"""Approximate: the exponential replaced by its second-order Taylor series (paper, equation 6)."""

from torch import Tensor

from deconattn.mixers.base import MixerContext, ProjectedMixer
from deconattn.mixers.registry import register
from deconattn.model.config import ModelConfig
from deconattn.ops import reference
from deconattn.ops.taylor_attention import taylor_attention


@register("approximate")
class Approximate(ProjectedMixer):
    """A_ij = w_ij / sum_{m<=i} w_im with w = 1 + s + s^2/2 and s = q.k / sqrt(head_dim)."""

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = context.rotary(*self.queries_keys(hidden))
        return self.output(taylor_attention(queries, keys, self.values(hidden), context.document_ids))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = context.rotary(*self.queries_keys(hidden))
        documents = None if context.documents is None else context.documents.ids[:, None]
        return reference.taylor_map(queries, self.per_query_head(keys), documents)

    @classmethod
    def forward_flops(cls, config: ModelConfig, rows: int, length: int) -> int:
        return cls.projection_flops(config, rows, length) + 2 * rows * length**2 * config.query_size
