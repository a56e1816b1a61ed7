"""Programs of RMSNorm, with or without a sum before it: whole rows, all arithmetic in fp32."""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    hidden, branch, weight, summed, normed, reciprocals, width, epsilon, ADDS: tl.constexpr, BLOCK: tl.constexpr
):
    """A row: the sum as it is stored, one over its root mean square, the norm."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    places = row * width + columns
    vector = tl.load(hidden + places, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        vector += tl.load(branch + places, mask=inside, other=0.0).to(tl.float32)
        rounded = vector.to(hidden.dtype.element_ty)
        tl.store(summed + places, rounded, mask=inside)
        vector = rounded.to(tl.float32)
    reciprocal = 1 / tl.sqrt(tl.sum(vector * vector, axis=0) / width + epsilon)
    tl.store(reciprocals + row, reciprocal)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + places, (vector * reciprocal * scale).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_back_kernel(
    grad, upstream, summed, weight, reciprocals, grad_summed, grad_weight, rows, width, rows_each,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some rows: the gradient of the sum, that of its other readers included, and a part of the weight's."""
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    of_weight = tl.zeros([BLOCK], tl.float32)
    first = tl.program_id(0) * rows_each
    for row in range(first, min(first + rows_each, rows)):
        places = tl.cast(row, tl.int64) * width + columns
        reciprocal = tl.load(reciprocals + row)
        unit = tl.load(summed + places, mask=inside, other=0.0).to(tl.float32) * reciprocal
        arriving = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
        of_weight += arriving * unit
        arriving *= scale
        leaving = reciprocal * (arriving - unit * (tl.sum(arriving * unit, axis=0) / width))
        if ADDS:
            leaving += tl.load(upstream + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_summed + places, leaving.to(grad_summed.dtype.element_ty), mask=inside)
    tl.store(grad_weight + tl.program_id(0) * width + columns, of_weight, mask=inside)
