"""Gated DeltaNet: the delta rule on a state that decays (Yang et al. 2025, arXiv:2412.06464).

    S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,    o_t = S_t q_t / sqrt(d_k)
    alpha_t = exp(-exp(A_log) softplus(W_alpha h_t + b)),    beta_t = sigmoid(W_beta h_t)
    q, k = l2norm(silu(conv(W H))),    v = silu(conv(W_v H)),    O = W_o (silu(W_g H) * norm(o))

alpha and beta are a number a head. Convolutions are of four taps. The norm is an RMSNorm of each head, with a scale
that the heads share. Values are twice as wide as keys, as in the paper, and both as wide as parameters match standard
attention's.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import silu

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear, project
from deconattn.layers.splits import Split, column
from deconattn.mixers.delta import DELTA_SPLITS, DeltaMixer, decays, new_rates, new_step_biases
from deconattn.mixers.registry import register


@register("gated-deltanet")
class GatedDeltaNet(DeltaMixer):
    """Weights of either sign, which depend on all keys between two tokens, and decay."""

    value_ratio = 2.0
    splits: ClassVar[Mapping[str, Split] | None] = DELTA_SPLITS | dict.fromkeys(
        ("g_proj", "a_proj", "a_bias", "A_log"), column("num_attention_heads")
    )

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        heads = config.num_attention_heads
        self.g_proj = Linear(config.hidden_size, heads * self.value_width, bias=False)
        self.a_proj = Linear(config.hidden_size, heads, bias=False)
        self.a_bias = new_step_biases(heads)
        self.A_log = new_rates(heads)

    def own_operands(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return *project(hidden, (self.g_proj,), (self.a_proj,)), self.a_bias, self.A_log

    def log_decay(self, *own: Tensor) -> Tensor:
        return decays(*own[1:])

    def gate(self, *own: Tensor) -> Tensor:
        return silu(self.heads(own[0], self.value_width))

    @classmethod
    def count(cls, config: ModelConfig, keys: int, values: int) -> int:
        return super().count(config, keys, values) + 2 * config.num_attention_heads

    @classmethod
    def projection_weights(cls, config: ModelConfig, keys: int, values: int) -> int:
        own = config.hidden_size * config.num_attention_heads * (values + 1)
        return super().projection_weights(config, keys, values) + own

    @classmethod
    def kept(cls, config: ModelConfig, keys: int, values: int) -> tuple[int, int]:
        a_head, shared = super().kept(config, keys, values)
        return a_head + values + 1, shared
