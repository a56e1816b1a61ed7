"""An operation that keeps nothing but its inputs for the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def recomputed(function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """function(*inputs), which is computed again in the backward pass and differentiated there.

    Unlike `torch.utils.checkpoint`, what is kept is saved as autograd's own operations save it, and can be counted.

    Args:
        function: computes a tensor from the inputs alone: what else it reads gets no gradient.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*inputs)
    return _Recomputed.apply(function, *inputs)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [
            one.detach().requires_grad_() if wanted else one
            for one, wanted in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad():
            output = ctx.function(*inputs)
        wanted = [one for one, need in zip(inputs, needed, strict=True) if need]
        found = iter(torch.autograd.grad(output, wanted, grad, allow_unused=True))
        return None, *(next(found) if need else None for need in needed)
