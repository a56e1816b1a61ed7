"""SwiGLU as a kernel a pass: gate and up are read once and the product written, 3 b bytes an element of b bytes.

Backward gate, up and the product's gradient are read and two gradients written, 5 b. PyTorch's operations move 5 b
and 9 b. All is computed in fp32 and rounded once.
"""

from functools import partial

import torch
import triton
from torch import Tensor

from deconattn.ops import swiglu as plain
from deconattn.ops.kernels.fallback import Attempts
from deconattn.ops.kernels.gpu import launch_options
from deconattn.ops.kernels.swiglu_programs import backward_kernel, forward_kernel
from deconattn.ops.kernels.tensor_layout import unit_stride

BLOCK = 1024
"""Columns of a program: 8 a thread, a load of 16 bytes in 16-bit types."""
WARPS = 4
_ATTEMPTS = Attempts("SwiGLU")
# Not custom_op: its layers of Python cost 50 microseconds a call more, and autograd is the caller's.
_LIBRARY = torch.library.Library("deconattn", "FRAGMENT")
_LIBRARY.define("swiglu(Tensor gate, Tensor up) -> Tensor")
_LIBRARY.define("swiglu_backward(Tensor grad, Tensor gate, Tensor up) -> Tensor")


@torch.library.impl(_LIBRARY, "swiglu", "CompositeExplicitAutograd")
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    found = _ATTEMPTS.tried(partial(forward, gate, up), gate)
    return plain.plain_swiglu(gate, up) if found is None else found


@torch.library.impl(_LIBRARY, "swiglu_backward", "CompositeExplicitAutograd")
def _swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    found = _ATTEMPTS.tried(partial(backward, grad, gate, up), gate)
    return torch.cat(plain.plain_gradients(grad, gate, up), dim=-1) if found is None else found


@torch.library.register_fake("deconattn::swiglu")
def _empty_output(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.register_fake("deconattn::swiglu_backward")
def _empty_gradients(grad: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(*gate.shape[:-1], 2 * gate.shape[-1])


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, [.., w] each, contiguous."""
    gates, ups = _rows(gate), _rows(up)
    rows, width = gates.shape
    output = _empty_output(gate, up)
    block, blocks = _blocks(width)
    with torch.cuda.device_of(gate):
        forward_kernel[(rows * blocks,)](
            gates, ups, output, gates.stride(0), ups.stride(0), width, blocks, BLOCK=block, **launch_options(WARPS)
        )
    return output


def backward(grad: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """Gradients of gate and up side by side, [.., 2 w], contiguous."""
    grads, gates, ups = _rows(grad), _rows(gate), _rows(up)
    rows, width = gates.shape
    joined = _empty_gradients(grad, gate, up)
    of_gate, of_up = joined.view(rows, 2 * width).chunk(2, dim=1)
    block, blocks = _blocks(width)
    with torch.cuda.device_of(gate):
        backward_kernel[(rows * blocks,)](
            grads, gates, ups, of_gate, of_up,
            grads.stride(0), gates.stride(0), ups.stride(0), 2 * width, width, blocks,
            BLOCK=block, **launch_options(WARPS),
        )  # fmt: skip
    return joined


def _rows(tensor: Tensor) -> Tensor:
    """[.., w] as rows whose columns are neighbours: a view, where the tensor is a part of a product's columns."""
    return unit_stride(tensor).flatten(0, -2)


def _blocks(width: int) -> tuple[int, int]:
    """Columns of a program, and programs of a row."""
    block = min(BLOCK, triton.next_power_of_2(width))
    return block, triton.cdiv(width, block)
