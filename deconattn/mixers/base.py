"""The contract of a mixer: everything that depends on the variant of a layer, and nothing else does.

A variant is one file: a subclass of :class:`Mixer` (or of :class:`ProjectedMixer`, which has the four
projections of multi-head attention) under :func:`deconattn.mixers.register`. Training, parameter matching,
FLOPs, analysis and export then work with it; `tests/mixers/test_contract.py` runs over every registered name.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear
from deconattn.layers.rotary import Rotary
from deconattn.layers.splits import Split, column, row
from deconattn.mixers.cache import LayerCache, Step, new_tokens_of
from deconattn.mixers.costs import rms_norm_bytes
from deconattn.mixers.map_blocks import MapBlock, cut
from deconattn.ops.documents import Documents
from deconattn.ops.reference import per_query_head

FixedStream = Literal["random", "text"]
_TOGETHER = {
    "attention_map": ("map_blocks",),
    "forward": (
        "extend",
        "new_cache",
        "fixed_part",
        "prefill_flops",
        "decode_flops",
        "cache_bytes",
        "fixed_bytes",
        "fixed_flops",
    ),
}
"""Methods of a mixer, and those that belong to one way of doing what they do, the one that does it first."""


@dataclass(frozen=True, eq=False)
class MixerContext:
    """What a layer may know of the batch beside the hidden states.

    Rows are the batch's sequences followed by the fixed streams, each a sequence like any other.

    Attributes:
        rotary: cosines and sines of every row's positions.
        documents: boundaries in packed rows, or None where a row is one document.
        fixed_rows: row of each fixed stream that the model carries, counted from the end (-1 is the last).
        output_rows: how many rows of the result anyone reads, from the first; None is all. A mixer need not compute
            the others, and may leave them out.
    """

    rotary: Rotary
    documents: Documents | None
    fixed_rows: dict[FixedStream, int]
    output_rows: int | None = None

    @property
    def document_ids(self) -> Tensor | None:
        """int64 [R, L] or None."""
        return None if self.documents is None else self.documents.ids

    def rows(self, count: int) -> "MixerContext":
        """The same for the first `count` rows alone, once no later layer reads the fixed streams."""
        documents = None if self.documents is None else self.documents.rows(count)
        return MixerContext(self.rotary.rows(count), documents, {})


class Mixer(nn.Module, ABC):
    """One layer's token mixing: [R, L, hidden_size] -> [R, L, hidden_size].

    Parameters carry Hugging Face names; the module is a block's `self_attn`.
    """

    fixed_stream: ClassVar[FixedStream | None] = None
    """The fixed stream that the layer reads beside the hidden states, carried as an extra row."""
    needs_static_embeddings: ClassVar[bool] = False
    """Whether the layer reads the token embeddings (through its own input norm)."""
    splits: ClassVar[Mapping[str, Split] | None] = None
    """The cut of each linear layer under tensor parallelism, by its name here; None: it cannot be cut.

    A parameter or buffer that belongs to some heads, such as a slope a head, is named too.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A class does not decode by another forward's methods than its own: it has what this class has, or its own.

        Nor has one with a map of its own the blocks of another's. What counts is where each method comes from in the
        end, from the class, a parent or a mixin.
        """
        super().__init_subclass__(**kwargs)
        for method, (first, *others) in _TOGETHER.items():
            if _origin(cls, method) not in _origin(cls, first).__mro__:  # ABC knows no issubclass yet
                for name in (first, *others):
                    if name in vars(Mixer) and name not in vars(cls):  # an export carries fewer methods
                        setattr(cls, name, vars(Mixer)[name])

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        """Mix.

        Args:
            hidden: [R, L, d], normed hidden states, the fixed streams' rows last.
            static: [R, L, d], the token embeddings through the same norm, or None if no layer needs them.

        Returns:
            [R, L, d]: what the residual stream receives, for every row or the first `context.output_rows`.
        """

    @abstractmethod
    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor | None:
        """The map A that `forward` applies, [R, heads, L, L], by the paper's formula; None if nothing is mixed."""

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        """The rows of :meth:`attention_map` in blocks of `size`, first rows first; no block if nothing is mixed.

        As it stands here, right for any mixer: the whole map, cut, without scores. Override it to hold one block at a
        time, and to show the activations before the softmax.
        """
        whole = self.attention_map(hidden, static, context)
        if whole is not None:
            yield from cut(whole, size)

    def new_cache(self) -> LayerCache:
        """An empty decoding cache, for :meth:`extend` to fill."""
        return LayerCache()

    def extend(self, hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        """:meth:`forward` for tokens that continue those in the cache, which then holds them too.

        What padding's outputs are does not matter. As it stands here, right for any causal mixer: the whole sequence
        is kept and mixed again. Override it, with :meth:`new_cache`, :meth:`fixed_part` and the costs below, to
        keep and compute less.

        Args:
            hidden: [R, T, d], normed hidden states of the new tokens; fixed streams have no rows here.
            static: [R, T, d], their embeddings through the same norm, or None if no layer needs them.

        Returns:
            [R, T, d].
        """
        whole = cache.append("hidden", hidden[:, None], step)[:, 0]
        if self.needs_static_embeddings:
            assert static is not None
            static = cache.append("static", static[:, None], step)[:, 0]
        positions = torch.arange(step.window, device=hidden.device)[None]
        context = MixerContext(Rotary.of(self.config, positions, hidden.dtype), None, {})
        if self.fixed_stream is not None:
            parts = [part[:, : step.window] for part in cache.fixed]
            whole = torch.cat([whole, parts[0]])
            static = None if static is None else torch.cat([static, parts[1]])
            context = replace(context, fixed_rows={self.fixed_stream: -1})
        # The class's forward: while hooks run, the instance's is this very method.
        mixed = type(self).forward(self, whole, static, context)[: len(hidden)]
        return new_tokens_of(mixed, step, hidden.shape[1])

    def fixed_part(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> tuple[Tensor, ...]:
        """What :meth:`extend` needs of the fixed streams: computed once per model, found in `cache.fixed`.

        Args:
            hidden: [S, L, d], normed hidden states of the fixed streams alone, in `context.fixed_rows`.
            static: [S, L, d] or None.

        Returns:
            Tensors [n, L, x].
        """
        if self.fixed_stream is None:
            return ()
        row = context.fixed_rows[self.fixed_stream]
        sources = (hidden, static) if self.needs_static_embeddings else (hidden,)
        return tuple(source[row].unsqueeze(0) for source in sources if source is not None)

    @classmethod
    @abstractmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        """Parameters of one layer's mixer; within 0.1 % of a layer equal to standard attention's."""

    @classmethod
    @abstractmethod
    def forward_flops(cls, config: ModelConfig, rows: int, length: int) -> int:
        """FLOPs of one layer's forward pass over `rows` sequences (2 a multiply-add; causal maps half of L^2)."""

    @classmethod
    @abstractmethod
    def activation_bytes(
        cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int, shards: int, fused_norms: bool
    ) -> int:
        """Bytes that one layer's mixer keeps for its backward pass, its input among them, without document masks.

        Args:
            rows: sequences, the fixed streams' rows among them.
            shards: tensor-parallel ranks; the bytes are those of one. Its input is whole on each.
            fused_norms: query/key norms run in one kernel (:func:`deconattn.mixers.costs.rms_norm_bytes`).
        """

    @classmethod
    def prefill_flops(cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
        """FLOPs of a first cached pass, which fills the cache; what is computed once per model does not count."""
        return cls.forward_flops(config, rows, length) - cls.fixed_flops(config, length)

    @classmethod
    def decode_flops(cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
        """FLOPs of one new token in each of `rows` sequences, the last of `length` tokens."""
        return cls.forward_flops(config, rows, length)

    @classmethod
    def cache_bytes(cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
        """Bytes of one layer's cache with room for `length` tokens in each of `rows` sequences."""
        return rows * length * config.hidden_size * bytes_per_element * (1 + cls.needs_static_embeddings)

    @classmethod
    def fixed_flops(cls, config: ModelConfig, length: int) -> int:
        """FLOPs of :meth:`fixed_part` for `length` tokens: once per model, whatever the batch."""
        return 0

    @classmethod
    def fixed_bytes(cls, config: ModelConfig, length: int, bytes_per_element: int) -> int:
        """Bytes of :meth:`fixed_part` for `length` tokens: once per model, whatever the batch."""
        if cls.fixed_stream is None:
            return 0
        return length * config.hidden_size * bytes_per_element * (1 + cls.needs_static_embeddings)


def _origin(cls: type, method: str) -> type:
    """The class of the inheritance in which a method is found."""
    return next((base for base in cls.__mro__ if method in vars(base)), object)


class ProjectedMixer(Mixer):
    """A mixer with multi-head attention's projections: q, k, v, o, and query/key norms where configured.

    Heads do not meet before the output projection, so tensor parallelism gives each rank some of them: what a
    subclass computes must not depend on how many heads it sees.
    """

    splits: ClassVar[Mapping[str, Split] | None] = {
        "q_proj": column("num_attention_heads"),
        "k_proj": column("num_key_value_heads"),
        "v_proj": column("num_key_value_heads"),
        "o_proj": row("num_attention_heads"),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.q_proj = Linear(config.hidden_size, config.query_size, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, config.key_value_size, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, config.key_value_size, bias=config.attention_bias)
        self.o_proj = Linear(config.query_size, config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def queries_keys(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """[R, L, d] -> queries [R, heads, L, head_dim] and keys [R, key_value_heads, L, head_dim], not rotated."""
        queries = self.q_proj(source).unflatten(-1, (-1, self.config.head_dim))
        keys = self.k_proj(source).unflatten(-1, (-1, self.config.head_dim))
        if self.config.qk_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        return queries.transpose(1, 2), keys.transpose(1, 2)

    def values(self, hidden: Tensor) -> Tensor:
        """[R, L, d] -> [R, key_value_heads, L, head_dim]."""
        return self.v_proj(hidden).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def output(self, mixed: Tensor) -> Tensor:
        """[R, heads, L, head_dim] -> [R, L, d]."""
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))

    def per_query_head(self, shared: Tensor) -> Tensor:
        """[.., key_value_heads, L, x] -> [.., heads, L, x]: each key or value head beside the queries it serves."""
        group = self.q_proj.out_features // self.k_proj.out_features
        return per_query_head(shared, shared.shape[-3] * group)

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        return attention_parameters(config)

    @classmethod
    def projection_flops(cls, config: ModelConfig, rows: int, length: int) -> int:
        """FLOPs of the four projections."""
        return 4 * rows * length * config.hidden_size * (config.query_size + config.key_value_size)

    @classmethod
    def activation_bytes(
        cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int, shards: int, fused_norms: bool
    ) -> int:
        """Of a fused kernel: input, queries, keys, values, mixed values, and an fp32 normaliser a query."""
        tokens = rows * length
        queries, keys = cls.rank_widths(config, shards)
        kept = bytes_per_element * tokens * (config.hidden_size + 2 * queries + 2 * keys)
        kept += 4 * tokens * queries // config.head_dim
        return kept + cls.query_key_norm_bytes(config, tokens, bytes_per_element, shards, fused_norms)

    @classmethod
    def rank_widths(cls, config: ModelConfig, shards: int) -> tuple[int, int]:
        """Widths of the queries and of the keys (or values) on one of `shards` ranks."""
        heads, shared = config.num_attention_heads, config.num_key_value_heads
        return heads // shards * config.head_dim, max(1, shared // shards) * config.head_dim

    @classmethod
    def query_key_norm_bytes(
        cls, config: ModelConfig, tokens: int, bytes_per_element: int, shards: int, fused: bool
    ) -> int:
        """What the query/key norms keep, 0 where there are none."""
        vectors = tokens * sum(cls.rank_widths(config, shards)) // config.head_dim
        return config.qk_norm * rms_norm_bytes(vectors, config.head_dim, bytes_per_element, fused)


def attention_parameters(config: ModelConfig) -> int:
    """Parameters of standard attention in one layer, the count that every variant matches."""
    widths = config.query_size + 2 * config.key_value_size
    weights = config.hidden_size * (widths + config.query_size)
    return weights + config.attention_bias * widths + config.qk_norm * 2 * config.head_dim
