"""Attention in a window, and to the first tokens (Beltagy et al. 2020, arXiv:2004.05150; Xiao et al. 2024,
arXiv:2309.17453).

    A_i = softmax_{j in V_i}(q_i . k_j / sqrt(d)),  V_i = {j <= i : j > i - W or j <= S}

W, the window, is an eighth of `max_position_embeddings`, and at least 16; S = 4 sinks are each document's first tokens.
Positions are those in the document, for sinks too. Parameters are standard attention's own.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from deconattn.layers.config import ModelConfig
from deconattn.mixers.cache import LayerCache, Step, SumCache
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.principles import Principles
from deconattn.mixers.registry import register
from deconattn.mixers.scored import ScoredMixer
from deconattn.ops.cached_attention import softmax_attention

SINKS = 4


class WindowDecoding(Decoding["SlidingWindow"]):
    """Decoding that caches keys and values of the sinks and of the window, in whose places the next ones come.

    The token at position p of a row is in slot p while p < S, and else in the slot from S on that equals p modulo W.
    """

    def new_cache(self) -> LayerCache:
        return SumCache()  # what has left the window cannot be taken back

    def extend(
        self, mixer: "SlidingWindow", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache
    ) -> Tensor:
        queries, keys = mixer.placed(step.rotary, *mixer.queries_keys(hidden))
        values, tokens = mixer.values(hidden), hidden.shape[1]
        new = step.positions
        if new is None:
            new = torch.arange(step.past, step.past + tokens, device=hidden.device)[None]
        before = new[:, :1]
        after = before + (tokens if step.real is None else step.real.sum(dim=1, keepdim=True))
        size = min(SINKS + mixer.window, step.capacity)
        all_keys, all_values = self._held(cache, "keys", keys, size), self._held(cache, "values", values, size)
        if step.first:
            positions = torch.arange(tokens, device=hidden.device)[None]
            mixed = mixer.mix(queries, keys, values, None, positions, None)
        else:
            places = torch.cat([_places(before, size, mixer.window), new], dim=1)[:, None]
            last = new[..., None]
            seen = (places > last - mixer.window) | (places < SINKS)
            mixed = softmax_attention(queries, all_keys, all_values, seen & (places <= last) & (places >= 0))
        places = _places(after, size, mixer.window)
        source = torch.where(places >= before, size + places - before, torch.arange(size, device=hidden.device))
        for name, every in (("keys", all_keys), ("values", all_values)):
            shape = *every.shape[:2], size, every.shape[3]
            cache.keep(name, every.gather(2, source[:, None, :, None].expand(shape)), step)
        return mixer.output(mixed)

    def _held(self, cache: LayerCache, name: str, new: Tensor, size: int) -> Tensor:
        """Return what is held, in `size` slots, and the new tokens behind it, [R, n, size + T, x]."""
        held = cache.tensors.get(name)
        if held is None:
            held = new.new_zeros(*new.shape[:2], 0, new.shape[3])
        return torch.cat([pad(held, (0, 0, 0, size - held.shape[2])), new], dim=2)

    def decode_flops(self, mixer: type["SlidingWindow"], config: ModelConfig, work: Workload) -> int:
        seen = min(work.length, _window(config) + SINKS)
        return mixer.projection_flops(config, work.rows) + 4 * work.rows * seen * config.query_size

    def cache_bytes(self, mixer: type["SlidingWindow"], config: ModelConfig, work: Workload) -> int:
        held = min(work.length, _window(config) + SINKS)
        return 2 * work.rows * held * config.key_value_size * work.bytes_per_element


def _places(filled: Tensor, size: int, window: int) -> Tensor:
    """Return which token is in each slot, int64 [R or 1, size], or -1, where `filled` [R or 1, 1] tokens have come."""
    slots, last = torch.arange(size, device=filled.device), filled - 1
    places = torch.where(slots < SINKS, slots, last - (last - slots) % window)
    return places.masked_fill((places > last) | ((slots >= SINKS) & (places < SINKS)), -1)


def _window(config: ModelConfig) -> int:
    return max(16, config.max_position_embeddings // 8)


@register("sliding-window")
class SlidingWindow(ScoredMixer):
    """A = softmax(Q K^T / sqrt(head_dim)) over the window and the sinks."""

    principles = Principles()
    sinks = SINKS
    decoding = WindowDecoding()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.window = _window(config)

    def reference_bias(self, hidden: Tensor, context: MixerContext) -> Tensor:
        places = torch.arange(hidden.shape[1], device=hidden.device)
        near = places > places[:, None] - self.window
        first = self.positions(hidden, context)[:, None, None] < self.sinks
        return hidden.new_zeros(()).where(near | first, -torch.inf)

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        # A query sees the whole window and the sinks but near the start, as a causal map's sees half of the length.
        seen = min(work.length / 2, _window(config) + SINKS)
        return cls.projection_flops(config, work.tokens) + int(4 * work.tokens * seen * config.query_size)
