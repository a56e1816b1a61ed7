"""Products of tiles on tensor cores, the same in every kernel."""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl
from triton.language.target_info import is_hip

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Triton's interpreter takes the bits of bf16 for integers, except where it converts from and to fp32."""


@triton.jit
def dot(left, right, total=None):
    """left @ right + total in fp32.

    fp32 operands are multiplied as three TF32 products, good to 2^-21, on NVIDIA's tensor cores, where IEEE's would
    keep to the plain ones; AMD's multiply fp32 as it is, and its compiler knows no others.
    """
    if INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total)
    PRECISION: tl.constexpr = "ieee" if is_hip() else "tf32x3"
    return tl.dot(left, right, total, input_precision=PRECISION)
