"""Entrance of cut modules: what enters is gathered, read by column-parallel layers, and its gradient sent back.

Under sequence parallelism a layer's graph keeps this rank's part of its input, and the backward pass gathers it again
(Korthikanti et al. 2023, section 4.2.2): so the whole is nobody's to keep. What is communicated goes on beside the
products that it does not feed: the gathering beside those of the input's gradient, the sum of that gradient over the
ranks beside those of the weights' gradients (as in Megatron's linear layers). All layers that read one input share one
gathering and one sum.

Of a whole tensor that something else reads, too, the gradient takes the usual way (:mod:`.collectives`), and so does
all under torch.compile, which plans for itself what to keep.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from deconattn.ops.linears import input_gradient, outputs, parameter_gradients
from deconattn.parallel.collectives import (
    SEQUENCE,
    Started,
    enter,
    start_all_gather,
    start_all_reduce,
    start_reduce_scatter,
)


def enter_layers(hidden: Tensor, group: ProcessGroup, sequence_parallel: bool, recomputed: bool) -> Tensor:
    """Enter a cut module: [R, L, d] on every rank, from the same or [R, L / tp_size, d], for linear layers to read.

    Args:
        recomputed: the module's forward pass is made again for its backward pass: what it gathers then lives shortly,
            and is kept rather than gathered a third time.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return enter(hidden, group, sequence_parallel)
    exchange = _Exchange(group, sequence_parallel, len(hidden))
    local: Tensor = _Returned.apply(hidden, exchange)
    whole = enter(local, group, sequence_parallel)
    whole.entered = _Entered(local, exchange, sequence_parallel and not recomputed)  # type: ignore[attr-defined]
    return whole


class _Entered:
    """Mark of a whole tensor (:class:`deconattn.layers.linear.Entered`), or of its rows `which`."""

    def __init__(self, local: Tensor, exchange: "_Exchange", keeps_part: bool, which: slice | None = None) -> None:
        self._local, self._exchange, self._keeps_part, self._which = local, exchange, keeps_part, which

    def linears(
        self, whole: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], groups: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """Compute linear layers of the tensor, [.., k] -> [.., n] each."""
        arguments = self._exchange, self._keeps_part, self._which, tuple(groups)
        return _Linears.apply(self._local, whole.detach(), *arguments, *weights, *biases)

    def rows(self, which: slice) -> "_Entered | None":
        """Return the mark of some of the rows; rows of those are read as any tensor is."""
        return _Entered(self._local, self._exchange, self._keeps_part, which) if self._which is None else None


class _Exchange:
    """Communication of one input in one forward and backward pass.

    Args:
        rows: of the input.
    """

    def __init__(self, group: ProcessGroup, sequence_parallel: bool, rows: int) -> None:
        self._group, self._sequence_parallel, self._rows = group, sequence_parallel, rows
        self.readers = 0
        """Operations of the forward pass that read the input."""
        self._read = 0
        self._total: Tensor | None = None
        self._sum: Started | None = None
        self._gathering: Started | None = None
        self._whole: Tensor | None = None

    def gather(self, local: Tensor) -> None:
        """Begin to gather the whole again, unless somebody has."""
        if self._gathering is None and self._whole is None:
            self._gathering = start_all_gather(self._group, local, SEQUENCE)

    def whole(self) -> Tensor:
        """Return what :meth:`gather` gathers, [R, L, d]."""
        if self._gathering is not None:
            self._whole, self._gathering = self._gathering.wait(), None
        assert self._whole is not None
        whole = self._whole
        if self._read == self.readers:
            self._whole = None
        return whole

    def add(self, gradient: Tensor | None, which: slice | None) -> None:
        """Add a reader's gradient, [R', L, d] of the rows `which`; after the last one the sum over ranks begins."""
        self._read += 1
        if gradient is not None:
            if self._total is not None:
                (self._total if which is None else self._total[which]).add_(gradient)
            elif which is None:
                self._total = gradient
            else:
                self._total = gradient.new_zeros(self._rows, *gradient.shape[1:])
                self._total[which] = gradient
        if self._read == self.readers:
            self._start()

    def received(self) -> Tensor | None:
        """Return the gradient of this rank's input, None if nobody had one, and forget the pass."""
        self._start()  # a reader whose outputs nobody used has not come
        received = None if self._sum is None else self._sum.wait()
        self._read, self._sum, self._gathering, self._whole = 0, None, None, None
        return received

    def _start(self) -> None:
        total, self._total = self._total, None
        if total is None:
            return
        if self._sequence_parallel:
            self._sum = start_reduce_scatter(self._group, total, SEQUENCE)
        else:
            self._sum = start_all_reduce(self._group, total)


class _Returned(torch.autograd.Function):
    """Identity whose backward pass, the last of those of an input, returns what the exchange has received."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, exchange: _Exchange) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.exchange = exchange
        return hidden.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        received = ctx.exchange.received()
        if grad is None or received is None:
            return grad if received is None else received, None
        return grad + received, None


class _Linears(torch.autograd.Function):
    """Linear layers of one input, whose gradient goes through the exchange."""

    @staticmethod
    def forward(
        ctx: Any,
        local: Tensor,
        whole: Tensor,
        exchange: _Exchange,
        keeps_part: bool,
        which: slice | None,
        groups: tuple[int, ...],
        *parameters: Tensor | None,
    ) -> tuple[Tensor, ...]:
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        ctx.set_materialize_grads(False)
        ctx.exchange, ctx.keeps_part, ctx.which, ctx.shape = exchange, keeps_part, which, whole.shape
        ctx.save_for_backward(local if keeps_part else whole, *weights)
        ctx.has_bias = [bias is not None for bias in biases]
        exchange.readers += 1
        return outputs(whole, weights, biases, groups)  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, *weights = ctx.saved_tensors
        needs_input, *_ = ctx.needs_input_grad
        needed, exchange = ctx.needs_input_grad[6:], ctx.exchange
        gathers = ctx.keeps_part and any(needed)
        if gathers:
            exchange.gather(kept)
        gradient = input_gradient(grads, weights) if needs_input else None
        exchange.add(None if gradient is None else gradient.view(ctx.shape), ctx.which)
        del gradient  # what is reduced may be a copy, and the whole input comes now
        if gathers:
            kept = exchange.whole() if ctx.which is None else exchange.whole()[ctx.which]
        return None, None, None, None, None, None, *parameter_gradients(grads, kept, needed, ctx.has_bias)
