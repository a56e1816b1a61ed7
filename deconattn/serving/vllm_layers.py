"""Layers of a served model, made of vLLM's: counterparts of :mod:`deconattn.model.block` and the mixers.

vLLM's tensors are flat: the new tokens of all sequences in a row, [T, d], each with its position. What a layer kept
of earlier ones is in vLLM's :class:`Attention`. Only :meth:`Mixer.run_stream`, which the fixed streams pass once
after the weights are loaded, has whole sequences and no cache.

A mixer's projections carry the names of our checkpoints except where vLLM fuses several; `stacked` says which.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding import get_rope

from deconattn.layers.config import ModelConfig
from deconattn.mixers import FixedStream, mixer_class
from deconattn.mixers.mlp import matched_width

Stacked = Mapping[str, tuple[str, str | int]]
"""Fused layer of vLLM's, and the part of it, that holds each linear layer of our checkpoints."""


class VllmFeedForward(nn.Module):
    """SwiGLU feed-forward: Down(SiLU(Gate(x)) * Up(x)).

    Args:
        whole: every tensor-parallel rank has all of it, and nothing is exchanged.
    """

    stacked: ClassVar[Stacked] = {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1)}

    def __init__(self, hidden_size: int, width: int, prefix: str, whole: bool = False) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden_size, [width, width], bias=False, prefix=f"{prefix}.gate_up_proj", disable_tp=whole
        )
        self.down_proj = RowParallelLinear(
            width, hidden_size, bias=False, prefix=f"{prefix}.down_proj", disable_tp=whole
        )
        self.act_fn = SiluAndMul()

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the block: [.., d] -> [.., d]."""
        return self.down_proj(self.act_fn(self.gate_up_proj(hidden)[0]))[0]


class VllmMLP(VllmFeedForward):
    """Mixer of `mlp`: a feed-forward block of attention's size, without a cache."""

    needs_static_embeddings = False

    def __init__(self, config: ModelConfig, vllm_config: VllmConfig, prefix: str) -> None:
        width = matched_width(config)
        super().__init__(config.hidden_size, width, prefix, whole=bool(width % get_tensor_model_parallel_world_size()))

    def forward(self, positions: Tensor, hidden: Tensor, static: Tensor | None) -> Tensor:  # type: ignore[override]
        return super().forward(hidden)

    def run_stream(self, positions: Tensor, hidden: Tensor, static: Tensor | None, rows: int) -> Tensor:
        return super().forward(hidden)


class VllmSelfAttention(nn.Module):
    """Mixer of `standard`: queries, keys and values of the hidden states."""

    needs_static_embeddings = False
    stacked: ClassVar[Stacked] = {"q_proj": ("qkv_proj", "q"), "k_proj": ("qkv_proj", "k"), "v_proj": ("qkv_proj", "v")}

    def __init__(self, config: ModelConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        tp_size = get_tensor_model_parallel_world_size()
        heads, shared = config.num_attention_heads // tp_size, max(1, config.num_key_value_heads // tp_size)
        self.head_dim = config.head_dim
        self.query_size, self.key_value_size = heads * self.head_dim, shared * self.head_dim
        self._add_projections(config, prefix)
        self.o_proj = RowParallelLinear(config.query_size, config.hidden_size, bias=False, prefix=f"{prefix}.o_proj")
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        model = vllm_config.model_config
        # vLLM's form of the configuration, so that --hf-overrides of it is not ignored.
        self.rotary_emb = get_rope(
            self.head_dim,
            max(config.max_position_embeddings, model.max_model_len),
            rope_parameters=model.hf_config.rope_parameters,
        )
        self.attn = Attention(
            heads,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=shared,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: Tensor, hidden: Tensor, static: Tensor | None) -> Tensor:
        """Attend to the tokens in vLLM's key/value cache.

        Args:
            positions: int64 [T].
            hidden: [T, d], normed hidden states.
            static: [T, d], the token embeddings through the same norm, or None if the mixer does not need them.

        Returns:
            [T, d].
        """
        return self.o_proj(self.attn(*self.queries_keys_values(positions, hidden, static)))[0]

    def run_stream(self, positions: Tensor, hidden: Tensor, static: Tensor | None, rows: int) -> Tensor:
        """Run :meth:`forward` on `rows` whole sequences of equal length, one after the other, without a cache."""
        heads = [
            tensor.view(rows, -1, tensor.shape[-1] // self.head_dim, self.head_dim).transpose(1, 2)
            for tensor in self.queries_keys_values(positions, hidden, static)
        ]
        group = self.query_size // self.key_value_size
        queries, keys, values = (
            one if one is heads[0] or group == 1 else one.repeat_interleave(group, 1) for one in heads
        )
        mixed = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(-1, self.query_size))[0]

    def queries_keys_values(
        self, positions: Tensor, hidden: Tensor, static: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries [T, query_size] and keys, and values, [T, key_value_size], of this rank's heads."""
        queries, keys, values = self.qkv_proj(hidden)[0].split(
            [self.query_size, self.key_value_size, self.key_value_size], dim=-1
        )
        return *self.placed(positions, queries, keys), values

    def placed(self, positions: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Apply query/key norms where the model has them, and rotary embeddings."""
        if self.qk_norm:
            queries = self.q_norm(queries.unflatten(-1, (-1, self.head_dim))).flatten(-2)
            keys = self.k_norm(keys.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        return self.rotary_emb(positions, queries, keys)

    def _add_projections(self, config: ModelConfig, prefix: str) -> None:
        self.qkv_proj = self._projection(config, f"{prefix}.qkv_proj")

    @staticmethod
    def _projection(config: ModelConfig, prefix: str, queries_keys: bool = True, values: bool = True) -> Any:
        """Build vLLM's fused projection, or a part of it: a part that is left out has heads of width 0.

        Its own class in either case, since it is what gives several ranks the same key/value head where there are
        fewer of them than ranks.
        """
        return QKVParallelLinear(
            config.hidden_size,
            config.head_dim if queries_keys else 0,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=config.attention_bias,
            prefix=prefix,
            v_head_size=config.head_dim if values else 0,
        )


class VllmStaticEmb(VllmSelfAttention):
    """Mixer of `staticemb`: queries and keys of the token embeddings, values of the hidden states."""

    needs_static_embeddings = True
    stacked: ClassVar[Stacked] = {"q_proj": ("qk_proj", "q"), "k_proj": ("qk_proj", "k"), "v_proj": ("v_proj", "v")}

    def queries_keys_values(
        self, positions: Tensor, hidden: Tensor, static: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert static is not None, "the model passes static embeddings where needs_static_embeddings is set"
        return *self.placed(positions, *self._queries_keys(static)), self.v_proj(hidden)[0]

    def _queries_keys(self, source: Tensor) -> tuple[Tensor, ...]:
        return self.qk_proj(source)[0].split([self.query_size, self.key_value_size], dim=-1)

    def _add_projections(self, config: ModelConfig, prefix: str) -> None:
        self.qk_proj = self._projection(config, f"{prefix}.qk_proj", values=False)
        self.v_proj = self._projection(config, f"{prefix}.v_proj", queries_keys=False)


class VllmFixedMap(VllmStaticEmb):
    """Mixer of `rndemb` and `fixedseq`: queries and keys depend on the position alone, and are looked up.

    Attributes:
        queries, keys: [max_model_len, query_size] and [max_model_len, key_value_size] of this rank's heads.
    """

    needs_static_embeddings = False
    queries: Tensor
    keys: Tensor

    def __init__(self, config: ModelConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__(config, vllm_config, prefix)
        length = vllm_config.model_config.max_model_len
        self.register_buffer("queries", torch.zeros(length, self.query_size), persistent=False)
        self.register_buffer("keys", torch.zeros(length, self.key_value_size), persistent=False)

    def fill(self, positions: Tensor, stream: Tensor) -> None:
        """Compute the tables, in place since captured CUDA graphs hold their addresses.

        Args:
            positions: int64 [max_model_len], from 0.
            stream: [max_model_len, d], normed hidden states of the layer's fixed stream.
        """
        queries, keys = self.placed(positions, *self._queries_keys(stream))
        self.queries.copy_(queries)
        self.keys.copy_(keys)

    def queries_keys_values(
        self, positions: Tensor, hidden: Tensor, static: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.queries[positions], self.keys[positions], self.v_proj(hidden)[0]


MIXERS: dict[str, type[VllmMLP] | type[VllmSelfAttention]] = {
    "standard": VllmSelfAttention,
    "staticemb": VllmStaticEmb,
    "rndemb": VllmFixedMap,
    "fixedseq": VllmFixedMap,
    "mlp": VllmMLP,
}
"""Mixers by variant; the others are refused by :func:`deconattn.serving.vllm_plugin.check`."""


class VllmDecoderLayer(nn.Module):
    """Pre-norm block. The residual stream is the sum of two tensors, as vLLM's fused norm wants it."""

    def __init__(self, config: ModelConfig, vllm_config: VllmConfig, variant: str, prefix: str) -> None:
        super().__init__()
        self.fixed_stream: FixedStream | None = mixer_class(variant).fixed_stream
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = MIXERS[variant](config, vllm_config, f"{prefix}.self_attn")
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = VllmFeedForward(config.hidden_size, config.intermediate_size, f"{prefix}.mlp")

    def forward(
        self, positions: Tensor, hidden: Tensor, residual: Tensor | None, static: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states and residual, [T, d]; both arguments may be overwritten; None at the first layer."""
        static = self._normed_static(static)
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden, residual = self.post_attention_layernorm(self.self_attn(positions, hidden, static), residual)
        return self.mlp(hidden), residual

    def run_stream(
        self, positions: Tensor, hidden: Tensor, static: Tensor | None, fixed_rows: Mapping[FixedStream, int]
    ) -> Tensor:
        """Fill a fixed map's tables, and let the fixed streams pass.

        Args:
            positions: int64 [S * max_model_len].
            hidden: [S * max_model_len, d], the streams one after the other; not overwritten.
            fixed_rows: which of the S sequences each stream is.
        """
        normed, rows = self.input_layernorm(hidden), len(fixed_rows)
        if isinstance(self.self_attn, VllmFixedMap):
            assert self.fixed_stream is not None
            row = fixed_rows[self.fixed_stream]
            self.self_attn.fill(*(tensor.view(rows, -1, *tensor.shape[1:])[row] for tensor in (positions, normed)))
        hidden = hidden + self.self_attn.run_stream(positions, normed, self._normed_static(static), rows)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def _normed_static(self, static: Tensor | None) -> Tensor | None:
        needed = static is not None and self.self_attn.needs_static_embeddings
        return self.input_layernorm(static) if needed else None
