"""Matrix products at a CPU's full width.

PyTorch hands fp32 products on a CPU to MKL, which on AMD processors uses half of the vector units' width; oneDNN,
which PyTorch carries too, uses all of it: 350 against 180 GFLOP/s on two cores (benchmarks/LOG.md). On Intel's, where
MKL is a tenth faster, elsewhere, and in every other dtype, these are PyTorch's own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.nn.functional import linear as pytorch_linear

WORTHWHILE = 2 ** (62 if "Intel" in str(getattr(torch.cpu, "get_capabilities", dict)()) else 20)
"""Multiplications from which oneDNN's higher cost of a call is repaid."""
NARROW = 64
"""A weight with a side of so much or less is PyTorch's: oneDNN takes up to twice as long for its gradient."""


def matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """[N, m, k] @ [N, k, n] -> [N, m, n] (or without N), not differentiable.

    Fastest where `left` is contiguous and `right` contiguous or transposed, and in fp32 on a CPU where N is 1.

    Args:
        out: where PyTorch may put the product; oneDNN gives a tensor of its own.
    """
    if left.ndim == 3 and len(left) == 1:
        return matmul(left[0], right[0])[None]
    if left.ndim == 2 and _for_onednn(left, left.shape[0] * right.numel()) and _dense(left) and _dense(right):
        return _onednn(left, right.T)
    # torch.matmul would copy a batch that is a slice of a longer one.
    return torch.mm(left, right, out=out) if left.ndim == 2 else torch.bmm(left, right, out=out)


def scaled_matmul(left: Tensor, right: Tensor, scale: float, out: Tensor) -> Tensor:
    """scale * left @ right, [N, m, k] @ [N, k, n], rounded once; `out` as in :func:`matmul`."""
    if scale == 1:
        return matmul(left, right, out)
    return torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def add_matmul(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add left @ right, [m, k] @ [k, n], to total [m, n], in place where it is not oneDNN's product."""
    if _for_onednn(left, left.shape[0] * right.numel()):
        return total.add_(matmul(left, right))
    return total.addmm_(left, right)


def ignores_out(left: Tensor) -> bool:
    """Whether large products of `left` come in tensors of their own."""
    return _for_onednn(left, 2**60)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """inputs @ weight^T + bias: [.., k], [n, k], [n] -> [.., n]."""
    # For a single vector it is not the multiplications that count but the weight's way from memory: there oneDNN takes
    # half of MKL's time from 1 MiB on.
    work = max(inputs.numel() * weight.shape[0], 4 * weight.numel())
    plain = type(weight) in (Tensor, Parameter)  # a quantized or a sharded weight has products of its own
    narrow = min(weight.shape) <= NARROW
    if narrow or not plain or not _for_onednn(inputs, work) or torch.compiler.is_compiling():
        return pytorch_linear(inputs, weight, bias)
    if not torch.is_grad_enabled():  # an autograd function costs ten microseconds even then
        return _onednn(inputs.contiguous(), weight, bias)
    return _Linear.apply(inputs, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.has_bias = bias is not None
        return _onednn(inputs.contiguous().flatten(0, -2), weight, bias).unflatten(0, inputs.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        rows = grad.contiguous().flatten(0, -2)
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _onednn(rows, weight.T).view(inputs.shape) if needs_inputs else None,
            _onednn(rows.T, inputs.contiguous().flatten(0, -2).T) if needs_weight else None,
            rows.sum(dim=0) if ctx.has_bias and needs_bias else None,
        )


def _for_onednn(operand: Tensor, multiplications: int) -> bool:
    return (
        multiplications >= WORTHWHILE
        and not torch.is_autocast_enabled("cpu")  # which knows nothing of oneDNN's operator
        and operand.dtype == torch.float32
        and operand.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _dense(matrix: Tensor) -> bool:
    """Contiguous, or the transpose of what is: with any other strides oneDNN takes a hundred times longer."""
    return matrix.is_contiguous() or matrix.T.is_contiguous()


def _onednn(left: Tensor, right_transposed: Tensor, bias: Tensor | None = None) -> Tensor:
    """left @ right_transposed^T + bias."""
    return torch.ops.mkldnn._linear_pointwise(left, right_transposed, bias, "none", [], "")
