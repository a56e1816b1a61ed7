"""The decoding cache of a whole model: one cache a layer, and how far each row has come."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.mixers import LayerCache, Step
from deconattn.model.streams import check_length

if TYPE_CHECKING:
    from deconattn.model.decoder import Decoder

BLOCK = 256
"""Tokens of memory that a growing cache takes at once."""


class DecodingCache:
    """Cache of one model and one batch, filled by :meth:`deconattn.model.decoder.Decoder.extend`.

    Args:
        limit: the most tokens that will be held, padding included; None grows without end.
        static: take all memory at once, and keep every tensor's shape and address from then on.

    Attributes:
        layers: of each layer its cache.
        rows: sequences held, 0 before the first pass.
        capacity: tokens a row that there is room for now: a multiple of `BLOCK`, or `limit`.

    Raises:
        ValueError: `static` without a limit.
        UserError: the limit is beyond the model's fixed stream.
    """

    def __init__(self, model: "Decoder", limit: int | None = None, static: bool = False) -> None:
        if static and limit is None:
            raise ValueError("a static cache needs a limit: its memory is taken at once")
        if limit is not None:
            check_length(model, limit)
        self.layers: list[LayerCache] = [layer.self_attn.decoding.new_cache() for layer in model.blocks]
        self.limit = limit
        self.static = static
        self.reset()

    def reset(self) -> None:
        """Drop all tokens."""
        self.capacity = 0
        self.rows = 0
        self._seen: int | Tensor = 0
        self._lengths: Tensor | None = None
        for layer in self.layers:
            layer.reset()

    @property
    def is_empty(self) -> bool:
        """Whether no token has been cached yet."""
        return self.rows == 0

    @property
    def seen(self) -> int:
        """Tokens of a row that have been cached, padding included."""
        return int(self._seen)

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers for this batch."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def fixed_nbytes(self) -> int:
        """Bytes held once, whatever the batch."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.fixed)

    @property
    def croppable(self) -> bool:
        """Whether :meth:`crop` is possible."""
        return all(layer.croppable for layer in self.layers)

    def begin(self, model: "Decoder", hidden: Tensor, real: Tensor | None) -> Step:
        """Make room for the next tokens, [R, T, d].

        Raises:
            UserError: there is none.
        """
        rows, tokens = hidden.shape[:2]
        first, past, positions = self.is_empty, 0, None
        window = tokens
        if self.static:
            assert self.limit is not None
            if first:
                self._reserve(model, self.limit, hidden)
                self._lengths = torch.zeros(rows, dtype=torch.long, device=hidden.device)
                self._seen = torch.zeros((), dtype=torch.long, device=hidden.device)
                if hidden.device.type == "cuda":
                    torch._dynamo.mark_static_address(self._lengths)
                    torch._dynamo.mark_static_address(self._seen)
                if tokens > self.limit:
                    raise UserError(_beyond(tokens, self.limit))
            else:
                window = self.limit
        else:
            past = self.seen
            window = past + tokens
            self._reserve(model, window, hidden)
            if real is not None and self._lengths is None:
                self._lengths = torch.full((rows,), past, dtype=torch.long, device=hidden.device)
        new = torch.arange(tokens, device=hidden.device)
        if self._lengths is not None and not first:
            positions = self._lengths[:, None] + new
        rotary = Rotary.of(model.model_config, past + new[None] if positions is None else positions, hidden.dtype)
        return Step(rotary, first, past, positions, real, window, self.capacity, self.static)

    def advance(self, step: Step, rows: int, tokens: int) -> None:
        """Count the tokens that all layers hold now."""
        self.rows = rows
        if step.first:  # no gradient flows through a cache
            for layer in self.layers:
                layer.fixed = tuple(part.detach() for part in layer.fixed)
        self._seen += tokens
        if self._lengths is not None:
            self._lengths += tokens if step.real is None else step.real.sum(dim=1)

    def select_rows(self, rows: Tensor) -> None:
        """Reorder rows: row i becomes row rows[i], int64 [R']."""
        self.rows = len(rows)
        for layer in self.layers:
            layer.select_rows(rows)
        if self._lengths is not None:
            selected = self._lengths.index_select(0, rows.to(self._lengths.device))
            self._lengths = self._lengths.copy_(selected) if selected.shape == self._lengths.shape else selected

    def crop(self, tokens: int) -> None:
        """Remove the last `tokens` tokens of every row.

        Raises:
            ValueError: a layer keeps sums, from which nothing can be removed.
        """
        if not tokens:
            return
        if not self.croppable:
            raise ValueError("a layer keeps sums, from which no token can be taken back: decode without assistance")
        self._seen -= tokens
        if self._lengths is not None:
            self._lengths -= tokens

    def _reserve(self, model: "Decoder", tokens: int, hidden: Tensor) -> None:
        if tokens <= self.capacity:
            return
        if self.limit is not None and tokens > self.limit:
            raise UserError(_beyond(tokens, self.limit))
        check_length(model, tokens)
        bounds = [self.limit] if self.limit is not None else []
        if model.streams:
            bounds.append(model.model_config.max_position_embeddings)
        self.capacity = min(-(-tokens // BLOCK) * BLOCK, *bounds) if bounds else -(-tokens // BLOCK) * BLOCK
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_empty):
            model.prepare(self.layers, self.capacity, hidden)


def fixed_length(config: ModelConfig, tokens: int) -> int:
    """Return how many tokens of the fixed streams to compute for `tokens`: the next power of two, within bounds."""
    return min(config.max_position_embeddings, max(BLOCK, 1 << (tokens - 1).bit_length()))


def _beyond(tokens: int, limit: int) -> str:
    return f"a sequence of {tokens} tokens is beyond the cache's {limit}: make one with a higher limit"
