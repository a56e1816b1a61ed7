"""Multi-head latent attention, of DeepSeek-V2 (2024, arXiv:2405.04434).

    c_t = RMSNorm(W_DKV h_t),  k^C_t = W_UK c_t,  v_t = W_UV c_t,  k^R_t = RoPE(W_KR h_t)
    q_t = W_Q h_t = [q^C_t, q^R_t],  q^R_t rotated
    A_i = softmax_{j <= i}((q^C_i . k^C_j + q^R_i . k^R_j) / sqrt(d_h + d_R))

All heads share the latent c and the rotary key k^R, which is all that decoding caches: W_UK goes to the queries' side
there, and W_UV behind the mixing. Queries have no latent, as in DeepSeek-V2-Lite. Heads are as wide as standard
attention's (d_h), d_R is half of that, and the latent is as wide as matches its parameters, about half of the hidden
size; where grouped heads leave too few for it, heads are narrower.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.linear import Linear
from deconattn.layers.rotary import Rotary
from deconattn.layers.shards import largest_part
from deconattn.layers.splits import Split, column, row
from deconattn.mixers.base import Mixer
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload, attention_parameters, rms_norm_bytes
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.map_blocks import MapBlock, softmax_blocks
from deconattn.mixers.principles import Principles
from deconattn.mixers.registry import register
from deconattn.ops import cached_attention, reference
from deconattn.ops.softmax_attention import causal_attention


class Widths(NamedTuple):
    """Channels of a head's content (d_h) and of its rotary part (d_R), and of the latent."""

    content: int
    rotary: int
    latent: int

    @property
    def keys(self) -> int:
        """Return how wide a head's queries and keys are."""
        return self.content + self.rotary

    @classmethod
    def of(cls, config: ModelConfig) -> "Widths":
        """Return the widest heads whose latent is no narrower than they, of as many parameters as standard attention.

        Raises:
            UserError: the model is so narrow that there are none.
        """
        for content in range(config.head_dim, 0, -1):
            width = cls(content, max(2, content // 4 * 2), 0)
            left = attention_parameters(config) - _parameters(config, width)
            latent = round(left / (_parameters(config, width._replace(latent=1)) - _parameters(config, width)))
            if latent >= content:
                return width._replace(latent=latent)
        raise UserError("mla finds no room for a latent: give the model more key/value heads, or wider ones")


def _parameters(config: ModelConfig, width: Widths) -> int:
    heads, biases = config.num_attention_heads, config.attention_bias
    queries, values = heads * width.keys, heads * width.content
    into = queries + width.latent + width.rotary
    return config.hidden_size * (into + values) + biases * into + width.latent * (1 + 2 * values)


class LatentDecoding(Decoding["MLA"]):
    """Decoding that caches every token's latent and rotary key, which are one key of all heads."""

    def extend(self, mixer: "MLA", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        queries, latent, rotated = mixer.queries_and_latents(hidden, step.rotary)
        held = cache.append("latents", torch.cat([latent[:, None], rotated], dim=-1), step)
        if step.first:
            return mixer.output(causal_attention(queries, *mixer.keys_values(latent, rotated)))
        content, width = mixer.widths.content, held.shape[3]
        up = mixer.k_b_proj.weight.unflatten(0, (-1, content))
        absorbed = torch.cat([queries[..., :content] @ up, queries[..., content:]], dim=-1)
        # Attention divides by the root of these queries' width.
        absorbed = absorbed * (width / queries.shape[3]) ** 0.5
        values = held[..., : mixer.widths.latent]
        mixed = cached_attention.softmax_attention(absorbed, held, values, step.visible(hidden.shape[1]))
        return mixer.output(mixed @ mixer.v_b_proj.weight.unflatten(0, (-1, content)).mT)

    def decode_flops(self, mixer: type["MLA"], config: ModelConfig, work: Workload) -> int:
        width = Widths.of(config)
        # The two projections of the latent are as large on the side of queries and outputs.
        mixing = 2 * work.tokens * config.num_attention_heads * (2 * width.latent + width.rotary)
        return mixer.projection_flops(config, work.rows) + mixing

    def cache_bytes(self, mixer: type["MLA"], config: ModelConfig, work: Workload) -> int:
        width = Widths.of(config)
        return work.tokens * (width.latent + width.rotary) * work.bytes_per_element


@register("mla")
class MLA(Mixer):
    """A = softmax of queries with keys from a latent, beside a rotary key that all heads share."""

    principles = Principles()
    decoding = LatentDecoding()
    splits: ClassVar[Mapping[str, Split] | None] = {
        "q_proj": column("num_attention_heads"),
        "k_b_proj": column("num_attention_heads"),
        "v_b_proj": column("num_attention_heads"),
        "o_proj": row("num_attention_heads"),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.widths = Widths.of(config)
        content, rotary, latent = self.widths
        heads = config.num_attention_heads
        self.q_proj = Linear(config.hidden_size, heads * (content + rotary), bias=config.attention_bias)
        self.kv_a_proj = Linear(config.hidden_size, latent, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, rotary, bias=config.attention_bias)  # W_KR
        self.kv_a_norm = nn.RMSNorm(latent, eps=config.rms_norm_eps)
        self.k_b_proj = Linear(latent, heads * content, bias=False)
        self.v_b_proj = Linear(latent, heads * content, bias=False)
        self.o_proj = Linear(heads * content, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, latent, rotated = self.queries_and_latents(hidden, context.rotary)
        keys, values = self.keys_values(latent, rotated)
        return self.output(causal_attention(queries, keys, values, context.documents))

    def queries_and_latents(self, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [R, heads, L, d_h + d_R], latents [R, L, c] and rotary keys [R, 1, L, d_R]."""
        queries = self.q_proj(hidden).unflatten(-1, (-1, self.widths.keys)).transpose(1, 2)
        content, turning = queries.split([self.widths.content, self.widths.rotary], dim=-1)
        turned, rotated = rotary.narrowed(self.widths.rotary)(turning, self.k_proj(hidden)[:, None])
        return torch.cat([content, turned], dim=-1), self.kv_a_norm(self.kv_a_proj(hidden)), rotated

    def keys_values(self, latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys [R, heads, L, d_h + d_R] and values [R, heads, L, d_h]."""
        content, values = (
            layer(latent).unflatten(-1, (-1, self.widths.content)).transpose(1, 2)
            for layer in (self.k_b_proj, self.v_b_proj)
        )
        return torch.cat([content, rotated.expand(-1, content.shape[1], -1, -1)], dim=-1), values

    def output(self, mixed: Tensor) -> Tensor:
        """Join heads and project: [R, heads, L, d_h] -> [R, L, d]."""
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, latent, rotated = self.queries_and_latents(hidden, context.rotary)
        documents = None if context.documents is None else context.documents.ids[:, None]
        return softmax_blocks(queries, self.keys_values(latent, rotated)[0], documents, size)

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        content, rotary, _ = self.widths
        queries = self.q_proj(hidden).unflatten(-1, (-1, content + rotary)).transpose(1, 2)
        down = self.kv_a_proj(hidden)
        down = down / (down.square().mean(dim=-1, keepdim=True) + self.config.rms_norm_eps).sqrt()
        latent = down * self.kv_a_norm.weight
        keys = self.k_b_proj(latent).unflatten(-1, (-1, content)).transpose(1, 2)
        values = self.v_b_proj(latent).unflatten(-1, (-1, content)).transpose(1, 2)
        turn = context.rotary.narrowed(rotary)
        turned, rotated = turn(queries[..., content:], self.k_proj(hidden)[:, None])
        scores = (queries[..., :content] @ keys.mT + turned @ rotated.mT) / (content + rotary) ** 0.5
        ids = None if context.documents is None else context.documents.ids[:, None]
        hidden_pairs = ~reference.allowed(hidden.shape[1], ids)
        return self.output(scores.masked_fill(hidden_pairs, -torch.inf).softmax(dim=-1) @ values)

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        return _parameters(config, Widths.of(config))

    @classmethod
    def projection_flops(cls, config: ModelConfig, tokens: int) -> int:
        """FLOPs of all linear layers."""
        width = Widths.of(config)
        values = config.num_attention_heads * width.content
        queries = config.num_attention_heads * width.keys
        into = queries + width.latent + width.rotary
        return 2 * tokens * (config.hidden_size * (into + values) + 2 * width.latent * values)

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        width = Widths.of(config)
        mixing = work.tokens * work.length * config.num_attention_heads * (width.keys + width.content)
        return cls.projection_flops(config, work.tokens) + mixing

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes of input, normed latent, queries, keys, values, output and sums, cosines and sines, and the norm."""
        width = Widths.of(config)
        heads = largest_part(config.num_attention_heads, config.num_attention_heads, work.tp_size)
        kept = config.hidden_size + width.latent + 2 * heads * (width.keys + width.content)
        rotary = 2 * work.length * width.rotary * (width.rotary != config.head_dim)
        norm = rms_norm_bytes(work.tokens, width.latent, work.bytes_per_element, work.fused_norms)
        return work.bytes_per_element * (work.tokens * kept + rotary) + 4 * work.tokens * heads + norm
