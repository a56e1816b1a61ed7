"""Sigmoid attention (Ramapuram et al. 2024, arXiv:2409.04431).

    o_i = W_o sum_{j <= i} sigma(q_i . k_j / sqrt(d) + b_i) v_j,  b_i = -log(i), i = 1, 2, ..

The paper's bias is -log n of the sequence's length n; here n is how many tokens the query sees, so that what a token
gets depends on nothing after it. No weight depends on other weights, and rows sum to anything. Parameters are standard
attention's own.
"""

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.principles import Principles
from deconattn.mixers.registry import register
from deconattn.mixers.scored import ScoredMixer


@register("sigmoid")
class Sigmoid(ScoredMixer):
    """Weights are sigma(s_ij - log i)."""

    principles = Principles(softmax_form=False)
    sigmoid = True

    def offsets(self, positions: Tensor) -> Tensor:
        return -(positions.double() + 1).log()

    def reference_bias(self, hidden: Tensor, context: MixerContext) -> Tensor:
        return -(self.positions(hidden, context) + 1).to(hidden).log()[:, None, :, None]

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes without log-sum-exps, but with a number a position."""
        queries, _ = cls.rank_widths(config, work.tp_size)
        sums = 4 * work.tokens * queries // config.head_dim
        return super().activation_bytes(config, work) - sums + 8 * work.length
