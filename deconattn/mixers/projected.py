"""The four projections of multi-head attention, which most variants share."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear, project
from deconattn.layers.rotary import Rotary
from deconattn.layers.shards import largest_part
from deconattn.layers.splits import Split, column, row
from deconattn.mixers.base import Mixer
from deconattn.mixers.costs import Workload, attention_parameters, rms_norm_bytes
from deconattn.ops.reference import per_query_head


class ProjectedMixer(Mixer):
    """A mixer with multi-head attention's projections: q, k, v, o, and query/key norms where configured.

    Heads do not meet before the output projection, so tensor parallelism gives each rank some of them: what a
    subclass computes must not depend on how many heads it sees.
    """

    rotates: ClassVar[bool] = True
    """Whether :meth:`placed` rotates queries and keys by their positions."""
    maps: ClassVar[int] = 1
    """Maps of a head, each with queries and keys of its own."""
    splits: ClassVar[Mapping[str, Split] | None] = {
        "q_proj": column("num_attention_heads"),
        "k_proj": column("num_key_value_heads"),
        "v_proj": column("num_key_value_heads"),
        "o_proj": row("num_attention_heads"),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.key_width, self.value_width = self.widths(config)
        heads, served, width = config.num_attention_heads, config.num_key_value_heads, self.maps * self.key_width
        self.q_proj = Linear(config.hidden_size, heads * width, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, served * width, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, served * self.value_width, bias=config.attention_bias)
        self.o_proj = Linear(heads * self.value_width, config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.key_width, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.key_width, eps=config.rms_norm_eps)

    @classmethod
    def widths(cls, config: ModelConfig) -> tuple[int, int]:
        """Return the widths of a map's queries and keys, and of a head's values."""
        return config.head_dim, config.head_dim

    def queries_keys(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Map [R, L, d] to queries [R, heads, L, head_dim] and keys [R, key_value_heads, L, head_dim], not rotated."""
        return self._queries_keys(*project(source, *self._groups(self.q_proj, self.k_proj)))

    def values(self, hidden: Tensor) -> Tensor:
        """Project to values: [R, L, d] -> [R, key_value_heads, L, head_dim]."""
        return _heads(self.v_proj(hidden), self.value_width).transpose(1, 2)

    def queries_keys_values(self, hidden: Tensor, rotated: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Compute :meth:`queries_keys` and :meth:`values` of one input.

        Args:
            rotated: queries and keys are to be rotated: what was not is then free, while the values are kept.
        """
        ours = ProjectedMixer
        if type(self).queries_keys is not ours.queries_keys or type(self).values is not ours.values:
            return *self.queries_keys(hidden), self.values(hidden)  # a subclass has its own
        if rotated:
            groups = (*self._groups(self.q_proj, self.k_proj), (self.v_proj,))
        else:
            groups = self._groups(self.q_proj, self.k_proj, self.v_proj)
        queries, keys, values = project(hidden, *groups)
        return *self._queries_keys(queries, keys), _heads(values, self.value_width).transpose(1, 2)

    def _groups(self, *layers: Linear) -> tuple[tuple[Linear, ...], ...]:
        """Return layers as one group, or each as its own before a norm, which would copy a part of a tensor."""
        return tuple((layer,) for layer in layers) if self.config.qk_norm else (layers,)

    def _queries_keys(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = _heads(queries, self.key_width), _heads(keys, self.key_width)
        if self.config.qk_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        return queries.transpose(1, 2), keys.transpose(1, 2)

    def placed(self, rotary: Rotary, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Give queries and keys, each [R, heads, L, head_dim], their positions."""
        return rotary.narrowed(self.key_width)(queries, keys) if self.rotates else (queries, keys)

    def output(self, mixed: Tensor) -> Tensor:
        """Join heads and project: [R, heads, L, head_dim] -> [R, L, d]."""
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))

    def per_query_head(self, shared: Tensor) -> Tensor:
        """Repeat key or value heads for grouped queries: [.., key_value_heads, L, x] -> [.., heads, L, x]."""
        group = self.q_proj.out_features // self.k_proj.out_features
        return per_query_head(shared, shared.shape[-3] * group)

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        return attention_parameters(config)

    @classmethod
    def projection_flops(cls, config: ModelConfig, tokens: int) -> int:
        """FLOPs of the four projections."""
        return 4 * tokens * config.hidden_size * (config.query_size + config.key_value_size)

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes saved by a fused kernel: input, queries, keys, values, output, and an fp32 log-sum-exp a query."""
        queries, keys = cls.rank_widths(config, work.tp_size)
        kept = work.bytes_per_element * work.tokens * (config.hidden_size + 2 * queries + 2 * keys)
        kept += 4 * work.tokens * queries // config.head_dim
        return kept + cls.query_key_norm_bytes(config, work)

    @classmethod
    def rank_widths(cls, config: ModelConfig, tp_size: int) -> tuple[int, int]:
        """Return the widths of queries and of keys (or values) on the tensor-parallel rank that holds most."""
        return (
            largest_part(config.query_size, config.num_attention_heads, tp_size),
            largest_part(config.key_value_size, config.num_key_value_heads, tp_size),
        )

    @classmethod
    def query_key_norm_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes saved for backward by the query/key norms, 0 where there are none."""
        if not config.qk_norm:
            return 0
        vectors = work.tokens * sum(cls.rank_widths(config, work.tp_size)) // config.head_dim
        return rms_norm_bytes(vectors, config.head_dim, work.bytes_per_element, work.fused_norms)


def _heads(projected: Tensor, width: int) -> Tensor:
    return projected.unflatten(-1, (-1, width))
