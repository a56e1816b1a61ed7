"""Approximate: the exponential replaced by its second-order Taylor series (paper, equation 6)."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.exchange import ContextExchange, SharedContext, over_heads, some_heads
from deconattn.mixers.map_blocks import MapBlock, taylor_blocks
from deconattn.mixers.principles import Principles
from deconattn.mixers.projected import ProjectedMixer
from deconattn.mixers.registry import register
from deconattn.mixers.state_exchange import sent_states, shared_attention
from deconattn.ops import cached_attention, taylor_state
from deconattn.ops.taylor_attention import taylor_attention


class TaylorCache(LayerCache):
    """Keys and values while they take fewer bytes than the sums, then the sums and a few recent tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.recent = 0

    @property
    def croppable(self) -> bool:
        return "sums" not in self.tensors

    def reset(self) -> None:
        super().reset()
        self.recent = 0

    def sums(self, keys: Tensor, step: Step) -> Tensor:
        """Return the sums over all tokens held, [R, key_value_heads, head_dim + 1, features]."""
        sums = self._sums(keys, step)
        if self.recent:
            recent = (self.tensors[name][:, :, : self.recent] for name in ("recent_keys", "recent_values"))
            taylor_state.add(sums, *recent)
            self.recent = 0
        return sums

    def step(self, queries: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        """Add one token to the cache and attend from it: queries and result [R, heads, 1, head_dim]."""
        sums = self._sums(keys, step)
        recent_keys, recent_values = self.tensors["recent_keys"], self.tensors["recent_values"]
        recent_keys[:, :, self.recent] = keys[:, :, 0].detach()
        recent_values[:, :, self.recent] = values[:, :, 0].detach()
        self.recent += 1
        held = slice(self.recent)
        mixed = taylor_state.read(sums, queries, recent_keys[:, :, held], recent_values[:, :, held])
        if self.recent == (1 if step.static else taylor_state.RECENT):  # a compiled step must do the same every time
            self.sums(keys, step)
        return mixed

    def _sums(self, keys: Tensor, step: Step) -> Tensor:
        """Return the sums without the recent tokens; keys and values held until now are added to them and dropped."""
        if "sums" not in self.tensors:
            sums = taylor_state.no_sums(keys)
            if "keys" in self.tensors:
                held_keys, held_values = (self.tensors.pop(name)[:, :, : step.past] for name in ("keys", "values"))
                filled = None
                if step.positions is not None:
                    filled = torch.arange(step.past, device=keys.device) < step.positions[:, :1]
                taylor_state.add(sums, held_keys, held_values, filled)
            self.keep("sums", sums, step)
            shape = *keys.shape[:2], taylor_state.RECENT, keys.shape[3]
            for name in ("recent_keys", "recent_values"):
                self.keep(name, keys.new_zeros(shape), step)
        return self.tensors["sums"]


class TaylorDecoding(Decoding["Approximate"]):
    """Decoding that caches sums of the tokens' features, or keys and values while those take fewer bytes."""

    def new_cache(self) -> LayerCache:
        return TaylorCache()

    def extend(
        self, mixer: "Approximate", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache
    ) -> Tensor:
        assert isinstance(cache, TaylorCache)
        queries, keys = step.rotary(*mixer.queries_keys(hidden))
        values = mixer.values(hidden)
        if not taylor_state.is_smaller(keys.shape[3], keys.element_size(), step.capacity):
            held_keys, held_values = cache.append("keys", keys, step), cache.append("values", values, step)
            if step.first:
                return mixer.output(taylor_attention(queries, keys, values))
            visible = step.visible(queries.shape[2])
            return mixer.output(cached_attention.taylor_attention(queries, held_keys, held_values, visible))
        if step.first:
            taylor_state.add(cache.sums(keys, step), keys, values, step.real)
            return mixer.output(taylor_attention(queries, keys, values))
        if queries.shape[2] == 1:
            return mixer.output(cache.step(queries, keys, values, step))
        return mixer.output(taylor_state.extend(cache.sums(keys, step), queries, keys, values, step.real))

    def prefill_flops(self, mixer: type["Approximate"], config: ModelConfig, work: Workload) -> int:
        if not _keeps_sums(config, work):
            return mixer.forward_flops(config, work)
        # The sums are wanted anyway; the outputs come from the map or from them.
        read = min(2 * work.length * config.query_size, _sum_flops(config, config.num_attention_heads))
        a_token = _sum_flops(config, config.num_key_value_heads) + read
        return mixer.projection_flops(config, work.tokens) + work.tokens * a_token

    def decode_flops(self, mixer: type["Approximate"], config: ModelConfig, work: Workload) -> int:
        projections = mixer.projection_flops(config, work.rows)
        if not _keeps_sums(config, work):
            return projections + 4 * work.tokens * config.query_size
        return projections + work.rows * _sum_flops(config, config.num_key_value_heads + config.num_attention_heads)

    def cache_bytes(self, mixer: type["Approximate"], config: ModelConfig, work: Workload) -> int:
        if _keeps_sums(config, work):
            a_head = taylor_state.state_bytes(config.head_dim, work.bytes_per_element)
            return work.rows * config.num_key_value_heads * a_head
        return 2 * work.tokens * config.key_value_size * work.bytes_per_element


def _keeps_sums(config: ModelConfig, work: Workload) -> bool:
    return taylor_state.is_smaller(config.head_dim, work.bytes_per_element, work.length)


def _sum_flops(config: ModelConfig, heads: int) -> int:
    """FLOPs of adding one token to the sums of `heads` heads, or of reading them."""
    return 2 * heads * taylor_state.num_features(config.head_dim) * (config.head_dim + 1)


class TaylorExchange(ContextExchange["Approximate"]):
    """Exchange of the sums over the document that each rank's part ends in, or while that is less, of tokens for heads.

    In between the latter a rank has whole rows of some heads. Where heads do not divide, whole rows are gathered in its
    place. What is less is decided by the shapes of a row alone.
    """

    def mix(self, mixer: "Approximate", hidden: Tensor, static: Tensor | None, context: SharedContext) -> Tensor:
        queries, keys, values = mixer.operands(hidden, context)
        ranks = context.ranks
        heads, served = queries.shape[1], keys.shape[1]
        row = Workload(1, ranks.size * hidden.shape[1], values.element_size())
        if _sent_sums(mixer.config, served, row, ranks.size) < _sent_tokens(
            mixer.config, heads, served, row, ranks.size
        ):
            return mixer.output(shared_attention(queries, keys, values, context))
        copies = over_heads(heads, served, ranks.size)
        if copies is None:
            return super().mix(mixer, hidden, static, context)
        keys, values = (some_heads(ranks, shared, copies) for shared in (keys, values))
        documents = context.whole_documents
        ids = None if documents is None else documents.ids
        return mixer.output(ranks.to_tokens(taylor_attention(ranks.to_heads(queries), keys, values, ids)))

    def sent_elements(self, mixer: type["Approximate"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        return min(self._sent(mixer, config, work, cp_size))

    def gathers(self, mixer: type["Approximate"], config: ModelConfig, work: Workload, cp_size: int) -> bool:
        sums, tokens = self._sent(mixer, config, replace(work, rows=1), cp_size)
        heads, served = (width // config.head_dim for width in mixer.rank_widths(config, work.tp_size))
        return tokens <= sums and over_heads(heads, served, cp_size) is None

    def returned(self, mixer: type["Approximate"], config: ModelConfig, work: Workload, cp_size: int) -> int:
        sums, tokens = self._sent(mixer, config, replace(work, rows=1), cp_size)
        queries, _ = mixer.rank_widths(config, work.tp_size)
        return queries if tokens <= sums else 0

    def _sent(self, mixer: type["Approximate"], config: ModelConfig, work: Workload, cp_size: int) -> tuple[int, int]:
        """Return the elements sent of sums, and of tokens."""
        heads, served = (width // config.head_dim for width in mixer.rank_widths(config, work.tp_size))
        sums = _sent_sums(config, served, work, cp_size)
        return sums, _sent_tokens(config, heads, served, work, cp_size)


def _sent_sums(config: ModelConfig, served: int, work: Workload, cp_size: int) -> int:
    """Elements that a rank sends of the sums of `served` key/value heads."""
    return sent_states(served * taylor_state.num_features(config.head_dim) * (config.head_dim + 1), work, cp_size)


def _sent_tokens(config: ModelConfig, heads: int, served: int, work: Workload, cp_size: int) -> int:
    """Elements that a rank sends of its tokens' queries, keys, values and outputs, or of its hidden states."""
    copies = over_heads(heads, served, cp_size)
    if copies is None:
        return work.tokens // cp_size * (cp_size - 1) * config.hidden_size
    return work.tokens // cp_size * 2 * (heads + copies) * config.head_dim * (cp_size - 1) // cp_size


@register("approximate")
class Approximate(ProjectedMixer):
    """A_ij = w_ij / sum_{m<=i} w_im with w = 1 + s + s^2/2 and s = q.k / sqrt(head_dim)."""

    principles = Principles(softmax_form=False)
    decoding = TaylorDecoding()
    context_exchange = TaylorExchange()

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        return self.output(taylor_attention(*self.operands(hidden, context), context.document_ids))

    def operands(self, hidden: Tensor, context: MixerContext) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is mixed: queries [R, heads, L, head_dim], keys and values [R, key_value_heads, L, head_dim]."""
        queries, keys, values = self.queries_keys_values(hidden)
        return *context.rotary(queries, keys), values

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        queries, keys = context.rotary(*self.queries_keys(hidden))
        documents = None if context.documents is None else context.documents.ids[:, None]
        return taylor_blocks(queries, self.per_query_head(keys), documents, size)

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        # Of two exact forms the cheaper: the map, or sums that each token is added to and each query reads.
        sums = _sum_flops(config, config.num_key_value_heads) + _sum_flops(config, config.num_attention_heads)
        a_token = min(2 * work.length * config.query_size, sums)
        return cls.projection_flops(config, work.tokens) + work.tokens * a_token
