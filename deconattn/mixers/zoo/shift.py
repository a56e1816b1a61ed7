"""The previous token alone: the least that mixes tokens (the token shift of Peng et al. 2023, arXiv:2305.13048).

    o_i = W_o W_v h_{i-1},  o_1 = 0

In RWKV the shifted token is mixed with the token itself; here it stands alone. What attention spends on queries and
keys is spent on a width between the two projections, so that parameters are as many.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear
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
from deconattn.ops.short_convolution import last_inputs


class LastTokenDecoding(Decoding["Shift"]):
    """Decoding that caches the last token's values."""

    def new_cache(self) -> LayerCache:
        return SumCache()

    def extend(self, mixer: "Shift", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        values = mixer.v_proj(hidden)
        last = torch.zeros_like(values[:, :1]) if step.first else cache.tensors["last"]
        shifted = torch.cat([last, values[:, :-1]], dim=1)
        cache.keep("last", last_inputs(values, last, step.real), step)
        return mixer.o_proj(shifted)

    def decode_flops(self, mixer: type["Shift"], config: ModelConfig, work: Workload) -> int:
        return mixer.forward_flops(config, Workload(work.rows, 1))

    def cache_bytes(self, mixer: type["Shift"], config: ModelConfig, work: Workload) -> int:
        return work.bytes_per_element * work.rows * _width(config)


def _width(config: ModelConfig) -> int:
    return matched_width(config, 2, config.attention_bias)


class LastTokenExchange(ContextExchange["Shift"]):
    """Exchange of the values of each part's last token."""

    def mix(self, mixer: "Shift", hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        values = mixer.v_proj(hidden)
        (last,) = last_inputs_before([values], 1, context)
        return mixer.o_proj(_first_dropped(torch.cat([last.to(values.dtype), values[:, :-1]], dim=1), context))

    def sent_elements(self, mixer: type["Shift"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        return (cp_size - 1) * work.rows * largest_part(_width(config), _width(config), work.tp_size)


def _first_dropped(shifted: Tensor, context: MixerContext) -> Tensor:
    """Zeros in the place of what a document's first token gets."""
    if context.documents is None:
        return shifted
    return shifted.masked_fill((context.documents.position_ids == 0)[..., None], 0)


@register("shift")
class Shift(Mixer):
    """A_ij = 1 where j = i - 1, else 0."""

    principles = Principles(sequence_dependent=False, softmax_form=False)
    decoding = LastTokenDecoding()
    context_exchange = LastTokenExchange()
    splits: ClassVar[Mapping[str, Split] | None] = {"v_proj": column(), "o_proj": row()}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.v_proj = Linear(config.hidden_size, _width(config), bias=config.attention_bias)
        self.o_proj = Linear(_width(config), config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        return self.o_proj(_first_dropped(pad(self.v_proj(hidden)[:, :-1], (0, 0, 1, 0)), context))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> None:
        return None  # a document's first row sums to zero

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        previous = hidden.new_ones(hidden.shape[1] - 1).diag(-1) if hidden.shape[1] > 1 else hidden.new_zeros(1, 1)
        if context.documents is not None:
            ids = context.documents.ids
            previous = previous * (ids[:, :, None] == ids[:, None, :])
        return self.o_proj(previous @ self.v_proj(hidden))

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        return (2 * config.hidden_size + config.attention_bias) * _width(config)

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        return 4 * work.tokens * config.hidden_size * _width(config)

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        local = largest_part(_width(config), _width(config), work.tp_size)
        return work.bytes_per_element * work.tokens * (config.hidden_size + local)
