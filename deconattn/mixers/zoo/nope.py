"""Attention without positions (Kazemnejad et al. 2023, arXiv:2305.19466).

    A_i = softmax_{j <= i}(q_i . k_j / sqrt(d)),  o_i = W_o sum_j A_ij v_j

Standard attention whose queries and keys are not rotated: what a token knows of order is what the causal mask tells.
Parameters are standard attention's own.
"""

from torch import Tensor

from deconattn.mixers.context import MixerContext
from deconattn.mixers.principles import Principles
from deconattn.mixers.registry import register
from deconattn.mixers.standard import Standard
from deconattn.ops import reference


@register("nope")
class NoPE(Standard):
    """A = softmax(Q K^T / sqrt(head_dim)), nothing rotated."""

    rotates = False
    principles = Principles(position_dependent=False)

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self.queries_keys(hidden)
        documents = None if context.documents is None else context.documents.ids[:, None]
        weights = reference.softmax_map(queries, self.per_query_head(keys), documents)
        return self.output(weights @ self.per_query_head(self.values(hidden)))
