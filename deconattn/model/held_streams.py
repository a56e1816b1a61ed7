"""Fixed streams held over the micro-batches of an optimiser step: they depend on the weights, which do not change.

Beside each micro-batch the streams' rows would be the same every time. At a micro-batch of one sequence a model of
`fixedseq` in all layers would nearly double its work by them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deconattn.layers.config import ModelConfig
from deconattn.mixers import LayerCache, MixerContext, Workload, mixer_class
from deconattn.mixers.exchange import exchange_of
from deconattn.model.block import Block
from deconattn.model.decoder import Decoder
from deconattn.model.streams import Streams, check_length, is_ours, shares_fixed_part
from deconattn.ops.precision import at_least_fp32

LARGEST_SHARE = 0.1
"""Share of a GPU's memory that what is held may take; where it is more, the streams run beside each micro-batch."""


class HeldStreams:
    """Fixed streams of one optimiser step, which run twice in it, whatever the number of micro-batches.

    The first micro-batch runs them without a graph and holds what the layers read of them: queries and keys, of a
    third party's mixer the row that its layer gets. In all micro-batches but the last these are leaves, whose gradients
    are summed in fp32. The last one runs the streams again, with a graph, and adds the sums to the gradient of what its
    layers read: so the streams' backward pass is of all micro-batches at once, and is a part of the last one's, in
    which each weight has one gradient.

    All of a step's micro-batches must have one sequence length. Of a single one there is nothing to hold.

    Attributes:
        last: the next micro-batch is the step's last; to be set before it.
    """

    def __init__(self) -> None:
        self.last = False
        self._held: dict[int, tuple[Tensor, ...]] = {}
        self._sums: dict[int, tuple[_Sum, ...]] = {}

    def __call__(
        self,
        decoder: Decoder,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        document_offsets: Tensor | None = None,
    ) -> Tensor:
        """Compute what the decoder's `forward` would; the decoder must hold all layers."""
        batch, length = input_ids.shape
        check_length(decoder, decoder.whole_length(length))
        hidden = decoder.embed_tokens(input_ids)
        static = hidden if decoder.last_static_layer >= 0 else None
        context = decoder.context(length, hidden, position_ids, document_ids, document_offsets)
        alone = context.rows(batch)
        # All streams have the same positions: the first one's place serves for each.
        beside = {
            stream: replace(context.rows(batch + 1), fixed_rows={stream: -1}, output_rows=batch)
            for stream in decoder.streams
        }
        running = _Running(decoder, length, hidden, self.last) if self.last or not self._held else None
        for index, layer in enumerate(decoder.blocks):
            stream = layer.self_attn.fixed_stream
            if running is not None and index <= decoder.last_fixed_layer:
                self._receive(index, running.through(index, layer))
            if stream is None:
                hidden = decoder.run_layer(layer, hidden, static, alone)
            elif shares_fixed_part(type(layer.self_attn)):
                hidden = decoder.run_layer(layer, hidden, static, replace(alone, fixed=self._held[index]))
            else:
                row, *static_row = self._held[index]
                statics = static if static is None or not static_row else torch.cat([static, *static_row])
                hidden = decoder.run_layer(layer, torch.cat([hidden, row]), statics, beside[stream])
        if self.last:
            self._held, self._sums = {}, {}
        return decoder.norm(hidden)

    def _receive(self, index: int, parts: tuple[Tensor, ...]) -> None:
        """Hold what a layer reads: leaves before the last micro-batch, in it the graph's with the sums behind them."""
        if not self.last:
            self._held[index] = tuple(part.detach().requires_grad_() for part in parts)
            self._sums[index] = tuple(_Sum(leaf) for leaf in self._held[index])
        elif parts:
            sums = (one.total for one in self._sums[index])
            pairs = zip(parts, sums, strict=True)
            self._held[index] = tuple(p if total is None else _AddGradient.apply(p, total) for p, total in pairs)


class _Sum:
    """Sum of the gradients that reach a leaf, at least in fp32; they do not stay with the leaf."""

    def __init__(self, leaf: Tensor) -> None:
        self.total: Tensor | None = None
        leaf.register_post_accumulate_grad_hook(self._add)

    def _add(self, leaf: Tensor) -> None:
        assert leaf.grad is not None
        if self.total is None:
            self.total = at_least_fp32(leaf.grad)
        else:
            self.total.add_(leaf.grad)
        leaf.grad = None


class _AddGradient(torch.autograd.Function):
    """Identity, whose backward pass adds a tensor to the gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, more: Tensor) -> Tensor:
        ctx.more = more
        return part.view_as(part)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        more, ctx.more = ctx.more, None
        return (grad + more).to(grad.dtype), None


class _Running:
    """Streams on their way through the layers, by themselves.

    Args:
        length: tokens of a sequence, or of this rank's part of it.
        like: token embeddings, of the device and dtype to have.
        graph: they are to be differentiated.
    """

    def __init__(self, decoder: Decoder, length: int, like: Tensor, graph: bool) -> None:
        self._decoder, self._graph = decoder, graph
        with torch.set_grad_enabled(graph):
            self._rows = torch.cat([*decoder.stream_rows(length, like)])
            if graph and not self._rows.requires_grad:
                self._rows.requires_grad_()  # ZeRO-3 frees a layer's weights when its input's gradient is there
        self._static = self._rows if decoder.last_static_layer >= 0 else None
        self._context = decoder.context(length, self._rows)

    def through(self, index: int, layer: Block) -> tuple[Tensor, ...]:
        """Go through a layer; return what it reads of the streams, nothing if it reads none."""
        mixer, cache, context = layer.self_attn, None, self._context
        with torch.set_grad_enabled(self._graph):
            parts: tuple[Tensor, ...] = ()
            if mixer.fixed_stream is not None and shares_fixed_part(type(mixer)):
                cache = LayerCache()
            elif mixer.fixed_stream is not None:
                row = context.fixed_rows[mixer.fixed_stream]
                sources = (self._rows, self._static) if mixer.needs_static_embeddings else (self._rows,)
                parts = tuple(source[row].unsqueeze(0) for source in sources if source is not None)
            if index < self._decoder.last_fixed_layer:
                self._rows = self._decoder.run_layer(layer, self._rows, self._static, context, cache)
            elif cache is not None:  # nobody reads what the rows would become
                self._decoder.run_layer(layer, self._rows, self._static, replace(context, output_rows=0), cache)
            return parts if cache is None else cache.fixed


class StreamTrial:
    """Trial whether the fixed streams depend on the weights alone: they must be the same beside every batch.

    What draws random numbers, or lets rows of a batch meet, on the streams' way makes them another each time. It runs
    the decoder as :class:`HeldStreams` does; `differs` tells after two passes over different batches.
    """

    def __init__(self) -> None:
        self._seen: list[list[Tensor]] = []

    def __call__(self, decoder: Decoder, input_ids: Tensor, *documents: Tensor | None) -> Tensor:
        seen: list[Tensor] = []
        self._seen.append(seen)

        def note(layer: Block, hidden: Tensor, static: Tensor | None, context: MixerContext | None) -> None:
            if context is not None and context.fixed_rows:
                seen.append(hidden[-len(context.fixed_rows) :].clone())

        position_ids, document_ids, offsets = documents or (None, None, None)
        embeddings = decoder.embed_tokens(input_ids)
        return decoder.forward_embedded(
            embeddings, input_ids.shape[1], position_ids, document_ids, observe=note, document_offsets=offsets
        )

    @property
    def differs(self) -> bool:
        """Whether the streams were another in the second pass, by more than what rounding comes to."""
        one, other = self._seen
        return any(_differ(a.double(), b.double(), a.dtype) for a, b in zip(one, other, strict=True))


def _differ(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    return not (one - other).norm() <= 100 * torch.finfo(dtype).eps * one.norm()


def must_be_tried(variants: Sequence[str]) -> bool:
    """Whether somebody else's mixer is on the streams' way: ours read weights and the stream, and draw nothing."""
    return not all(is_ours(mixer_class(variant)) for variant in variants[: Streams.of(variants).last_fixed_layer + 1])


def held_bytes(config: ModelConfig, length: int, bytes_per_element: int, tp_size: int = 1, cp_size: int = 1) -> int:
    """Bytes that a step holds of the fixed streams on one rank: what the layers read, and the sum of its gradients.

    Args:
        length: tokens of whole sequences.
        bytes_per_element: of the activations.
        tp_size: tensor-parallel ranks, which share queries and keys.
        cp_size: ranks that share each sequence: each has its part of a stream, or of its heads.
    """
    total = 0
    work = Workload(1, length, bytes_per_element, tp_size)
    for variant in config.layer_variants:
        mixer = mixer_class(variant)
        a_layer = mixer.decoding.fixed_bytes(mixer, config, length, bytes_per_element + max(4, bytes_per_element))
        shared = shares_fixed_part(mixer)
        whole = shared and exchange_of(mixer).gathers(mixer, config, work, cp_size)
        total += a_layer // (tp_size if shared else 1) // (1 if whole else cp_size)
    return total
