"""Based's linear attention: the exponential's Taylor series over few channels (Arora et al. 2024, arXiv:2402.18668).

    o_i = sum_{j <= i} w_ij v_j / sum_{j <= i} w_ij,    w_ij = 1 + s + s^2 / 2,    s = q_i.k_j / sqrt(d_k)

The same weights as `approximate`'s, of queries and keys of 16 channels (half of `head_dim` where that is less) that are
not rotated, so that the state has 153 rows a head: w_ij = phi(q_i).phi(k_j), where phi(x) has 1, the x_a, and the
products x_a x_b with a <= b. Values are wider in exchange, so that parameters are as many.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from deconattn.layers.config import ModelConfig
from deconattn.mixers.context import MixerContext
from deconattn.mixers.linear_recurrence import LinearRecurrence
from deconattn.mixers.map_blocks import MapBlock, taylor_blocks
from deconattn.mixers.matching import matched_widths
from deconattn.mixers.principles import Principles
from deconattn.mixers.recurrent import UNGATED_SPLITS, Span
from deconattn.mixers.registry import register
from deconattn.ops import reference
from deconattn.ops.gated_linear import gated_linear

KEY_WIDTH = 16


@register("based")
class Based(LinearRecurrence):
    """A_ij = w_ij / sum_{m <= i} w_im."""

    principles = Principles(softmax_form=False, position_dependent=False)
    gated = False
    splits = UNGATED_SPLITS

    def mix(self, span: Span, *operands: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        queries, keys, values, *norms = operands
        queries, keys = map(_features, self.queries_keys(queries, keys, *norms))
        # A channel of ones sums the weights.
        extended = pad(self.heads(values, self.value_width), (0, 1), value=1.0)
        total, state = gated_linear(queries, keys, extended, None, span.document_ids, *span.state, real=span.real)
        return self.joined(total[..., :-1] / total[..., -1:]).to(values.dtype), (state,)

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys, _, *norms = self.operands(hidden)
        documents = None if context.documents is None else context.documents.ids[:, None]
        return taylor_blocks(*self.queries_keys(queries, keys, *norms), documents, size)

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys, values, *norms = self.operands(hidden)
        queries, keys = self.queries_keys(queries, keys, *norms)
        documents = None if context.documents is None else context.documents.ids[:, None]
        scores = torch.einsum("rhic,rhjc->rhij", queries, keys) / self.key_width**0.5
        weights = (1 + scores + scores**2 / 2) * reference.allowed(hidden.shape[1], documents)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return self.o_proj(self.joined(weights @ self.heads(values, self.value_width)))

    @classmethod
    def widths(cls, config: ModelConfig) -> tuple[int, int]:
        keys = min(KEY_WIDTH, config.head_dim // 2)

        def count(_: int, values: int) -> int:
            return cls.count(config, keys, values)

        return keys, matched_widths(config, count)[1]

    @classmethod
    def state_size(cls, config: ModelConfig, keys: int, values: int) -> int:
        return config.num_attention_heads * _size(keys) * (values + 1)

    @classmethod
    def mixing_flops(cls, config: ModelConfig, keys: int, values: int) -> int:
        return 4 * cls.state_size(config, keys, values)


def _size(channels: int) -> int:
    """Return the number of features."""
    return (channels + 1) * (channels + 2) // 2


def _features(x: Tensor) -> Tensor:
    """Return phi(x), [.., d] -> [.., (d + 1) (d + 2) / 2], with phi(q).phi(k) = w."""
    x = x / x.shape[-1] ** 0.25
    pairs = [x[..., channel, None] * x[..., channel + 1 :] for channel in range(x.shape[-1] - 1)]
    return torch.cat([torch.ones_like(x[..., :1]), x, x.square() / 2**0.5, *pairs], dim=-1)
