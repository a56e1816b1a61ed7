"""Standard: softmax attention over the layer's own hidden states (paper, section 2)."""

from torch import Tensor

from deconattn.mixers.base import MixerContext, ProjectedMixer
from deconattn.mixers.registry import register
from deconattn.model.config import ModelConfig
from deconattn.ops import reference
from deconattn.ops.softmax_attention import causal_attention


@register("standard")
class Standard(ProjectedMixer):
    """A = softmax(Q K^T / sqrt(head_dim)), Q and K from H."""

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = context.rotary(*self.queries_keys(self.source(hidden, static)))
        return self.output(causal_attention(queries, keys, self.values(hidden), context.documents))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = context.rotary(*self.queries_keys(self.source(hidden, static)))
        documents = None if context.documents is None else context.documents.ids[:, None]
        return reference.softmax_map(queries, self.per_query_head(keys), documents)

    def source(self, hidden: Tensor, static: Tensor | None) -> Tensor:
        """What queries and keys are projected from, [R, L, d]."""
        return hidden

    @classmethod
    def forward_flops(cls, config: ModelConfig, rows: int, length: int) -> int:
        return cls.projection_flops(config, rows, length) + 2 * rows * length**2 * config.query_size
