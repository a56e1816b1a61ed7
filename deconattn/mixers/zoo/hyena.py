"""Hyena of order two: a long convolution with an implicit filter, gated by data (Poli et al. 2023, arXiv:2302.10866).

    v, x1, x2 = short(W_v h), short(W_1 h), short(W_2 h)        causal convolutions of three taps
    o_i = W_o (x2_i * (sum_{j <= i} f(i - j) * u_j + b * u_i)),  u = x1 * v
    f(t) = exp(-a t / T) * FFN(1, t / T, cos, sin(2 pi k t / T)), FFN with sines as activations

`*` is by channel, T the longest sequence that the model is made for. At first a channel's filter has a norm of about
one, whatever T. The width between the projections is what matches standard attention's parameters.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear, project
from deconattn.layers.shards import largest_part
from deconattn.layers.splits import Split, column, row
from deconattn.mixers.base import Mixer
from deconattn.mixers.cache import LayerCache, Step, SumCache, new_tokens_of
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.matching import matched_width
from deconattn.mixers.principles import Principles
from deconattn.mixers.registry import register
from deconattn.ops.long_convolution import long_convolution
from deconattn.ops.precision import at_least_fp32, outside_autocast
from deconattn.ops.recompute import recomputed
from deconattn.ops.short_convolution import last_inputs, new_taps, short_convolution

TAPS = 3
WAVES = 8
FEATURES = 2 + 2 * WAVES
FREQUENCY = 10.0
SLOWEST, FASTEST = math.log(100) / 1.5, math.log(100) / 0.3
"""Decays of the slowest and the fastest channel: to a hundredth after 1.5 and 0.3 of T."""


class LongConvolutionDecoding(Decoding["Hyena"]):
    """Decoding that caches what the filter is applied to, and the last inputs of the short convolutions."""

    def new_cache(self) -> LayerCache:
        return SumCache()

    def extend(self, mixer: "Hyena", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        projected = torch.cat(mixer.projections(hidden), dim=2)
        before = projected.new_zeros(len(hidden), TAPS - 1, projected.shape[2])
        if not step.first:
            before = cache.tensors["projected"]
        gates, inputs = _gates_inputs(projected, mixer.short_weights(), None, before)
        cache.keep("projected", last_inputs(projected, before, step.real), step)
        held = cache.append("inputs", inputs[:, None], step)[:, 0]
        longest = mixer.config.max_position_embeddings
        taps = _taps(*mixer.filter_parameters(), length=step.window, longest=longest)
        if hidden.shape[1] > 1:
            mixed = new_tokens_of(long_convolution(held, taps), step, hidden.shape[1])
        else:
            slots = torch.arange(step.window, device=held.device)
            lags = (step.past if step.positions is None else step.positions) - slots
            mixed = (taps[lags.clamp(min=0)] * (held * (lags >= 0).view(-1, step.window, 1))).sum(dim=1, keepdim=True)
        return mixer.o_proj((gates * mixed).to(hidden.dtype))

    def decode_flops(self, mixer: type["Hyena"], config: ModelConfig, work: Workload) -> int:
        tokens = work.rows * mixer.token_flops(config) + 2 * work.tokens * _width(config)
        return tokens + work.length * mixer.filter_flops(config)

    def cache_bytes(self, mixer: type["Hyena"], config: ModelConfig, work: Workload) -> int:
        short = 3 * (TAPS - 1) * work.bytes_per_element
        return work.rows * _width(config) * (work.length * max(4, work.bytes_per_element) + short)


def _filter_width(config: ModelConfig) -> int:
    """Return the width of the filter's network, the paper's 64 where heads are not narrower."""
    return min(64, config.head_dim)


def _a_channel(config: ModelConfig) -> int:
    """Return the parameters of a channel, those of the four projections apart."""
    return 3 * config.attention_bias + 3 * TAPS + _filter_width(config) + 1


def _network_parameters(config: ModelConfig) -> int:
    width = _filter_width(config)
    return width * (FEATURES + 1 + width + 1)


def _width(config: ModelConfig) -> int:
    return matched_width(config, 4, _a_channel(config), _network_parameters(config))


def _gates_inputs(
    projected: Tensor, weights: Tensor, position_ids: Tensor | None, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return x2 and x1 * v, [R, L, width] each, at least fp32."""
    before = None if before is None else at_least_fp32(before)
    short = short_convolution(at_least_fp32(projected), at_least_fp32(weights), position_ids, before)
    values, inner, outer = short.chunk(3, dim=2)
    return outer, inner * values


@outside_autocast()
def _taps(
    first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor, last: Tensor,
    skip: Tensor, decay: Tensor, length: int, longest: int,
) -> Tensor:  # fmt: skip
    """Return f(0) + b, f(1), .., [length, width], at least fp32."""
    weights = first, first_bias, second, second_bias, last, skip, decay
    first, first_bias, second, second_bias, last, skip, decay = map(at_least_fp32, weights)
    times = torch.arange(length, device=first.device, dtype=first.dtype)[:, None] / longest
    angles = 2 * math.pi * times * torch.arange(1, WAVES + 1, device=first.device)
    features = torch.cat([torch.ones_like(times), times, angles.cos(), angles.sin()], dim=1)
    hidden = torch.sin(FREQUENCY * linear(features, first, first_bias))
    hidden = torch.sin(FREQUENCY * linear(hidden, second, second_bias))
    taps = linear(hidden, last) * (-decay * times).exp()
    return taps + skip * (times == 0)


def _mixed(
    longest: int, values: Tensor, inner: Tensor, outer: Tensor, weights: Tensor,
    document_ids: Tensor | None, position_ids: Tensor | None, *filter_parameters: Tensor,
) -> Tensor:  # fmt: skip
    gates, inputs = _gates_inputs(torch.cat([values, inner, outer], dim=2), weights, position_ids)
    mixed = long_convolution(inputs, _taps(*filter_parameters, length=values.shape[1], longest=longest), document_ids)
    return (gates * mixed).to(values.dtype)


@register("hyena")
class Hyena(Mixer):
    """A_ij = x2_i f(i - j) x1_j of each channel."""

    principles = Principles(softmax_form=False)
    decoding = LongConvolutionDecoding()
    decay: Tensor
    splits: ClassVar[Mapping[str, Split] | None] = {
        **dict.fromkeys(("v_proj", "x1_proj", "x2_proj", "v_conv", "x1_conv", "x2_conv"), column()),
        **dict.fromkeys(("filter_out", "skip", "decay"), column()),
        "o_proj": row(),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width, inner = _width(config), _filter_width(config)
        self.v_proj = Linear(config.hidden_size, width, bias=config.attention_bias)
        self.x1_proj = Linear(config.hidden_size, width, bias=config.attention_bias)
        self.x2_proj = Linear(config.hidden_size, width, bias=config.attention_bias)
        self.v_conv, self.x1_conv, self.x2_conv = new_taps(width, TAPS), new_taps(width, TAPS), new_taps(width, TAPS)
        self.o_proj = Linear(width, config.hidden_size, bias=False)
        self.filter_in = nn.Parameter(torch.randn(inner, FEATURES) * FEATURES**-0.5)
        self.filter_in_bias = nn.Parameter(torch.zeros(inner))
        self.filter_mid = nn.Parameter(torch.randn(inner, inner) * inner**-0.5)
        self.filter_mid_bias = nn.Parameter(torch.zeros(inner))
        # Not by linspace: transformers makes a tensor on the CPU of it while a model has no memory yet.
        decay = SLOWEST + (FASTEST - SLOWEST) / width * torch.arange(1, width + 1)
        scale = (4 * decay / (inner * config.max_position_embeddings)).sqrt()
        self.filter_out = nn.Parameter(torch.randn(width, inner) * scale[:, None])
        self.skip = nn.Parameter(torch.ones(width))
        self.register_buffer("decay", decay)

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        documents = context.documents
        inputs = (
            *self.projections(hidden),
            self.short_weights(),
            None if documents is None else documents.ids,
            None if documents is None else documents.position_ids,
            *self.filter_parameters(),
        )
        return self.o_proj(recomputed(partial(_mixed, self.config.max_position_embeddings), *inputs))

    def projections(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Project to v, x1 and x2, before their short convolutions: [R, L, d] -> [R, L, width] each."""
        return project(hidden, (self.v_proj, self.x1_proj, self.x2_proj))

    def short_weights(self) -> Tensor:
        """Return the taps of the three short convolutions, [3 width, TAPS]."""
        return torch.cat([self.v_conv, self.x1_conv, self.x2_conv])

    def filter_parameters(self) -> tuple[Tensor, ...]:
        """Return what the filter is computed from."""
        first = self.filter_in, self.filter_in_bias, self.filter_mid, self.filter_mid_bias
        return *first, self.filter_out, self.skip, self.decay

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> None:
        return None  # weights of either sign

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        length = hidden.shape[1]
        distance = torch.arange(length)[:, None] - torch.arange(length)
        visible = (distance >= 0).expand(len(hidden), -1, -1)
        if context.documents is not None:
            ids = context.documents.ids
            visible = visible & (ids[:, :, None] == ids[:, None, :])

        def mixed(taps: Tensor, inputs: Tensor) -> Tensor:
            return torch.einsum("ijn,rij,rjn->rin", taps, visible.to(inputs), inputs)

        def short(inputs: Tensor, weight: Tensor) -> Tensor:
            taps = weight.T[(TAPS - 1 - distance).clamp(0, TAPS - 1)]
            return mixed(taps * (distance < TAPS)[..., None], inputs)

        convolutions = self.v_conv, self.x1_conv, self.x2_conv
        v, x1, x2 = (short(one, weight) for one, weight in zip(self.projections(hidden), convolutions, strict=True))
        t = torch.arange(length).to(hidden)[:, None] / self.config.max_position_embeddings
        waves = [wave(2 * math.pi * k * t) for wave in (torch.cos, torch.sin) for k in range(1, WAVES + 1)]
        features = torch.cat([torch.ones_like(t), t, *waves], dim=1)
        z = torch.sin(FREQUENCY * (features @ self.filter_in.T + self.filter_in_bias))
        z = torch.sin(FREQUENCY * (z @ self.filter_mid.T + self.filter_mid_bias))
        f = torch.exp(-self.decay * t) * (z @ self.filter_out.T)
        u = x1 * v
        return self.o_proj(x2 * (mixed(f[distance.clamp(min=0)], u) + self.skip * u))

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        return (4 * config.hidden_size + _a_channel(config)) * _width(config) + _network_parameters(config)

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        # Transforms of twice the length, of inputs and of the product, 5 / 2 n log n of n real numbers each.
        transforms = 5 * 2 * work.length * math.ceil(math.log2(2 * work.length))
        mixing = work.rows * _width(config) * transforms
        return work.tokens * cls.token_flops(config) + work.length * cls.filter_flops(config) + mixing

    @classmethod
    def token_flops(cls, config: ModelConfig) -> int:
        """FLOPs of a token's projections, short convolutions and gates."""
        return 2 * (4 * config.hidden_size + 3 * TAPS + 2) * _width(config)

    @classmethod
    def filter_flops(cls, config: ModelConfig) -> int:
        """FLOPs of one tap of all channels."""
        return 2 * _filter_width(config) * (FEATURES + _filter_width(config) + _width(config))

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes of input, projections and output, and of the weights of the short convolutions side by side."""
        local = largest_part(_width(config), _width(config), work.tp_size)
        kept = work.tokens * (config.hidden_size + 4 * local) + 3 * TAPS * local
        return work.bytes_per_element * kept
