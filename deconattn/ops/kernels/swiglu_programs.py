"""Programs of :mod:`deconattn.ops.kernels.swiglu`: some columns of a row each."""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def forward_kernel(gate, up, output, gate_stride, up_stride, width, blocks, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    columns = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    g = tl.load(gate + row * gate_stride + columns, mask=inside, other=0).to(tl.float32)
    u = tl.load(up + row * up_stride + columns, mask=inside, other=0).to(tl.float32)
    tl.store(output + row * width + columns, (g * tl.sigmoid(g) * u).to(output.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad, gate, up, of_gate, of_up, grad_stride, gate_stride, up_stride, out_stride, width, blocks, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    columns = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    d = tl.load(grad + row * grad_stride + columns, mask=inside, other=0).to(tl.float32)
    g = tl.load(gate + row * gate_stride + columns, mask=inside, other=0).to(tl.float32)
    u = tl.load(up + row * up_stride + columns, mask=inside, other=0).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    into_gate = d * u * sigmoid * (1 + g * (1 - sigmoid))
    into_up = d * g * sigmoid
    tl.store(of_gate + row * out_stride + columns, into_gate.to(of_gate.dtype.element_ty), mask=inside)
    tl.store(of_up + row * out_stride + columns, into_up.to(of_up.dtype.element_ty), mask=inside)
