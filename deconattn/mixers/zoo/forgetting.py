"""The Forgetting Transformer, FoX (Lin et al. 2025, arXiv:2503.02130).

    f_t = sigma(w_f . h_t + b_f),  d_ij = sum_{l = j+1 .. i} log f_l
    A_i = softmax_{j <= i}(q_i . k_j / sqrt(d) + d_ij)

Every head has a forget gate f of its own, and nothing is rotated. The gate's parameters are in the place of the biases
of queries, keys and values, which there are none of; what it has beyond them is less than 0.1 % of a layer.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear
from deconattn.layers.shards import largest_part
from deconattn.layers.splits import Split, column
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload, attention_parameters
from deconattn.mixers.principles import Principles
from deconattn.mixers.projected import ProjectedMixer
from deconattn.mixers.registry import register
from deconattn.mixers.scored import ScoredDecoding, ScoredMixer
from deconattn.ops.precision import at_least_fp32


class ForgettingDecoding(ScoredDecoding):
    """Decoding that caches each token's log f beside its keys and values."""

    def cache_bytes(self, mixer: type[ScoredMixer], config: ModelConfig, work: Workload) -> int:
        gates = max(4, work.bytes_per_element) * work.tokens * config.num_attention_heads
        return super().cache_bytes(mixer, config, work) + gates


@register("forgetting")
class Forgetting(ScoredMixer):
    """A = softmax(Q K^T / sqrt(head_dim) + sums of log f)."""

    principles = Principles()
    rotates = False
    decoding = ForgettingDecoding()
    splits: ClassVar[Mapping[str, Split] | None] = {
        **(ProjectedMixer.splits or {}),
        "f_proj": column("num_attention_heads"),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(replace(config, attention_bias=False))
        self.config = config
        self.f_proj = Linear(config.hidden_size, config.num_attention_heads)

    def gates(self, hidden: Tensor) -> Tensor:
        # log sigma(x), of which PyTorch's own keeps more for the backward pass.
        return -softplus(-at_least_fp32(self.f_proj(hidden)), threshold=40).transpose(1, 2)

    def levels(self, gates: Tensor | None, positions: Tensor) -> Tensor:
        assert gates is not None
        # Differences of these sums count, and sums of a thousand tokens have lost what those need in fp32.
        return -gates.double().cumsum(dim=-1)

    def reference_bias(self, hidden: Tensor, context: MixerContext) -> Tensor:
        log_f = self.f_proj(hidden).sigmoid().log().transpose(1, 2)
        tokens = torch.arange(hidden.shape[1], device=hidden.device)
        rows = [torch.zeros_like(log_f)]
        for i in range(1, hidden.shape[1]):
            rows.append((rows[-1] + log_f[..., i, None]) * (tokens < i))
        return torch.stack(rows, dim=2)

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        gate = (config.hidden_size + 1) * config.num_attention_heads
        return attention_parameters(replace(config, attention_bias=False)) + gate

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        gate = 2 * work.tokens * config.hidden_size * config.num_attention_heads
        return super().forward_flops(config, work) + gate

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes of attention, and of a gate's logit in fp32 and an fp64 sum a head."""
        heads = largest_part(config.num_attention_heads, config.num_attention_heads, work.tp_size)
        return super().activation_bytes(config, work) + (4 + 8) * work.tokens * heads
