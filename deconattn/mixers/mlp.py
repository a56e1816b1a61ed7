"""MLP: no token mixing; a SwiGLU block with attention's parameter count in its place (paper, section 3.1)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear, project
from deconattn.layers.shards import largest_part
from deconattn.layers.splits import Split, column, row
from deconattn.mixers.base import Mixer
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload, attention_parameters
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.exchange import NoExchange
from deconattn.mixers.principles import Principles
from deconattn.mixers.registry import register
from deconattn.ops.swiglu import swiglu


class TokenDecoding(Decoding["MLP"]):
    """Decoding without a cache: no tokens are mixed."""

    def extend(self, mixer: "MLP", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        return mixer.swiglu(hidden)

    def decode_flops(self, mixer: type["MLP"], config: ModelConfig, work: Workload) -> int:
        return mixer.forward_flops(config, replace(work, length=1))

    def cache_bytes(self, mixer: type["MLP"], config: ModelConfig, work: Workload) -> int:
        return 0


@register("mlp")
class MLP(Mixer):
    """O = Down(SiLU(Gate(H)) * Up(H)), no biases."""

    principles = Principles(mixes_tokens=False, position_dependent=False)
    decoding = TokenDecoding()
    context_exchange = NoExchange()
    splits: ClassVar[Mapping[str, Split] | None] = {"gate_proj": column(), "up_proj": column(), "down_proj": row()}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = matched_width(config)
        self.gate_proj = Linear(config.hidden_size, width, bias=False)
        self.up_proj = Linear(config.hidden_size, width, bias=False)
        self.down_proj = Linear(width, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        return self.swiglu(hidden)

    def swiglu(self, hidden: Tensor) -> Tensor:
        """Apply the SwiGLU block to each token: [.., hidden_size] -> [.., hidden_size]."""
        return self.down_proj(swiglu(*project(hidden, (self.gate_proj, self.up_proj))))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> None:
        return None

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        return 3 * config.hidden_size * matched_width(config)

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        return 2 * work.tokens * cls.num_parameters(config)

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        width = matched_width(config)
        local = largest_part(width, width, work.tp_size)
        return work.bytes_per_element * work.tokens * (config.hidden_size + 3 * local)


def matched_width(config: ModelConfig) -> int:
    """Return the block's width w: 3 d w parameters against standard attention's 4 d^2 and biases.

    Rounded to the largest power of two up to 128 (hardware likes multiples) that keeps the count within
    0.1 % of a layer's.
    """
    target = attention_parameters(config)
    layer = target + 3 * config.hidden_size * config.intermediate_size
    exact = target / (3 * config.hidden_size)
    for multiple in (128, 64, 32, 16, 8, 4, 2):
        width = multiple * round(exact / multiple)
        if width and abs(3 * config.hidden_size * width - target) <= layer / 1000:
            return width
    return max(1, round(exact))
