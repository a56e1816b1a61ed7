"""A gated short convolution, each channel by itself: BaseConv (Arora et al. 2023, arXiv:2312.04927) of four taps.

    o_i = W_o (W_g h_i * sum_{m < 4} c_m * W_v h_{i-m})

`*` is by channel. The long filter of the paper is replaced by four taps, as in what stands beside attention in hybrids.
The gate scales what a token has mixed; how tokens are mixed is the same in every sequence. The width between the
projections is what matches standard attention's parameters.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear, project
from deconattn.layers.shards import largest_part
from deconattn.layers.splits import Split, column, row
from deconattn.mixers.base import Mixer
from deconattn.mixers.cache import LayerCache, Step, SumCache
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.exchange import ContextExchange, SharedContext
from deconattn.mixers.matching import matched_width
from deconattn.mixers.principles import Principles
from deconattn.mixers.registry import register
from deconattn.mixers.state_exchange import last_inputs_before
from deconattn.ops.precision import at_least_fp32
from deconattn.ops.recompute import recomputed
from deconattn.ops.short_convolution import last_inputs, new_taps, short_convolution

TAPS = 4


class LastTokensDecoding(Decoding["Conv"]):
    """Decoding that caches the values of the last tokens that the taps reach."""

    def new_cache(self) -> LayerCache:
        return SumCache()

    def extend(self, mixer: "Conv", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        gates, values = mixer.gates_values(hidden)
        before = values.new_zeros(len(values), TAPS - 1, values.shape[2]) if step.first else cache.tensors["values"]
        mixed = _gated(gates, values, mixer.conv_weight, None, before)
        cache.keep("values", last_inputs(values, before, step.real), step)
        return mixer.o_proj(mixed)

    def decode_flops(self, mixer: type["Conv"], config: ModelConfig, work: Workload) -> int:
        return mixer.forward_flops(config, Workload(work.rows, 1))

    def cache_bytes(self, mixer: type["Conv"], config: ModelConfig, work: Workload) -> int:
        return work.bytes_per_element * work.rows * (TAPS - 1) * _width(config)


def _width(config: ModelConfig) -> int:
    return matched_width(config, 3, 2 * config.attention_bias + TAPS)


def _gated(
    gates: Tensor, values: Tensor, weight: Tensor, position_ids: Tensor | None, before: Tensor | None = None
) -> Tensor:
    before = None if before is None else at_least_fp32(before)
    mixed = short_convolution(at_least_fp32(values), at_least_fp32(weight), position_ids, before)
    return (at_least_fp32(gates) * mixed).to(values.dtype)


class LastTokensExchange(ContextExchange["Conv"]):
    """Exchange of the values of each part's last tokens; of whole rows where a part has fewer than the taps reach."""

    def mix(self, mixer: "Conv", hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        if hidden.shape[1] < TAPS - 1:
            return super().mix(mixer, hidden, static, context)
        gates, values = mixer.gates_values(hidden)
        (before,) = last_inputs_before([values], TAPS - 1, context)
        positions = None if context.documents is None else context.documents.position_ids
        return mixer.o_proj(recomputed(_gated, gates, values, mixer.conv_weight, positions, before))

    def gathers(self, mixer: type["Conv"], config: ModelConfig, work: Workload, cp_size: int) -> bool:
        return work.length // cp_size < TAPS - 1

    def sent_elements(self, mixer: type["Conv"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        if self.gathers(mixer, config, work, cp_size):
            return super().sent_elements(mixer, config, work, cp_size)
        return (cp_size - 1) * work.rows * (TAPS - 1) * largest_part(_width(config), _width(config), work.tp_size)


@register("conv")
class Conv(Mixer):
    """A_ij = c_{i-j} of each channel where i - j < 4, else 0; a gate of the token itself on what it gives."""

    principles = Principles(sequence_dependent=False, softmax_form=False)
    decoding = LastTokensDecoding()
    context_exchange = LastTokensExchange()
    splits: ClassVar[Mapping[str, Split] | None] = {
        "g_proj": column(),
        "v_proj": column(),
        "conv_weight": column(),
        "o_proj": row(),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = _width(config)
        self.g_proj = Linear(config.hidden_size, width, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, width, bias=config.attention_bias)
        self.conv_weight = new_taps(width, TAPS)
        self.o_proj = Linear(width, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        gates, values = self.gates_values(hidden)
        positions = None if context.documents is None else context.documents.position_ids
        return self.o_proj(recomputed(_gated, gates, values, self.conv_weight, positions))

    def gates_values(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Project to gates and values: [R, L, d] -> [R, L, width] each."""
        return project(hidden, (self.g_proj, self.v_proj))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> None:
        return None  # weights of either sign

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        gates, values = self.gates_values(hidden)
        length = hidden.shape[1]
        distance = torch.arange(length)[:, None] - torch.arange(length)
        visible = ((distance >= 0) & (distance < TAPS))[None]
        if context.documents is not None:
            ids = context.documents.ids
            visible = visible & (ids[:, :, None] == ids[:, None, :])
        taps = self.conv_weight[:, (TAPS - 1 - distance).clamp(0, TAPS - 1)]
        return self.o_proj(
            gates * torch.einsum("nij,rij,rjn->rin", taps, visible.to(taps).expand(len(hidden), -1, -1), values)
        )

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        return (3 * config.hidden_size + 2 * config.attention_bias + TAPS) * _width(config)

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        return 2 * work.tokens * (3 * config.hidden_size + TAPS + 1) * _width(config)

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes of input, gates, values and output."""
        local = largest_part(_width(config), _width(config), work.tp_size)
        return work.bytes_per_element * work.tokens * (config.hidden_size + 3 * local)
