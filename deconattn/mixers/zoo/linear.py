"""Linear attention with the features elu + 1 (Katharopoulos et al. 2020, arXiv:2006.16236).

    o_i = sum_{j <= i} (phi(q_i).phi(k_j)) v_j / sum_{j <= i} phi(q_i).phi(k_j),    phi(x) = elu(x) + 1

There are no positions: the features of rotated vectors would no longer be positive. Every head has its own keys and
values, of the width that gives as many parameters as standard attention has (without groups, that is `head_dim`).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import elu, pad

from deconattn.layers.config import ModelConfig
from deconattn.mixers.context import MixerContext
from deconattn.mixers.linear_recurrence import LinearRecurrence
from deconattn.mixers.map_blocks import MapBlock, product_blocks
from deconattn.mixers.principles import Principles
from deconattn.mixers.recurrent import UNGATED_SPLITS, Span
from deconattn.mixers.registry import register
from deconattn.ops import reference
from deconattn.ops.gated_linear import gated_linear


@register("linear")
class LinearAttention(LinearRecurrence):
    """A_ij = phi(q_i).phi(k_j) / sum_{m <= i} phi(q_i).phi(k_m)."""

    principles = Principles(softmax_form=False, position_dependent=False)
    gated = False
    splits = UNGATED_SPLITS

    def mix(self, span: Span, *operands: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        queries, keys, values, *norms = operands
        queries, keys = map(_positive, self.queries_keys(queries, keys, *norms))
        # A channel of ones sums the weights.
        extended = pad(self.heads(values, self.value_width), (0, 1), value=1.0)
        total, state = gated_linear(queries, keys, extended, None, span.document_ids, *span.state, real=span.real)
        return self.joined(total[..., :-1] / total[..., -1:]).to(values.dtype), (state,)

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys, _, *norms = self.operands(hidden)
        queries, keys = map(_positive, self.queries_keys(queries, keys, *norms))
        documents = None if context.documents is None else context.documents.ids[:, None]
        return product_blocks(queries, keys, documents, size)

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys, values, *norms = self.operands(hidden)
        queries, keys = (elu(one) + 1 for one in self.queries_keys(queries, keys, *norms))
        documents = None if context.documents is None else context.documents.ids[:, None]
        visible = reference.allowed(hidden.shape[1], documents)
        weights = torch.einsum("rhic,rhjc->rhij", queries, keys) * visible
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return self.o_proj(self.joined(weights @ self.heads(values, self.value_width)))

    @classmethod
    def state_size(cls, config: ModelConfig, keys: int, values: int) -> int:
        return config.num_attention_heads * keys * (values + 1)


def _positive(x: Tensor) -> Tensor:
    """elu(x) + 1, which in this form stays above zero where exp(x) - 1 rounds to -1."""
    above = x.relu()
    return (x - above).exp() + above
