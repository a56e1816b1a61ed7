"""Hidden states of sequences at one depth, which move up layer by layer: what a layer reads and what it gives."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from deconattn.layers.norm import residual_norm
from deconattn.mixers import FixedStream, Mixer, MixerContext
from deconattn.model.decoder import Decoder
from deconattn.surgery.subject import Subject

BATCH = 4
"""Sequences that pass a layer together."""
Inputs = tuple[Tensor, Tensor | None, MixerContext]
"""Arguments of a mixer's forward pass."""


class Activations:
    """Hidden states of sequences and of fixed streams before one layer of the model, which is never changed.

    In memory are [N, L, d] of this one depth, whatever the model's. Streams pass once for all sequences.

    Args:
        ids: int64 [N, L].
    """

    def __init__(self, subject: Subject, ids: Tensor) -> None:
        self.subject, self.ids, self.layer = subject, ids, 0
        self.names: tuple[FixedStream, ...] = tuple(subject.streams)
        with torch.no_grad():
            self.hidden = torch.cat([subject.embed(batch) for batch in ids.split(BATCH)])
            self.stream_embeddings = subject.stream_rows(self.names)
        self.streams = self.stream_embeddings

    def advance(self, check: Callable[[], object] = lambda: None) -> None:
        """Move up by one layer; `check` is called before each batch, and what it raises leaves this in no order."""
        subject, block = self.subject, self.subject.decoder.blocks[self.layer]
        static = block.self_attn.needs_static_embeddings
        with torch.no_grad():
            carried = self.carried(block.self_attn)
            for batch in range(0, len(self.ids), BATCH):
                check()
                rows = slice(batch, batch + BATCH)
                hidden = self.hidden[rows]
                context = subject.context(carried, len(hidden))
                embedded = self._with_streams(subject.embed(self.ids[rows]), carried, True) if static else None
                self.hidden[rows] = block(self._with_streams(hidden, carried), embedded, context)
            if self.names:
                context = subject.context(self.names)
                self.streams = block(self.streams, self.stream_embeddings if static else None, context)
        self.layer += 1

    def inputs(self, rows: slice | Tensor, mixer: Mixer) -> Inputs:
        """Return what a mixer in this layer's place reads for some sequences, through the layer's own input norm."""
        block, carried = self.subject.decoder.blocks[self.layer], self.carried(mixer)
        with torch.no_grad():
            hidden = self.hidden[rows]
            static = None
            if mixer.needs_static_embeddings:
                embedded = self._with_streams(self.subject.embed(self.ids[rows]), carried, True)
                static = block.input_layernorm(embedded)
            normed = residual_norm(block.input_layernorm, self._with_streams(hidden, carried))[1]
        return normed, static, self.subject.context(carried, len(hidden))

    def outputs(self) -> Tensor:
        """Return what the layer's own mixer gives, [N, L, d]."""
        mixer = self.subject.mixer(self.layer)
        with torch.no_grad():
            parts = [mixer(*self.inputs(rows, mixer))[: len(self.hidden[rows])] for rows in self.batches()]
        return torch.cat(parts)

    def batches(self) -> Iterator[slice]:
        """Yield the sequences, some at a time."""
        for first in range(0, len(self.ids), BATCH):
            yield slice(first, min(first + BATCH, len(self.ids)))

    def finished(self, part: Decoder, rows: slice) -> Tensor:
        """Run sequences through layers that begin with this one; return what the head reads, [B, L, d].

        Args:
            part: of :meth:`~deconattn.surgery.subject.Subject.with_mixers`.
        """
        carried: tuple[FixedStream, ...] = tuple(part.streams) if part.last_fixed_layer >= self.layer else ()
        with torch.no_grad():
            hidden = self._with_streams(self.hidden[rows], carried)
            static = None
            if part.last_static_layer >= self.layer:
                static = self._with_streams(self.subject.embed(self.ids[rows]), carried, True)
            hidden, _ = part.run(hidden, static, self.subject.context(carried))
            return residual_norm(part.norm, hidden)[1]

    def carried(self, mixer: Mixer) -> tuple[FixedStream, ...]:
        """Return the streams that a mixer needs beside the sequences."""
        return () if mixer.fixed_stream is None else (mixer.fixed_stream,)

    def _with_streams(self, rows: Tensor, names: tuple[FixedStream, ...], embeddings: bool = False) -> Tensor:
        """Append the streams' rows, at this depth or as they are embedded."""
        source = self.stream_embeddings if embeddings else self.streams
        chosen = [source[self.names.index(name)][None] for name in names]
        return torch.cat([rows, *chosen]) if chosen else rows
