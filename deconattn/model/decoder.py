"""The stack: embedding, blocks, final norm, and the fixed streams that ride along as extra rows."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deconattn.errors import UserError
from deconattn.mixers import FixedStream, MixerContext, mixer_class
from deconattn.model.block import Block
from deconattn.model.config import ModelConfig
from deconattn.model.rotary import Rotary
from deconattn.ops.documents import Documents


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

    fixed_embeddings: Tensor
    fixed_ids: Tensor

    def __init__(self, config: ModelConfig, span: range | None = None) -> None:
        super().__init__()
        self.config = config
        self.span = range(config.num_hidden_layers) if span is None else span
        self.is_first, self.is_last = self.span.start == 0, self.span.stop == config.num_hidden_layers
        self.activation_checkpointing = False
        self.local_sequence: Callable[[Tensor], Tensor] = _whole

        classes = [mixer_class(variant) for variant in config.layer_variants]
        streams = [mixer.fixed_stream for mixer in classes]
        self.streams: list[FixedStream] = sorted({stream for stream in streams if stream is not None})
        self.last_fixed_layer = max((i for i, stream in enumerate(streams) if stream is not None), default=-1)
        self.last_static_layer = max(
            (i for i, mixer in enumerate(classes) if mixer.needs_static_embeddings), default=-1
        )

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
        self, input_ids: Tensor, position_ids: Tensor | None = None, document_ids: Tensor | None = None
    ) -> Tensor:
        """Of a stack that holds all layers.

        Both or neither of `position_ids` and `document_ids`, int64 [B, L]: mixing stays within a document.

        Raises:
            UserError: L is beyond the fixed stream.
            ValueError: one of the two without the other.
        """
        batch, length = input_ids.shape
        hidden = self.embed(input_ids)
        static = hidden if self.last_static_layer >= 0 else None
        context = self.context(length, hidden, position_ids, document_ids)
        hidden, _ = self.run(hidden, static, context)
        return self.norm(hidden[:batch])

    def embed(self, input_ids: Tensor) -> Tensor:
        """[B, L] -> [R, L, d]: the token embeddings, and the fixed streams' rows after them."""
        length = input_ids.shape[1]
        if self.streams and length > self.config.max_position_embeddings:
            raise UserError(
                f"a sequence of {length} tokens is beyond the fixed stream of "
                f"{self.config.max_position_embeddings}: shorten it, or train with a longer --seq-len"
            )
        rows = [self.embed_tokens(input_ids)]
        for stream in self.streams:
            if stream == "random":
                fixed = self.fixed_embeddings[None, :length].to(rows[0].dtype)
                rows.append(self.local_sequence(fixed))
            else:
                rows.append(self.embed_tokens(self.fixed_ids[None, :length]))
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def context(
        self, length: int, like: Tensor, position_ids: Tensor | None = None, document_ids: Tensor | None = None
    ) -> MixerContext:
        """What the span's first layer may know; `like` gives device and dtype, `length` is the whole sequence's."""
        if (position_ids is None) != (document_ids is None):
            raise ValueError("position_ids and document_ids go together: give both, or neither")
        streams = self.streams if self.span.start <= self.last_fixed_layer else []
        positions = torch.arange(length, device=like.device)[None]
        documents = None
        if position_ids is not None and document_ids is not None:
            extra = len(streams)  # a fixed stream is one document
            positions = torch.cat([position_ids, positions.expand(extra, -1)])
            documents = Documents(torch.cat([document_ids, torch.zeros_like(positions[:extra])]), positions)
        fixed_rows = {stream: index - len(streams) for index, stream in enumerate(streams)}
        return MixerContext(Rotary.of(self.config, positions, like.dtype), documents, fixed_rows)

    def run(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> tuple[Tensor, Tensor | None]:
        """Through the layers of the span: hidden states and static embeddings, without rows that nobody reads."""
        for index in self.span:
            layer, batch = self.layers[index], len(hidden) - len(context.fixed_rows)
            if index == self.last_fixed_layer:  # nobody reads what the streams' rows would become
                context = replace(context, output_rows=batch)
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, static, context, use_reentrant=False)
            else:
                hidden = layer(hidden, static, context)
            if index == self.last_fixed_layer:
                context = context.rows(batch)
                static = None if static is None else static[:batch]
        return hidden, static


def _whole(sequence: Tensor) -> Tensor:
    """What this process keeps of a [R, L, d] that every process has; sequence parallelism puts its own in place."""
    return sequence
