"""Approximate: the exponential replaced by its second-order Taylor series (paper, equation 6)."""

import torch
from torch import Tensor

from deconattn.mixers.base import MixerContext, ProjectedMixer
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.registry import register
from deconattn.model.config import ModelConfig
from deconattn.ops import cached_attention, reference, taylor_state
from deconattn.ops.taylor_attention import taylor_attention


@register("approximate")
class Approximate(ProjectedMixer):
    """A_ij = w_ij / sum_{m<=i} w_im with w = 1 + s + s^2/2 and s = q.k / sqrt(head_dim)."""

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = context.rotary(*self.queries_keys(hidden))
        return self.output(taylor_attention(queries, keys, self.values(hidden), context.document_ids))

    def new_cache(self) -> LayerCache:
        return TaylorCache()

    def extend(self, hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache) -> Tensor:
        assert isinstance(cache, TaylorCache)
        queries, keys = step.rotary(*self.queries_keys(hidden))
        values = self.values(hidden)
        if not taylor_state.is_smaller(keys.shape[3], keys.element_size(), step.capacity):
            held_keys, held_values = cache.append("keys", keys, step), cache.append("values", values, step)
            if step.first:
                return self.output(taylor_attention(queries, keys, values))
            visible = step.visible(queries.shape[2])
            return self.output(cached_attention.taylor_attention(queries, held_keys, held_values, visible))
        state = cache.state(keys, step)
        if step.first:
            taylor_state.add(state, keys.detach(), values.detach(), step.real)
            return self.output(taylor_attention(queries, keys, values))
        if queries.shape[2] == 1:
            return self.output(taylor_state.step(state, queries, keys, values))
        return self.output(taylor_state.extend(state, queries, keys, values, step.real))

    def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = context.rotary(*self.queries_keys(hidden))
        documents = None if context.documents is None else context.documents.ids[:, None]
        return reference.taylor_map(queries, self.per_query_head(keys), documents)

    @classmethod
    def forward_flops(cls, config: ModelConfig, rows: int, length: int) -> int:
        return cls.projection_flops(config, rows, length) + 2 * rows * length**2 * config.query_size

    @classmethod
    def decode_flops(cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
        projections = cls.projection_flops(config, rows, 1)
        if not taylor_state.is_smaller(config.head_dim, bytes_per_element, length):
            return projections + 4 * rows * length * config.query_size
        # Each key head's sums are added to, each query head reads its key head's.
        heads = config.num_key_value_heads + config.num_attention_heads
        return projections + 2 * rows * heads * taylor_state.num_features(config.head_dim) * (config.head_dim + 1)

    @classmethod
    def cache_bytes(cls, config: ModelConfig, rows: int, length: int, bytes_per_element: int) -> int:
        if taylor_state.is_smaller(config.head_dim, bytes_per_element, length):
            return rows * config.num_key_value_heads * taylor_state.state_bytes(config.head_dim, bytes_per_element)
        return 2 * rows * length * config.key_value_size * bytes_per_element


class TaylorCache(LayerCache):
    """Keys and values while they take fewer bytes than the sums, then the sums."""

    @property
    def croppable(self) -> bool:
        return "products" not in self.tensors

    def state(self, keys: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The sums over all tokens held; keys and values that were held until now are added and dropped."""
        if "products" not in self.tensors:
            products, sums = taylor_state.new_state(keys)
            if "keys" in self.tensors:
                held_keys, held_values = (self.tensors.pop(name)[:, :, : step.past] for name in ("keys", "values"))
                filled = None
                if step.positions is not None:
                    filled = torch.arange(step.past, device=keys.device) < step.positions[:, :1]
                taylor_state.add((products, sums), held_keys, held_values, filled)
            self.keep("products", products, step)
            self.keep("sums", sums, step)
        return self.tensors["products"], self.tensors["sums"]
