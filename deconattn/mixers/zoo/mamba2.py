"""Mamba-2, the state space dual: a scalar decay a head and token (Dao & Gu 2024, arXiv:2405.21060).

    x, B, C = silu(conv(W_x H)), silu(conv(W_B H)), silu(conv(W_C H)),    Delta = softplus(W_Delta H + b)
    S_t = exp(-exp(A_log) Delta_t) S_{t-1} + B_t (Delta_t x_t)^T,    y_t = S_t^T C_t + D x_t
    O = W_o norm(y * silu(W_z H))

Convolutions are of four taps. All heads share B and C, the keys and queries (`k_proj`, `q_proj`); x are the values, z
the gate. The norm is an RMSNorm of each head, so that heads do not meet, with a scale that they share. The state has
twice as many rows as a head's x is wide (128 and 64 in the paper), and both are as wide as parameters match standard
attention's.
"""

from collections.abc import Mapping, Sequence
from math import log
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu, softplus

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear
from deconattn.layers.splits import Split, column, row
from deconattn.mixers.context import MixerContext
from deconattn.mixers.linear_recurrence import DecayingRecurrence
from deconattn.mixers.principles import Principles
from deconattn.mixers.recurrent import Span
from deconattn.mixers.registry import register
from deconattn.ops import reference
from deconattn.ops.gated_linear import gated_linear
from deconattn.ops.precision import at_least_fp32

TAPS = 4
DECAY_RATES, STEP_SIZES = (1.0, 16.0), (0.001, 0.1)
"""Ranges from which exp(A_log) and softplus(b) are drawn, the second on a logarithmic scale."""


@register("mamba2")
class Mamba2(DecayingRecurrence):
    """A_ij = C_i.B_j Delta_j prod_{j < t <= i} exp(-exp(A_log) Delta_t), then a gate and a norm."""

    principles = Principles(softmax_form=False)
    value_ratio = 0.5
    shared_keys = True
    scales_queries_keys = False
    taps = TAPS
    splits: ClassVar[Mapping[str, Split] | None] = {
        **dict.fromkeys(
            ("v_proj", "g_proj", "step_proj", "v_conv", "v_conv_bias", "A_log", "D", "step_bias"),
            column("num_attention_heads"),
        ),
        "o_proj": row("num_attention_heads"),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        heads = config.num_attention_heads
        self.step_proj = Linear(config.hidden_size, heads, bias=False)
        widths = [layer.out_features for layer in (self.q_proj, self.k_proj, self.v_proj)]
        bound = TAPS**-0.5  # PyTorch's own for a convolution
        self.q_conv, self.k_conv, self.v_conv = (
            nn.Parameter(torch.empty(width, TAPS).uniform_(-bound, bound)) for width in widths
        )
        self.q_conv_bias, self.k_conv_bias, self.v_conv_bias = (nn.Parameter(torch.zeros(width)) for width in widths)
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(*DECAY_RATES).log())
        steps = torch.empty(heads).uniform_(*map(log, STEP_SIZES)).exp()
        self.step_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))
        self.D = nn.Parameter(torch.ones(heads))

    def operands(self, hidden: Tensor) -> tuple[Tensor, ...]:
        own = self.step_proj(hidden), self.step_bias, self.A_log, self.D
        taps = self.q_conv, self.k_conv, self.v_conv, self.q_conv_bias, self.k_conv_bias, self.v_conv_bias
        return _Operands(*own, *taps, *super().operands(hidden))

    def mix(self, span: Span, *operands: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        given = _Operands(*operands)
        (queries, keys, values), convolved = self.convolved(
            span, self.convolved_inputs(*operands), given[4:7], given[7:10]
        )
        queries, keys = self.heads(queries, self.key_width), self.heads(keys, self.key_width)
        values = self.heads(values, self.value_width)
        added = values * _steps(given)
        log_decays = self.log_decays(*operands)
        mixed, state = gated_linear(
            queries, keys, added, log_decays, span.document_ids, *span.state[3:], real=span.real
        )
        mixed = mixed + at_least_fp32(given.D)[:, None, None] * values
        return self._normed(mixed, given.gate, given.o_norm), (*convolved, state)

    def log_decays(self, *operands: Tensor) -> Tensor:
        given = _Operands(*operands)
        return -at_least_fp32(given.A_log).exp()[:, None, None] * _steps(given)

    def convolved_inputs(self, *operands: Tensor) -> Sequence[Tensor]:
        return operands[10:13]

    def _normed(self, mixed: Tensor, gate: Tensor, norm: Tensor) -> Tensor:
        gated = mixed * silu(self.heads(gate, self.value_width))
        normed = rms_norm(gated, norm.shape, at_least_fp32(norm), self.config.rms_norm_eps)
        return self.joined(normed).to(gate.dtype)

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        given = _Operands(*self.operands(hidden))
        ids = hidden.new_zeros(hidden.shape[:2]) if context.documents is None else context.documents.ids

        def convolved(inputs: Tensor, taps: Tensor, bias: Tensor, width: int) -> Tensor:
            outputs = []
            for t in range(hidden.shape[1]):
                lags = range(min(t + 1, TAPS))
                seen = [inputs[:, t - m] * taps[:, -1 - m] * (ids[:, t - m] == ids[:, t])[:, None] for m in lags]
                outputs.append(silu(bias + torch.stack(seen).sum(dim=0)))
            return self.heads(torch.stack(outputs, dim=1), width)

        c = convolved(given.queries, given.q_conv, given.q_conv_bias, self.key_width)
        b = convolved(given.keys, given.k_conv, given.k_conv_bias, self.key_width)
        x = convolved(given.values, given.v_conv, given.v_conv_bias, self.value_width)
        delta = softplus(given.steps + given.step_bias).transpose(1, 2)[..., None]
        decay = -given.A_log.exp()[:, None, None] * delta
        y = reference.gated_linear(c, b, delta * x, decay, context.document_ids) + given.D[:, None, None] * x
        return self.o_proj(self._normed(y, given.gate, given.o_norm))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> None:
        return None

    @classmethod
    def convolved_channels(cls, config: ModelConfig, keys: int, values: int) -> int:
        return 2 * keys + config.num_attention_heads * values

    @classmethod
    def count(cls, config: ModelConfig, keys: int, values: int) -> int:
        channels = cls.convolved_channels(config, keys, values)
        return super().count(config, keys, values) + (TAPS + 1) * channels + 3 * config.num_attention_heads

    @classmethod
    def projection_weights(cls, config: ModelConfig, keys: int, values: int) -> int:
        return super().projection_weights(config, keys, values) + config.hidden_size * config.num_attention_heads

    @classmethod
    def state_size(cls, config: ModelConfig, keys: int, values: int) -> int:
        return super().state_size(config, keys, values) + (TAPS - 1) * cls.convolved_channels(config, keys, values)

    @classmethod
    def kept(cls, config: ModelConfig, keys: int, values: int) -> tuple[int, int]:
        a_head, shared = super().kept(config, keys, values)
        return a_head + 1, shared

    @classmethod
    def mixing_flops(cls, config: ModelConfig, keys: int, values: int) -> int:
        return super().mixing_flops(config, keys, values) + 2 * TAPS * cls.convolved_channels(config, keys, values)


def _steps(given: "_Operands") -> Tensor:
    """Return Delta, [R, heads, L, 1], at least fp32."""
    return softplus(at_least_fp32(given.steps) + at_least_fp32(given.step_bias)).transpose(1, 2)[..., None]


class _Operands(NamedTuple):
    steps: Tensor
    step_bias: Tensor
    A_log: Tensor
    D: Tensor
    q_conv: Tensor
    k_conv: Tensor
    v_conv: Tensor
    q_conv_bias: Tensor
    k_conv_bias: Tensor
    v_conv_bias: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    gate: Tensor
    o_norm: Tensor
