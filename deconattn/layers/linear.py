"""Linear layer of all modules, and several of one input."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deconattn.layers.untouched import is_untouched
from deconattn.ops.linears import linears
from deconattn.ops.matmul import linear


class Entered(Protocol):
    """What tensor parallelism hangs on a whole tensor that enters a cut module (:mod:`deconattn.parallel.entrance`).

    Linear layers of the tensor go through it: it knows what to keep for the backward pass, and when to communicate.
    """

    def linears(
        self, whole: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], groups: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """Compute :func:`deconattn.ops.linears.linears` of the tensor."""

    def rows(self, which: slice) -> "Entered | None":
        """Return the same of some of the tensor's rows; None: they are like any other tensor."""


class Linear(nn.Linear):
    """nn.Linear, with products at a CPU's full width (:mod:`deconattn.ops.matmul`)."""

    def forward(self, inputs: Tensor) -> Tensor:
        if (entered := _entered(inputs)) is not None:
            return entered.linears(inputs, [self.weight], [self.bias], [1])[0]
        return linear(inputs, self.weight, self.bias)


class PartedLinear(Linear):
    """Linear layer of several parts, each of which asks for its own outputs: `which`, (start, stop), all by default.

    A part's product is a call of this module, to meet what hangs on it: ZeRO-3 gathers weights by hooks.
    """

    def forward(self, inputs: Tensor, which: tuple[int, int] | None = None) -> Tensor:
        if which is None:
            return super().forward(inputs)
        rows = slice(*which)
        weight, bias = self.weight[rows], None if self.bias is None else self.bias[rows]
        if (entered := _entered(inputs)) is not None:
            return entered.linears(inputs, [weight], [bias], [1])[0]
        return linear(inputs, weight, bias)


def project(inputs: Tensor, *groups: tuple[nn.Module, ...]) -> tuple[Tensor, ...]:
    """Apply linear layers to one input, [.., k] -> [.., n] each: on a GPU in training as one operation.

    Elsewhere, and where a layer is not to be bypassed (:mod:`.untouched`), each is called. So it is under
    torch.compile, too, which adds up gradients within the products by itself, and could join weights by copies only.

    Args:
        groups: layers whose outputs may be views of one tensor: what is kept of one keeps all.
    """
    layers = [layer for group in groups for layer in group]
    entered, on_gpu = _entered(inputs), _is_step(inputs)
    if not (entered or on_gpu) or not all(is_untouched(layer, Linear) for layer in layers):
        return tuple(layer(inputs) for layer in layers)
    weights: list[Any] = [layer.weight for layer in layers]
    biases: list[Any] = [layer.bias for layer in layers]
    sizes = [len(group) for group in groups] if on_gpu else [1] * len(layers)
    return (entered.linears if entered else linears)(inputs, weights, biases, sizes)


def rows(inputs: Tensor, which: slice) -> Tensor:
    """Return inputs[which], [R', L, d] of [R, L, d], for linear layers to read as they read the whole."""
    part = inputs[which]
    if (entered := _entered(inputs)) is not None:
        part.entered = entered.rows(which)  # type: ignore[attr-defined]
    return part


def _entered(inputs: Tensor) -> Entered | None:
    """What hangs on a tensor that enters a cut module, in an eager training step in the layers' own dtype."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    entered: Entered | None = getattr(inputs, "entered", None)
    return None if entered is None or torch.is_autocast_enabled(inputs.device.type) else entered


def _is_step(inputs: Tensor) -> bool:
    """Whether this is an eager training step on a GPU, in the layers' own dtype."""
    if not inputs.is_cuda or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return not torch.is_autocast_enabled("cuda")
