"""Mixers whose memory of earlier tokens is a state of fixed size: what linear attention and the delta rule share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear, project
from deconattn.layers.shards import largest_part
from deconattn.layers.splits import Split, column, row
from deconattn.mixers.base import Mixer
from deconattn.mixers.cache import LayerCache, Step, SumCache
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.matching import matched_widths
from deconattn.ops.documents import Documents
from deconattn.ops.precision import at_least_fp32
from deconattn.ops.recompute import recomputed
from deconattn.ops.short_convolution import last_inputs, short_convolution

UNGATED_SPLITS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), column("num_attention_heads")),
    "o_proj": row("num_attention_heads"),
}
"""Splits of a mixer that is not `gated`."""


@dataclass(frozen=True, eq=False)
class Span:
    """Consecutive tokens that are mixed in one pass, and what came before them.

    Attributes:
        documents: boundaries, or None where all tokens of a row are of one document.
        past: the position of the first token; where rows differ, `steps` has positions.
        steps: int64 [R, T] or None.
        real: bool [R, T], false for padding, which comes last; None: all are real.
        state: what the mixer returned for the tokens before; empty: there are none.
    """

    documents: Documents | None = None
    past: int = 0
    steps: Tensor | None = None
    real: Tensor | None = None
    state: tuple[Tensor, ...] = ()

    @property
    def document_ids(self) -> Tensor | None:
        """Document number of each token, int64 [R, L], or None."""
        return None if self.documents is None else self.documents.ids

    @property
    def position_ids(self) -> Tensor | None:
        """Position of each token in its document, int64 [R, L], or None where a row is one document."""
        return None if self.documents is None else self.documents.position_ids

    def positions(self, like: Tensor) -> Tensor:
        """Return the position of each token in its document, int64 [R or 1, L], for a tensor [R, L, ..]."""
        if self.documents is not None:
            return self.documents.position_ids
        if self.steps is not None:
            return self.steps
        return torch.arange(self.past, self.past + like.shape[1], device=like.device)[None]


class StateDecoding(Decoding["RecurrentMixer"]):
    """Decoding that caches the state, fp32 or finer."""

    def new_cache(self) -> LayerCache:
        return SumCache()

    def extend(
        self, mixer: "RecurrentMixer", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache
    ) -> Tensor:
        held = () if step.first else tuple(cache.tensors.values())
        span = Span(None, step.past, step.positions, step.real, held)
        mixed, state = mixer.mix(span, *mixer.operands(hidden))
        for number, part in enumerate(state):
            cache.keep(f"state_{number}", part, step)
        return mixer.o_proj(mixed)

    def decode_flops(self, mixer: type["RecurrentMixer"], config: ModelConfig, work: Workload) -> int:
        return mixer.forward_flops(config, Workload(work.rows, 1))

    def cache_bytes(self, mixer: type["RecurrentMixer"], config: ModelConfig, work: Workload) -> int:
        return max(4, work.bytes_per_element) * work.rows * mixer.state_size(config, *mixer.widths(config))


class RecurrentMixer(Mixer):
    """Heads of one query, key and value each (there are no groups), and a state that :meth:`mix` carries on.

    A subclass gives :meth:`mix`, `reference` and its map, and where it has more than projections of queries, keys,
    values and an output gate, these in :meth:`operands`, :meth:`count`, :meth:`state_size`, :meth:`kept` and
    :meth:`mixing_flops`.
    """

    gated: ClassVar[bool] = True
    """Whether each head's output goes through an RMSNorm and a SiLU gate of the hidden states."""
    value_ratio: ClassVar[float] = 1.0
    """Width of a head's values divided by that of its keys, as nearly as parameters are to match."""
    even_keys: ClassVar[bool] = False
    """Whether queries and keys are rotated."""
    shared_keys: ClassVar[bool] = False
    """Whether all heads have one query and key."""
    scales_queries_keys: ClassVar[bool] = True
    """Whether queries and keys have norms where the configuration asks for them; else the mixer has its own."""
    decoding: ClassVar[Decoding] = StateDecoding()
    splits: ClassVar[Mapping[str, Split] | None] = UNGATED_SPLITS | {"g_proj": column("num_attention_heads")}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.key_width, self.value_width = self.widths(config)
        keys = self.key_heads(config) * self.key_width
        values = config.num_attention_heads * self.value_width
        self.q_proj = Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, values, bias=config.attention_bias)
        if self.gated:
            self.g_proj = Linear(config.hidden_size, values, bias=False)
            self.o_norm = nn.Parameter(torch.ones(self.value_width))
        if self.has_query_key_norms(config):
            self.q_norm = nn.Parameter(torch.ones(self.key_width))
            self.k_norm = nn.Parameter(torch.ones(self.key_width))
        self.o_proj = Linear(values, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        mixed = recomputed(partial(self._mixed, Span(context.documents)), *self.operands(hidden))
        return self.o_proj(mixed)

    def _mixed(self, span: Span, *operands: Tensor) -> Tensor:
        return self.mix(span, *operands)[0]

    def operands(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return all that :meth:`mix` reads and that has gradients: projections [R, L, x] of [R, L, d], parameters."""
        layers = (self.q_proj, self.k_proj, self.v_proj, *((self.g_proj,) if self.gated else ()))
        norms = (self.q_norm, self.k_norm) if self.has_query_key_norms(self.config) else ()
        return *project(hidden, layers), *((self.o_norm,) if self.gated else ()), *norms

    def mix(self, span: Span, *operands: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mix tokens.

        Args:
            operands: what :meth:`operands` returns. It reads no other parameters.

        Returns:
            What the output projection reads, [R, L, x] in the projections' dtype, and the state after the last token,
            tensors with rows first that are at least fp32.
        """
        raise NotImplementedError

    def queries_keys(self, queries: Tensor, keys: Tensor, *norms: Tensor) -> tuple[Tensor, Tensor]:
        """Cut [R, L, heads * key_width] into heads [R, heads, L, key_width], at least fp32, normed where configured."""
        both = tuple(self.heads(one, self.key_width) for one in (queries, keys))
        for norm, one in zip(norms, both, strict=False):
            both = *both[1:], rms_norm(one, norm.shape, at_least_fp32(norm), self.config.rms_norm_eps)
        return both[0], both[1]

    def convolved(
        self, span: Span, inputs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Return the SiLU of short convolutions of projections, and what the first parts of the state become.

        Args:
            inputs: [R, L, n] each; the states of the tokens before are the first in `span.state`.
            weights: [n, K] each.
            biases: [n] each, or None for none.
        """
        results, state = [], []
        for number, (one, weight) in enumerate(zip(map(at_least_fp32, inputs), weights, strict=True)):
            before = span.state[number] if span.state else one.new_zeros(len(one), weight.shape[1] - 1, one.shape[2])
            mixed = short_convolution(one, at_least_fp32(weight), span.position_ids, before)
            results.append(silu(mixed if biases is None else mixed + at_least_fp32(biases[number])))
            state.append(last_inputs(one, before, span.real))
        return results, tuple(state)

    def heads(self, projected: Tensor, width: int) -> Tensor:
        """Cut [R, L, heads * width] into heads [R, heads, L, width], at least fp32."""
        return at_least_fp32(projected).unflatten(-1, (-1, width)).transpose(1, 2)

    def joined(self, mixed: Tensor, gate: Tensor | None = None, norm: Tensor | None = None) -> Tensor:
        """Join heads, [R, heads, L, y] -> [R, L, heads * y]; given gates of that shape, RMSNorm(mixed) * silu(gate)."""
        mixed = mixed.transpose(1, 2)
        if gate is None or norm is None:
            return mixed.flatten(-2)
        normed = rms_norm(mixed, norm.shape, at_least_fp32(norm), self.config.rms_norm_eps).flatten(-2)
        return normed * silu(at_least_fp32(gate))

    @classmethod
    def key_heads(cls, config: ModelConfig) -> int:
        """Return the number of heads of queries and keys."""
        return 1 if cls.shared_keys else config.num_attention_heads

    @classmethod
    def widths(cls, config: ModelConfig) -> tuple[int, int]:
        """Return the widths of a head's keys and values."""
        return matched_widths(config, partial(cls.count, config), cls.value_ratio, cls.even_keys)

    @classmethod
    def has_query_key_norms(cls, config: ModelConfig) -> bool:
        """Whether there are norms of queries and keys."""
        return config.qk_norm and cls.scales_queries_keys

    @classmethod
    def count(cls, config: ModelConfig, keys: int, values: int) -> int:
        """Return the number of parameters for widths a head of keys and of values."""
        widths = cls.key_heads(config) * 2 * keys + config.num_attention_heads * values
        norms = cls.has_query_key_norms(config) * 2 * keys + cls.gated * values
        return cls.projection_weights(config, keys, values) + config.attention_bias * widths + norms

    @classmethod
    def projection_weights(cls, config: ModelConfig, keys: int, values: int) -> int:
        """Return the number of weights that each token is multiplied with."""
        widths = cls.key_heads(config) * 2 * keys + config.num_attention_heads * (2 + cls.gated) * values
        return config.hidden_size * widths

    @classmethod
    def state_size(cls, config: ModelConfig, keys: int, values: int) -> int:
        """Return the number of elements of a row's state."""
        return config.num_attention_heads * keys * values

    @classmethod
    def kept(cls, config: ModelConfig, keys: int, values: int) -> tuple[int, int]:
        """Return what is saved of a token for the backward pass beside its input: elements a head, and of all heads."""
        others = (2 + cls.gated) * values
        return (others, 2 * keys) if cls.shared_keys else (others + 2 * keys, 0)

    @classmethod
    def mixing_flops(cls, config: ModelConfig, keys: int, values: int) -> int:
        """Return FLOPs a token beside the projections: the state is written and read."""
        return 4 * config.num_attention_heads * keys * values

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        return cls.count(config, *cls.widths(config))

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        widths = cls.widths(config)
        return work.tokens * (2 * cls.projection_weights(config, *widths) + cls.mixing_flops(config, *widths))

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes of the input, the projections and what the output projection reads."""
        a_head, shared = cls.kept(config, *cls.widths(config))
        heads = largest_part(config.num_attention_heads, config.num_attention_heads, work.tp_size)
        return work.bytes_per_element * work.tokens * (config.hidden_size + heads * a_head + shared)
