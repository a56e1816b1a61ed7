"""Mixers with the delta rule: short convolutions, keys and queries of length one, and a norm of what is read."""

from collections.abc import Mapping, Sequence
from math import log
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm, silu, softplus

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear
from deconattn.layers.splits import Split, column
from deconattn.mixers.context import MixerContext
from deconattn.mixers.linear_recurrence import LinearRecurrence
from deconattn.mixers.principles import Principles
from deconattn.mixers.recurrent import UNGATED_SPLITS, Span
from deconattn.ops import reference
from deconattn.ops.delta_rule import delta_rule
from deconattn.ops.precision import at_least_fp32
from deconattn.ops.short_convolution import new_taps

TAPS = 4
EPSILON = 1e-6
"""What is added to the square of the length of queries and keys."""
DECAY_RATES, STEP_SIZES = (1.0, 16.0), (0.001, 0.1)
"""Ranges from which exp(A_log) and softplus(bias) are drawn, the second on a logarithmic scale, as in Mamba-2."""
DELTA_SPLITS = UNGATED_SPLITS | dict.fromkeys(("b_proj", "q_conv", "k_conv", "v_conv"), column("num_attention_heads"))


class DeltaMixer(LinearRecurrence):
    """q, k = l2norm(silu(conv(W H))), v = silu(conv(W_v H)), b = sigmoid(W_b H), o = norm(S^T q) / sqrt(d_k).

    A subclass gives the decay and the output gate, if any, and what these read: :meth:`own_operands`, :meth:`log_decay`
    and :meth:`gate`, and counts them.
    """

    principles = Principles(softmax_form=False)
    gated = False
    scales_queries_keys = False
    transition = "matrix"
    taps = TAPS
    splits: ClassVar[Mapping[str, Split] | None] = DELTA_SPLITS

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.b_proj = Linear(config.hidden_size, config.num_attention_heads, bias=False)
        keys, values = self.q_proj.out_features, self.v_proj.out_features
        self.q_conv, self.k_conv, self.v_conv = new_taps(keys, TAPS), new_taps(keys, TAPS), new_taps(values, TAPS)
        self.o_norm = nn.Parameter(torch.ones(self.value_width))

    def operands(self, hidden: Tensor) -> tuple[Tensor, ...]:
        taps = self.q_conv, self.k_conv, self.v_conv
        return *super().operands(hidden), self.b_proj(hidden), *taps, self.o_norm, *self.own_operands(hidden)

    def own_operands(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return what :meth:`log_decay` and :meth:`gate` read: projections of [R, L, d], parameters."""
        return ()

    def log_decay(self, *own: Tensor) -> Tensor | None:
        """Return log decays, [R, heads, L, 1 or key_width], at least fp32; None: there are none."""
        return None

    def gate(self, *own: Tensor) -> Tensor | None:
        """Return what the normed output is multiplied with, [R, heads, L, value_width], at least fp32; or None."""
        return None

    def mix(self, span: Span, *operands: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        given, own = _Operands(*operands[: len(_Operands._fields)]), operands[len(_Operands._fields) :]
        mixed, state, convolved = self._read(span, operands)
        return self._normed(mixed, given.o_norm, own).to(given.values.dtype), (*convolved, state)

    def left(self, span: Span, *operands: Tensor) -> tuple[Tensor, Tensor | None]:
        # Of a state beside S, whose values are zeros, there is left what of any other: of I the product of M_t.
        _, both, _ = self._read(span, operands, beside=self.key_width)
        state, transition = both.split([self.value_width, self.key_width], dim=-1)
        return state, transition

    def _read(
        self, span: Span, operands: tuple[Tensor, ...], beside: int = 0
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return what is read of the state, the last state, and those of the convolutions.

        Args:
            beside: columns after the values', zeros to begin with; there S begins as I, and `span` has none.
        """
        given, own = _Operands(*operands[: len(_Operands._fields)]), operands[len(_Operands._fields) :]
        taps = given.q_conv, given.k_conv, given.v_conv
        (queries, keys, values), convolved = self.convolved(span, self.convolved_inputs(*operands), taps)
        values, before = self.heads(values, self.value_width), span.state[3:]
        if beside:
            values = pad(values, (0, beside))
            identity = torch.eye(beside, dtype=values.dtype, device=values.device)
            before = (pad(identity, (self.value_width, 0)).expand(*values.shape[:2], -1, -1),)
        mixed, state = delta_rule(
            _unit(self.heads(queries, self.key_width)) * self.key_width**-0.5,
            _unit(self.heads(keys, self.key_width)),
            values,
            at_least_fp32(given.strengths).sigmoid().transpose(1, 2),
            self.log_decay(*own),
            span.document_ids,
            *before,
            real=span.real,
        )
        return mixed, state, convolved

    def convolved_inputs(self, *operands: Tensor) -> Sequence[Tensor]:
        return operands[:3]

    def _normed(self, mixed: Tensor, norm: Tensor, own: tuple[Tensor, ...]) -> Tensor:
        mixed = rms_norm(mixed, norm.shape, at_least_fp32(norm), self.config.rms_norm_eps)
        gate = self.gate(*own)
        return self.joined(mixed if gate is None else mixed * gate)

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        operands = self.operands(hidden)
        given, own = _Operands(*operands[: len(_Operands._fields)]), operands[len(_Operands._fields) :]
        ids = hidden.new_zeros(hidden.shape[:2]) if context.documents is None else context.documents.ids

        def convolved(inputs: Tensor, taps: Tensor, width: int) -> Tensor:
            outputs = []
            for t in range(hidden.shape[1]):
                lags = range(min(t + 1, TAPS))
                seen = [inputs[:, t - m] * taps[:, -1 - m] * (ids[:, t - m] == ids[:, t])[:, None] for m in lags]
                outputs.append(silu(torch.stack(seen).sum(dim=0)))
            return self.heads(torch.stack(outputs, dim=1), width)

        q = convolved(given.queries, given.q_conv, self.key_width)
        k = convolved(given.keys, given.k_conv, self.key_width)
        v = convolved(given.values, given.v_conv, self.value_width)
        q, k = (one / (one.square().sum(dim=-1, keepdim=True) + EPSILON).sqrt() for one in (q, k))
        beta = given.strengths.sigmoid().transpose(1, 2)
        mixed = reference.delta_rule(q / self.key_width**0.5, k, v, beta, self.log_decay(*own), context.document_ids)
        return self.o_proj(self._normed(mixed, given.o_norm, own))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> None:
        return None

    @classmethod
    def convolved_channels(cls, config: ModelConfig, keys: int, values: int) -> int:
        return config.num_attention_heads * (2 * keys + values)

    @classmethod
    def count(cls, config: ModelConfig, keys: int, values: int) -> int:
        return super().count(config, keys, values) + TAPS * cls.convolved_channels(config, keys, values) + values

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
        # The state answers the key, is written and read; and the convolutions.
        taps = 2 * TAPS * cls.convolved_channels(config, keys, values)
        return 6 * config.num_attention_heads * keys * values + taps


def new_rates(heads: int) -> nn.Parameter:
    """Return the logarithms of decay rates, [heads]."""
    return nn.Parameter(torch.empty(heads).uniform_(*DECAY_RATES).log())


def new_step_biases(channels: int) -> nn.Parameter:
    """Return biases of the sizes of steps before the softplus, [channels]."""
    steps = torch.empty(channels).uniform_(*map(log, STEP_SIZES)).exp()
    return nn.Parameter(steps + torch.log(-torch.expm1(-steps)))


def decays(steps: Tensor, biases: Tensor, rates: Tensor) -> Tensor:
    """Return log decays -exp(A_log) softplus(steps + biases), at least fp32.

    Args:
        steps: [R, L, heads * n].
        biases: [heads * n].
        rates: [heads], A_log.

    Returns:
        [R, heads, L, n].
    """
    sizes = softplus(at_least_fp32(steps) + at_least_fp32(biases)).unflatten(-1, (len(rates), -1)).transpose(1, 2)
    return -at_least_fp32(rates).exp()[:, None, None] * sizes


def _unit(vectors: Tensor) -> Tensor:
    return vectors * (vectors.square().sum(dim=-1, keepdim=True) + EPSILON).rsqrt()


class _Operands(NamedTuple):
    queries: Tensor
    keys: Tensor
    values: Tensor
    strengths: Tensor
    q_conv: Tensor
    k_conv: Tensor
    v_conv: Tensor
    o_norm: Tensor
