"""RMSNorm in one kernel each way, with the sum before it and, backwards, the sum of the gradients that meet there.

A sum of two tensors and its norm: 8 bytes an element in bf16 forward and 8 backward, in place of 10 and 16 by PyTorch's
own kernels. Kept are the sum and one fp32 number a row.

The operators are registered bare: `torch.library.custom_op` would add 200 microseconds of a slow core each way, as much
as all that PyTorch's own norm and sums cost the host. :mod:`deconattn.ops.rms_norm` differentiates them.
"""

from functools import partial

import torch
import triton
from torch import Tensor

from deconattn.ops.kernels.fallback import Attempts
from deconattn.ops.kernels.gpu import launch_options
from deconattn.ops.kernels.rms_norm_programs import rms_norm_back_kernel, rms_norm_kernel

PROGRAMS = 528
"""Parts that the weight's gradient is summed in: four programs for each of an H100's multiprocessors."""
_ATTEMPTS = Attempts("RMSNorm")
_LIBRARY = torch.library.Library("deconattn", "FRAGMENT")
_LIBRARY.define("rms_norm(Tensor hidden, Tensor weight, float epsilon) -> (Tensor, Tensor)")
_LIBRARY.define("add_rms_norm(Tensor hidden, Tensor branch, Tensor weight, float epsilon) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    "rms_norm_backward(Tensor grad, Tensor? upstream, Tensor summed, Tensor weight, Tensor reciprocals)"
    " -> (Tensor, Tensor)"
)


def _rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    _, normed, reciprocals = _forward(hidden, None, weight, epsilon)
    return normed, reciprocals


def _forward(hidden: Tensor, branch: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    made = _ATTEMPTS.tried(partial(forward, hidden, branch, weight, epsilon), hidden)
    if made is not None:
        return made
    summed = hidden if branch is None else hidden + branch
    precise = summed.float()
    reciprocals = precise.square().mean(dim=-1, keepdim=True).add_(epsilon).rsqrt_()
    return summed, (precise * reciprocals * weight).to(hidden.dtype), reciprocals.flatten()


def _backward(
    grad: Tensor, upstream: Tensor | None, summed: Tensor, weight: Tensor, reciprocals: Tensor
) -> tuple[Tensor, Tensor]:
    made = _ATTEMPTS.tried(partial(backward, grad, upstream, summed, weight, reciprocals), summed)
    if made is not None:
        return made
    each = reciprocals.view(*summed.shape[:-1], 1)
    unit, scaled = summed.float() * each, grad.float() * weight
    leaving = each * (scaled - unit * (scaled * unit).mean(dim=-1, keepdim=True))
    if upstream is not None:
        leaving += upstream
    of_weight = (grad * unit).flatten(0, -2).sum(dim=0)
    return leaving.to(summed.dtype), of_weight.to(weight.dtype)


_LIBRARY.impl("rms_norm", _rms_norm, "CompositeExplicitAutograd")
_LIBRARY.impl("add_rms_norm", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("rms_norm_backward", _backward, "CompositeExplicitAutograd")


def forward(hidden: Tensor, branch: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden + branch, or hidden; its norm; one over its root mean square, fp32 [rows])."""
    width = hidden.shape[-1]
    rows = hidden.numel() // width
    summed = hidden if branch is None else torch.empty_like(hidden)
    normed, reciprocals = torch.empty_like(hidden), hidden.new_empty(rows, dtype=torch.float32)
    with torch.cuda.device_of(hidden):
        rms_norm_kernel[(rows,)](
            hidden, branch, weight, summed, normed, reciprocals, width, epsilon,
            ADDS=branch is not None, **_options(width),
        )  # fmt: skip
    return summed, normed, reciprocals


def backward(
    grad: Tensor, upstream: Tensor | None, summed: Tensor, weight: Tensor, reciprocals: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the sum (of both its parts, and of `hidden` where there was one) and of the weight."""
    width, rows = summed.shape[-1], len(reciprocals)
    rows_each = triton.cdiv(rows, PROGRAMS)
    programs = triton.cdiv(rows, rows_each)
    grad_summed = torch.empty_like(summed)
    parts = summed.new_empty(programs, width, dtype=torch.float32)
    with torch.cuda.device_of(summed):
        rms_norm_back_kernel[(programs,)](
            grad, upstream, summed, weight, reciprocals, grad_summed, parts, rows, width, rows_each,
            ADDS=upstream is not None, **_options(width),
        )  # fmt: skip
    return grad_summed, parts.sum(dim=0).to(weight.dtype)


def _options(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, **launch_options(min(max(block // 256, 1), 16))}
