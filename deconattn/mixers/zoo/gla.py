"""Gated linear attention, with a decay for each channel of the keys (Yang et al. 2024, arXiv:2312.06635).

    S_t = diag(alpha_t) S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t / sqrt(d_k)
    alpha_t = sigmoid(W_2 W_1 h_t + b)^(1 / 16),    O = W_o (swish(W_g H) * norm(o))

W_1 has 16 outputs. The norm is an RMSNorm of each head. Values are twice as wide as keys, as in the paper, and both as
wide as parameters match standard attention's.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear
from deconattn.layers.splits import Split, column
from deconattn.mixers.context import MixerContext
from deconattn.mixers.linear_recurrence import DecayingRecurrence
from deconattn.mixers.principles import Principles
from deconattn.mixers.recurrent import RecurrentMixer, Span
from deconattn.mixers.registry import register
from deconattn.ops import reference
from deconattn.ops.gated_linear import gated_linear

RANK = 16
TEMPERATURE = 16


@register("gla")
class GatedLinearAttention(DecayingRecurrence):
    """A_ij = sum_c q_ic k_jc prod_{j < t <= i} alpha_tc / sqrt(d_k), then a norm: weights of either sign."""

    principles = Principles(softmax_form=False)
    value_ratio = 2.0
    splits: ClassVar[Mapping[str, Split] | None] = {
        **(RecurrentMixer.splits or {}),
        "decay_proj": column("num_attention_heads"),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.rank_proj = Linear(config.hidden_size, RANK, bias=False)
        self.decay_proj = Linear(RANK, config.num_attention_heads * self.key_width, bias=True)

    def operands(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return self.decay_proj(self.rank_proj(hidden)), *super().operands(hidden)

    def mix(self, span: Span, *operands: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        _, queries, keys, values, gate, norm, *norms = operands
        queries, keys = self.queries_keys(queries, keys, *norms)
        mixed, state = gated_linear(
            queries * self.key_width**-0.5,
            keys,
            self.heads(values, self.value_width),
            self.log_decays(*operands),
            span.document_ids,
            *span.state,
            real=span.real,
        )
        return self.joined(mixed, gate, norm).to(values.dtype), (state,)

    def log_decays(self, *operands: Tensor) -> Tensor:
        return logsigmoid(self.heads(operands[0], self.key_width)) / TEMPERATURE

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        decay, queries, keys, values, gate, norm, *norms = self.operands(hidden)
        queries, keys = self.queries_keys(queries, keys, *norms)
        alpha = self.heads(decay, self.key_width).sigmoid() ** (1 / TEMPERATURE)
        split = self.heads(values, self.value_width)
        mixed = reference.gated_linear(queries, keys, split, alpha.log(), context.document_ids)
        return self.o_proj(self.joined(mixed / self.key_width**0.5, gate, norm))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> None:
        return None

    @classmethod
    def count(cls, config: ModelConfig, keys: int, values: int) -> int:
        return super().count(config, keys, values) + config.num_attention_heads * keys

    @classmethod
    def projection_weights(cls, config: ModelConfig, keys: int, values: int) -> int:
        low_rank = RANK * (config.hidden_size + config.num_attention_heads * keys)
        return super().projection_weights(config, keys, values) + low_rank

    @classmethod
    def kept(cls, config: ModelConfig, keys: int, values: int) -> tuple[int, int]:
        a_head, shared = super().kept(config, keys, values)
        return a_head + keys, shared + RANK
