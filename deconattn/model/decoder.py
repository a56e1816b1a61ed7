"""Decoder stack: embedding, blocks, final norm, and the fixed streams that ride along as extra rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deconattn.layers.config import ModelConfig
from deconattn.layers.norm import residual_norm
from deconattn.layers.rotary import Rotary
from deconattn.mixers import FixedStream, LayerCache, MixerContext
from deconattn.model.block import Block
from deconattn.model.decoding_cache import DecodingCache, fixed_length
from deconattn.model.streams import Streams, check_length
from deconattn.ops.documents import Documents

Observer = Callable[[Block, Tensor, Tensor | None, MixerContext | None], None]
"""Callback with the inputs of each layer: hidden states, static embeddings, and no context in a cached pass."""


class SequenceRanks(Protocol):
    """Ranks that share each sequence, as a decoder sees them (:class:`deconattn.mixers.exchange.ContextRanks`)."""

    rank: int
    size: int

    def context(self, *arguments: Any) -> MixerContext:
        """Return the context of this rank's part."""


class Decoder(nn.Module):
    """Token ids [B, L] -> hidden states [B, L, hidden_size].

    The fixed stream of `rndemb` and `fixedseq` is appended to the batch after embedding, passes every block
    like data, and is dropped after the last layer that reads it. Buffers, where a layer needs them:
    `fixed_embeddings` [max_position_embeddings, hidden_size] (random) and `fixed_ids` int64
    [max_position_embeddings] (text); :func:`deconattn.model.init.initialize` fills them.

    Args:
        span: the layers to hold, all by default. The embedding comes with the first, the final norm with the last;
            `layers` is None where another pipeline stage holds the layer, so that names do not depend on the span.
    """

    activation_checkpointing: bool
    fixed_embeddings: Tensor
    fixed_ids: Tensor

    def __init__(self, config: ModelConfig, span: range | None = None) -> None:
        super().__init__()
        self.build(config, span)

    def build(self, config: ModelConfig, span: range | None) -> None:
        """Build the modules; apart from the constructor for classes that are another framework's module as well."""
        self.model_config = config
        self.span = range(config.num_hidden_layers) if span is None else span
        self.is_first, self.is_last = self.span.start == 0, self.span.stop == config.num_hidden_layers
        self.activation_checkpointing = False
        self.local_sequence: Callable[[Tensor], Tensor] = _whole
        # Those that share each sequence: tokens are this rank's part of it then, positions and documents its own still.
        self.context_ranks: SequenceRanks | None = None

        streams = Streams.of(config.layer_variants)
        self.streams: list[FixedStream] = list(streams.fixed)
        self.last_fixed_layer, self.last_static_layer = streams.last_fixed_layer, streams.last_static_layer

        if self.is_first:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
            length = config.max_position_embeddings
            if "random" in self.streams:
                self.register_buffer("fixed_embeddings", torch.zeros(length, config.hidden_size))
            if "text" in self.streams:
                self.register_buffer("fixed_ids", torch.zeros(length, dtype=torch.long))
        self.layers = nn.ModuleList(
            Block(config, variant) if index in self.span else None  # type: ignore[misc]
            for index, variant in enumerate(config.layer_variants)
        )
        if self.is_last:
            self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        document_offsets: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states [B, L, d] of int64 [B, L]; this stack must hold all layers.

        Both or neither of `position_ids` and `document_ids`, int64 [B, L]: mixing stays within a document. With them
        `document_offsets`, int32 [n], spare a wait for the device (:class:`~deconattn.ops.documents.Documents`).

        Raises:
            UserError: L is beyond the fixed stream.
            ValueError: one of the two without the other.
        """
        embeddings, length = self.embed_tokens(input_ids), input_ids.shape[1]
        return self.forward_embedded(embeddings, length, position_ids, document_ids, document_offsets=document_offsets)

    def forward_embedded(
        self,
        embeddings: Tensor,
        length: int,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        observe: Observer | None = None,
        document_offsets: Tensor | None = None,
    ) -> Tensor:
        """Run :meth:`forward` on token embeddings [B, L, d]."""
        hidden = self.with_streams(embeddings, length)
        static = hidden if self.last_static_layer >= 0 else None
        context = self.context(length, hidden, position_ids, document_ids, document_offsets)
        hidden, _ = self.run(hidden, static, context, observe)
        # The streams' rows are gone: this stack holds the last layer that reads them.
        return residual_norm(self.norm, hidden)[1]

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embed tokens and append the fixed streams' rows: [B, L] -> [R, L, d]."""
        return self.with_streams(self.embed_tokens(input_ids), input_ids.shape[1])

    def with_streams(self, embeddings: Tensor, length: int) -> Tensor:
        """Append the fixed streams' rows: [B, L, d] -> [R, L, d]."""
        check_length(self, self.whole_length(length))
        rows = [embeddings, *self.stream_rows(length, embeddings)]
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def stream_rows(self, length: int, like: Tensor) -> Iterator[Tensor]:
        """Yield the fixed streams' first `length` tokens, or this rank's of them: [1, L, d] each, as `like` is."""
        start = self.context_ranks.rank * length if self.context_ranks else 0
        here = slice(start, start + length)
        for stream in self.streams:
            if stream == "random":
                yield self.local_sequence(self.fixed_embeddings[None, here].to(like))
            else:
                yield self.embed_tokens(self.fixed_ids[None, here]).to(like)

    def whole_length(self, length: int) -> int:
        """Return the tokens of a whole sequence of which this rank has so many."""
        return length * self.context_ranks.size if self.context_ranks else length

    def context(
        self,
        length: int,
        like: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        document_offsets: Tensor | None = None,
    ) -> MixerContext:
        """Return the span's first context; `like` gives device and dtype.

        `length` is of this rank's part of sequences, before sequence parallelism cuts it, the rest of whole ones.
        """
        if (position_ids is None) != (document_ids is None):
            raise ValueError("position_ids and document_ids go together: give both, or neither")
        streams = self.streams if self.span.start <= self.last_fixed_layer else []
        positions = torch.arange(self.whole_length(length), device=like.device)[None]
        documents = None
        if position_ids is not None and document_ids is not None:
            documents = Documents(document_ids, position_ids, document_offsets)
            documents = documents.and_rows_of_one(positions.expand(len(streams), -1))
            positions = documents.position_ids
        fixed_rows = {stream: index - len(streams) for index, stream in enumerate(streams)}

        rotary = partial(Rotary.of, self.model_config, dtype=like.dtype)
        if self.context_ranks is not None:
            return self.context_ranks.context(rotary, positions, documents, fixed_rows)
        return MixerContext(rotary(positions), documents, fixed_rows)

    @property
    def blocks(self) -> list[Block]:
        """Layers of the span."""
        return [self.layers[index] for index in self.span]  # type: ignore[misc]

    def extend(self, input_ids: Tensor, cache: DecodingCache, real: Tensor | None = None) -> Tensor:
        """Return hidden states [B, T, d] of tokens that continue the cache; this stack must hold all layers.

        Args:
            real: bool [B, T], false where a token is padding, which comes after the row's real ones; None: nowhere.

        Raises:
            UserError: the tokens go beyond the cache, or beyond the fixed stream.
        """
        return self.extend_embedded(self.embed_tokens(input_ids), cache, real)

    def extend_embedded(
        self, hidden: Tensor, cache: DecodingCache, real: Tensor | None = None, observe: Observer | None = None
    ) -> Tensor:
        """Run :meth:`extend` on token embeddings [B, T, d]."""
        step = cache.begin(self, hidden, real)
        static = hidden if self.last_static_layer >= 0 else None
        for layer, layer_cache in zip(self.blocks, cache.layers, strict=True):
            if observe is not None:
                observe(layer, hidden, static, None)
            hidden = layer(hidden, static, step, layer_cache)
        cache.advance(step, *hidden.shape[:2])
        return self.norm(hidden)

    def prepare(self, caches: Sequence[LayerCache], length: int, like: Tensor) -> None:
        """Run the fixed streams' first `length` tokens or more; each layer's part goes to its cache's `fixed`.

        It is kept nowhere else: whatever changes what a pass computes (weights, adapters, hooks, modules, buffers,
        dtypes) is in the next cache.

        Args:
            like: [.., d], of the device and dtype of token embeddings.
        """
        if not self.streams:
            return
        length = fixed_length(self.model_config, length)
        hidden = self.with_streams(like.new_empty(0, length, like.shape[-1]), length)
        static = hidden if self.last_static_layer >= 0 else None
        context = self.context(length, hidden)
        for index, (layer, layer_cache) in enumerate(zip(self.blocks, caches, strict=True)):
            if index < self.last_fixed_layer:
                hidden = layer(hidden, static, context, layer_cache)
            elif index == self.last_fixed_layer:
                layer(hidden, static, replace(context, output_rows=0), layer_cache)

    def run(
        self, hidden: Tensor, static: Tensor | None, context: MixerContext, observe: Observer | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layers of the span; return hidden states and static embeddings, without rows that nobody reads."""
        for index in self.span:
            layer: Block = self.layers[index]  # type: ignore[assignment]
            batch = hidden.shape[0] - len(context.fixed_rows)  # len of a tensor would be a constant to torch.export
            if index == self.last_fixed_layer:  # nobody reads what the streams' rows would become
                context = replace(context, output_rows=batch)
            if observe is not None:
                observe(layer, hidden, static, context)
            hidden = self.run_layer(layer, hidden, static, context)
            if index == self.last_fixed_layer:
                context = context.rows(batch)
                static = None if static is None else static[:batch]
        return hidden, static

    def run_layer(self, layer: Block, *inputs: Any) -> Tensor:
        """Call one layer; with activation checkpointing the backward pass computes again what it needs."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


def _whole(sequence: Tensor) -> Tensor:
    """Return all of a [R, L, d]; sequence parallelism replaces this with a function that takes the rank's part."""
    return sequence
