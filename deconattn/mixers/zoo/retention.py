"""Retention, linear attention with a fixed decay for each head (Sun et al. 2023, arXiv:2307.08621).

    S_n = gamma S_{n-1} + k_n v_n^T,    o_n = S_n^T q_n / sqrt(d_k),    gamma_h = 1 - 2^(-5 - h)
    O = W_o (swish(W_g H) * norm(o))

q and k are rotated, with the frequencies of the model's other layers; the norm is the authors' RMSNorm of each head,
with a scale here that all heads share, as in flash-linear-attention. Values are twice as wide as keys, as in the paper:
with d_k = head_dim / 2 parameters are those of standard attention without groups, and with groups both shrink.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.layers.splits import Split, column
from deconattn.mixers.context import MixerContext
from deconattn.mixers.linear_recurrence import DecayingRecurrence
from deconattn.mixers.principles import Principles
from deconattn.mixers.recurrent import RecurrentMixer, Span
from deconattn.mixers.registry import register
from deconattn.ops import reference
from deconattn.ops.gated_linear import gated_linear
from deconattn.ops.precision import at_least_fp32


@register("retention")
class Retention(DecayingRecurrence):
    """A_nm = gamma^(n - m) q_n.k_m / sqrt(d_k), then a norm: weights of either sign."""

    principles = Principles(softmax_form=False)
    value_ratio = 2.0
    even_keys = True
    exponents: Tensor
    splits: ClassVar[Mapping[str, Split] | None] = {
        **(RecurrentMixer.splits or {}),
        "exponents": column("num_attention_heads"),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        # gamma itself would be 1 in bf16 from the fourth head on; these numbers are exact.
        self.register_buffer("exponents", torch.arange(5.0, 5 + config.num_attention_heads))

    def mix(self, span: Span, *operands: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        queries, keys, values, gate, norm, *norms = operands
        queries, keys = self.rotated(span, *self.queries_keys(queries, keys, *norms))
        decay = self.log_decays(*operands)
        split = self.heads(values, self.value_width)
        mixed, state = gated_linear(queries, keys, split, decay, span.document_ids, *span.state, real=span.real)
        return self.joined(mixed, gate, norm).to(values.dtype), (state,)

    def rotated(self, span: Span, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys [R, heads, L, key_width], and scale the queries."""
        positions = span.positions(queries.transpose(1, 2))
        rotary = Rotary.of(replace(self.config, head_dim=self.key_width), positions, queries.dtype)
        return rotary(queries * self.key_width**-0.5, keys)

    def log_decays(self, *operands: Tensor) -> Tensor:
        rows, length, _ = operands[0].shape
        log_gamma = torch.log1p(-torch.exp2(-self.exponents.to(at_least_fp32(operands[0]).dtype)))
        return log_gamma[:, None, None].expand(rows, -1, length, 1)

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys, values, gate, norm, *norms = self.operands(hidden)
        queries, keys = self.rotated(Span(context.documents), *self.queries_keys(queries, keys, *norms))
        documents = None if context.documents is None else context.documents.ids[:, None]
        index = torch.arange(hidden.shape[1], dtype=queries.dtype)
        gamma = 1 - 2 ** -self.exponents.to(queries.dtype)
        weights = queries @ keys.transpose(-1, -2) * gamma[:, None, None] ** (index[:, None] - index).clamp(min=0)
        mixed = (weights * reference.allowed(hidden.shape[1], documents)) @ self.heads(values, self.value_width)
        return self.o_proj(self.joined(mixed, gate, norm))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> None:
        return None
