"""Linear layer of all modules, and several of one input."""

import torch
from torch import Tensor, nn

from deconattn.layers.untouched import is_untouched
from deconattn.ops.linears import linears
from deconattn.ops.matmul import linear


class Linear(nn.Linear):
    """nn.Linear, with products at a CPU's full width (:mod:`deconattn.ops.matmul`)."""

    def forward(self, inputs: Tensor) -> Tensor:
        return linear(inputs, self.weight, self.bias)


def project(inputs: Tensor, *groups: tuple[nn.Module, ...]) -> tuple[Tensor, ...]:
    """Apply linear layers to one input, [.., k] -> [.., n] each: on a GPU in training as one operation.

    Elsewhere, and where a layer is not to be bypassed (:mod:`.untouched`), each is called. So it is under
    torch.compile, too, which adds up gradients within the products by itself, and could join weights by copies only.

    Args:
        groups: layers whose outputs may be views of one tensor: what is kept of one keeps all.
    """
    layers = [layer for group in groups for layer in group]
    if not _is_step(inputs) or not all(is_untouched(layer, Linear) for layer in layers):
        return tuple(layer(inputs) for layer in layers)
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    return linears(inputs, weights, biases, [len(group) for group in groups])  # type: ignore[arg-type]


def _is_step(inputs: Tensor) -> bool:
    """Whether this is an eager training step on a GPU, in the layers' own dtype."""
    if not inputs.is_cuda or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return not torch.is_autocast_enabled("cuda")
