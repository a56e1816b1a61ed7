"""Attention in a window, and to the first tokens (Beltagy et al. 2020, arXiv:2004.05150; Xiao et al. 2024,
arXiv:2309.17453).

    A_i = softmax_{j in V_i}(q_i . k_j / sqrt(d)),  V_i = {j <= i : j > i - W or j <= S}

W, the window, is an eighth of `max_position_embeddings`, and at least 16; S = 4 sinks are each document's first tokens.
Positions are those in the document, for sinks too. Parameters are standard attention's own.
"""

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.principles import Principles
from deconattn.mixers.registry import register
from deconattn.mixers.scored import ScoredMixer

SINKS = 4


def _window(config: ModelConfig) -> int:
    return max(16, config.max_position_embeddings // 8)


@register("sliding-window")
class SlidingWindow(ScoredMixer):
    """A = softmax(Q K^T / sqrt(head_dim)) over the window and the sinks."""

    principles = Principles()
    sinks = SINKS

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.window = _window(config)

    def reference_bias(self, hidden: Tensor, context: MixerContext) -> Tensor:
        places = torch.arange(hidden.shape[1], device=hidden.device)
        near = places > places[:, None] - self.window
        first = self.positions(hidden, context)[:, None, None] < self.sinks
        return hidden.new_zeros(()).where(near | first, -torch.inf)

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        # A query sees the whole window and the sinks but near the start, as a causal map's sees half of the length.
        seen = min(work.length / 2, _window(config) + SINKS)
        return cls.projection_flops(config, work.tokens) + int(4 * work.tokens * seen * config.query_size)
