"""SiLU(gate) * up of a feed-forward block, of which nothing but gate and up is kept for the backward pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from deconattn.ops.backend import fused


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, [.., w] each.

    SiLU is computed again in the backward pass: a product more, and a tensor less to write and to keep. On a GPU each
    pass is one kernel, and the two gradients come side by side, for one product (:mod:`deconattn.ops.linears`).
    torch.compile, which makes one kernel of the formula itself, gets the formula.
    """
    plain = torch.compiler.is_compiling() or not torch.is_grad_enabled() or gate.dtype != up.dtype
    return silu(gate) * up if plain else _SwiGLU.apply(gate, up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.ops.deconattn.swiglu(gate, up) if fused(gate) else plain_swiglu(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        if not fused(gate):
            return plain_gradients(grad, gate, up)
        joined = torch.ops.deconattn.swiglu_backward(grad, gate, up)
        of_gate, of_up = joined.chunk(2, dim=-1)
        return of_gate, of_up


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """:func:`swiglu` by PyTorch's operations, not differentiable."""
    return silu(gate).mul_(up)


def plain_gradients(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up by PyTorch's operations, those that autograd takes of the formula."""
    of_silu = grad * up
    of_gate = torch.ops.aten.silu_backward.grad_input(of_silu, gate, grad_input=of_silu)
    return of_gate, silu(gate).mul_(grad)
