"""Linear layer of all modules, and several of one input."""

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.module import _has_any_global_hook

from deconattn.ops.linears import linears
from deconattn.ops.matmul import linear


class Linear(nn.Linear):
    """nn.Linear, with products at a CPU's full width (:mod:`deconattn.ops.matmul`)."""

    def forward(self, inputs: Tensor) -> Tensor:
        return linear(inputs, self.weight, self.bias)


def project(inputs: Tensor, *groups: tuple[nn.Module, ...]) -> tuple[Tensor, ...]:
    """Apply linear layers to one input, [.., k] -> [.., n] each: on a GPU in training as one operation.

    Elsewhere, and where a layer is not to be bypassed (:func:`is_plain`), each is called. So it is under
    torch.compile, too, which adds up gradients within the products by itself, and could join weights by copies only.

    Args:
        groups: layers whose outputs may be views of one tensor: what is kept of one keeps all.
    """
    layers = [layer for group in groups for layer in group]
    if not _is_step(inputs) or not all(is_plain(layer) for layer in layers):
        return tuple(layer(inputs) for layer in layers)
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    return linears(inputs, weights, biases, [len(group) for group in groups])  # type: ignore[arg-type]


def is_plain(layer: nn.Module) -> bool:
    """Whether calling a layer does no more than its product: one of ours, without hooks, or tensors of another kind.

    Hooks are also what gathers weights that ZeRO-3 or FSDP has cut; quantised and adapted layers are other classes.
    """
    # Hooks first: merely to look at a weight that ZeRO-3 has cut may gather it.
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    if type(layer) is not Linear or hooked or _has_any_global_hook() or "forward" in vars(layer):
        return False
    return type(layer.weight) is Parameter and type(layer.bias) in (Parameter, type(None))


def _is_step(inputs: Tensor) -> bool:
    """Whether this is an eager training step on a GPU, in the layers' own dtype."""
    if not inputs.is_cuda or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return not torch.is_autocast_enabled("cuda")
