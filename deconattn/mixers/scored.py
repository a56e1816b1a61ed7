"""Mixers with multi-head attention's projections and another rule from scores to weights."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.mixers.cache import LayerCache, Step
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.map_blocks import MapBlock
from deconattn.mixers.projected import ProjectedMixer
from deconattn.ops import cached_attention, reference
from deconattn.ops.scored_attention import scored_attention


class ScoredDecoding(Decoding["ScoredMixer"]):
    """Decoding that caches every token's keys and values, and what its scores' bias is made of."""

    def extend(
        self, mixer: "ScoredMixer", hidden: Tensor, static: Tensor | None, step: Step, cache: LayerCache
    ) -> Tensor:
        assert not mixer.window, "a mixer with a window has a decoding that knows it"
        queries, keys = mixer.placed(step.rotary, *mixer.queries_keys(hidden))
        values, gates = mixer.values(hidden), mixer.gates(hidden)
        held_keys, held_values = cache.append("keys", keys, step), cache.append("values", values, step)
        held_gates = None if gates is None else cache.append("gates", gates[..., None], step).squeeze(-1)
        tokens = hidden.shape[1]
        if step.first:
            positions = torch.arange(tokens, device=hidden.device)[None]
            return mixer.output(mixer.mix(queries, keys, values, gates, positions, None))
        slots = step.positions
        if slots is None:
            slots = torch.arange(step.past, step.past + tokens, device=hidden.device)[None]
        held = torch.arange(step.window, device=hidden.device)
        visible = held <= slots[..., None]
        bias = cached_attention.pair_bias(slots, visible, mixer.levels(held_gates, held), mixer.offsets(slots))
        return mixer.output(
            cached_attention.biased_attention(queries, held_keys, held_values, bias, sigmoid=mixer.sigmoid)
        )

    def decode_flops(self, mixer: type["ScoredMixer"], config: ModelConfig, work: Workload) -> int:
        return mixer.projection_flops(config, work.rows) + 4 * work.tokens * config.query_size

    def cache_bytes(self, mixer: type["ScoredMixer"], config: ModelConfig, work: Workload) -> int:
        return 2 * work.tokens * config.key_value_size * work.bytes_per_element


class ScoredMixer(ProjectedMixer):
    """o_i = sum_{j <= i} w_ij v_j, w of the scores q_i.k_j / sqrt(head_dim) + levels_j - levels_i + offsets_i.

    A subclass says what the levels and offsets are, and whether there is a window.
    """

    sigmoid: ClassVar[bool] = False
    """Whether weights are the scores' sigmoids, not their softmax: such a mixer has no map to show."""
    window = 0
    """Tokens that a query sees, itself the last; 0: all. With a window goes a decoding of its own."""
    sinks = 0
    """First tokens of a document that are seen beside the window."""
    decoding: ClassVar[Decoding[Any]] = ScoredDecoding()

    def gates(self, hidden: Tensor) -> Tensor | None:
        """Return one number a token and head, [R, heads, L], that the levels are made of; None: they need none."""
        return None

    def levels(self, gates: Tensor | None, positions: Tensor) -> Tensor | None:
        """Return the levels of all tokens of a row, [R or 1, heads, L]; None is zero.

        Args:
            gates: [R, heads, L], as :meth:`gates` gives them.
            positions: int64 [L], places in the row.
        """
        return None

    def offsets(self, positions: Tensor) -> Tensor | None:
        """Return what is added to the scores of a query, [R or 1, L], by its place in its document; None is zero."""
        return None

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys, values = self.queries_keys_values(hidden, self.rotates)
        queries, keys = self.placed(context.rotary, queries, keys)
        positions = self.positions(hidden, context)
        mixed = self.mix(queries, keys, values, self.gates(hidden), positions, context.document_ids)
        return self.output(mixed)

    def positions(self, hidden: Tensor, context: MixerContext) -> Tensor:
        """Return places within documents, int64 [R or 1, L]."""
        if context.documents is None:
            return torch.arange(hidden.shape[1], device=hidden.device)[None]
        return context.documents.position_ids

    def mix(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        gates: Tensor | None,
        positions: Tensor,
        document_ids: Tensor | None,
    ) -> Tensor:
        """Mix the values of whole rows, [R, heads, L, head_dim]."""
        levels = self.levels(gates, torch.arange(queries.shape[2], device=queries.device))
        return scored_attention(
            queries,
            keys,
            values,
            document_ids,
            levels,
            self.offsets(positions),
            sigmoid=self.sigmoid,
            window=self.window,
            sinks=self.sinks,
        )

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        if self.sigmoid:
            return
        queries, keys = self.placed(context.rotary, *self.queries_keys(hidden))
        keys = self.per_query_head(keys)
        length = hidden.shape[1]
        places = torch.arange(length, device=hidden.device)
        levels = self.levels(self.gates(hidden), places)
        starts = places - self.positions(hidden, context)
        for start in range(0, length, size):
            stop = min(start + size, length)
            slots, begin = places[None, start:stop], starts[:, start:stop]
            visible = (places[:stop] <= slots[..., None]) & (places[:stop] >= begin[..., None])
            if self.window:
                visible &= cached_attention.within_window(slots, begin, stop, self.window, self.sinks)
            bias = cached_attention.pair_bias(slots, visible, None if levels is None else levels[..., :stop])
            products = reference.scores(queries[..., start:stop, :], keys[..., :stop, :])
            scores = products + bias.to(products.dtype)
            yield MapBlock(scores.softmax(dim=-1), scores)

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        queries, keys = self.placed(context.rotary, *self.queries_keys(hidden))
        scores = reference.scores(queries, self.per_query_head(keys)) + self.reference_bias(hidden, context)
        visible = reference.allowed(
            hidden.shape[1], None if context.documents is None else context.documents.ids[:, None]
        )
        scores = scores.masked_fill(~visible, -math.inf)
        weights = scores.sigmoid() if self.sigmoid else scores.softmax(dim=-1)
        return self.output(weights @ self.per_query_head(self.values(hidden)))

    def reference_bias(self, hidden: Tensor, context: MixerContext) -> Tensor:
        """Return what is added to the scores by the formula, -inf where a window hides; [R or 1, heads or 1, L, L]."""
        raise NotImplementedError

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        return cls.projection_flops(config, work.tokens) + 2 * work.tokens * work.length * config.query_size
