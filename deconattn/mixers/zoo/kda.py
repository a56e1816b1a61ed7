"""Kimi Delta Attention: the delta rule on a state each channel of which decays (Kimi Team 2025, arXiv:2510.26692).

    S_t = (I - beta_t k_t k_t^T) diag(alpha_t) S_{t-1} + beta_t k_t v_t^T,    o_t = S_t^T q_t / sqrt(d_k)
    alpha_t = exp(-exp(A_log) softplus(W_a2 W_a1 h_t + b)),    beta_t = sigmoid(W_beta h_t)
    q, k = l2norm(silu(conv(W H))),    v = silu(conv(W_v H)),    O = W_o (sigmoid(W_g2 W_g1 H) * norm(o))

alpha is a number a channel of a head's keys, A_log and beta a number a head. Convolutions are of four taps. The norm is
an RMSNorm of each head, with a scale that the heads share. W_a1 and W_g1 have as many outputs as a head's keys have
channels. Keys and values are as wide as parameters match standard attention's.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear, project
from deconattn.layers.splits import Split, column
from deconattn.mixers.delta import DELTA_SPLITS, DeltaMixer, decays, new_rates, new_step_biases
from deconattn.mixers.registry import register


@register("kda")
class KimiDeltaAttention(DeltaMixer):
    """Weights of either sign, which depend on all keys between two tokens, and decay by channel."""

    splits: ClassVar[Mapping[str, Split] | None] = DELTA_SPLITS | dict.fromkeys(
        ("a2_proj", "a_bias", "A_log", "g2_proj"), column("num_attention_heads")
    )

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        rank, heads = self.key_width, config.num_attention_heads
        self.a1_proj = Linear(config.hidden_size, rank, bias=False)
        self.a2_proj = Linear(rank, heads * self.key_width, bias=False)
        self.a_bias = new_step_biases(heads * self.key_width)
        self.A_log = new_rates(heads)
        self.g1_proj = Linear(config.hidden_size, rank, bias=False)
        self.g2_proj = Linear(rank, heads * self.value_width, bias=False)

    def own_operands(self, hidden: Tensor) -> tuple[Tensor, ...]:
        for_decay, for_gate = project(hidden, (self.a1_proj,), (self.g1_proj,))
        return self.g2_proj(for_gate), self.a2_proj(for_decay), self.a_bias, self.A_log

    def log_decay(self, *own: Tensor) -> Tensor:
        return decays(*own[1:])

    def gate(self, *own: Tensor) -> Tensor:
        return self.heads(own[0], self.value_width).sigmoid()

    @classmethod
    def count(cls, config: ModelConfig, keys: int, values: int) -> int:
        return super().count(config, keys, values) + config.num_attention_heads * (keys + 1)

    @classmethod
    def projection_weights(cls, config: ModelConfig, keys: int, values: int) -> int:
        low_rank = keys * (2 * config.hidden_size + config.num_attention_heads * (keys + values))
        return super().projection_weights(config, keys, values) + low_rank

    @classmethod
    def kept(cls, config: ModelConfig, keys: int, values: int) -> tuple[int, int]:
        a_head, shared = super().kept(config, keys, values)
        return a_head + keys + values, shared + 2 * keys
