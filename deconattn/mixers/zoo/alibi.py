"""Attention with linear biases, ALiBi (Press et al. 2022, arXiv:2108.12409).

    A_i = softmax_{j <= i}(q_i . k_j / sqrt(d) - m_h (i - j)),  m_h = 2^(-8 h / H), h = 1 .. H

A head's slope m_h is fixed; where the number of heads H is no power of two, slopes of the next smaller one come first,
then every other of twice as many. Nothing is rotated. Parameters are standard attention's own.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.shards import largest_part
from deconattn.layers.splits import Split, column
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.principles import Principles
from deconattn.mixers.projected import ProjectedMixer
from deconattn.mixers.registry import register
from deconattn.mixers.scored import ScoredMixer


@register("alibi")
class ALiBi(ScoredMixer):
    """A = softmax(Q K^T / sqrt(head_dim) - slope * distance)."""

    principles = Principles()
    rotates = False
    splits: ClassVar[Mapping[str, Split] | None] = {
        **(ProjectedMixer.splits or {}),
        "slopes": column("num_attention_heads"),
    }
    slopes: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.register_buffer("slopes", torch.tensor(_slopes(config.num_attention_heads)))

    def levels(self, gates: Tensor | None, positions: Tensor) -> Tensor:
        # -m (i - j) = m j - m i, in fp64 for long rows.
        return self.slopes.double()[None, :, None] * positions

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes of attention, and of an fp64 level a head and position."""
        heads = largest_part(config.num_attention_heads, config.num_attention_heads, work.tp_size)
        return super().activation_bytes(config, work) + 8 * work.length * heads

    def reference_bias(self, hidden: Tensor, context: MixerContext) -> Tensor:
        places = torch.arange(hidden.shape[1], device=hidden.device)
        return -self.slopes[:, None, None] * (places[:, None] - places)


def _slopes(heads: int) -> list[float]:
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    return slopes + [2 ** (-4 * h / power) for h in range(1, 2 * (heads - power) + 1, 2)]
