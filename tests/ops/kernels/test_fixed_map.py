"""The kernels of one map for all rows against the formula in float64: on a GPU, or in Triton's interpreter."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.kernels.compiled import SHARED_MEMORY, compile_calls
from deconattn.ops import reference
from deconattn.ops.kernels import fixed_map as kernel
from deconattn.ops.kernels.gpu import Gpu, gpu_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 1e-5 if DEVICE == "cuda" else 2e-6
"""Relative, of fp32: tensor cores take three products of 11-bit halves for one."""
BLOCK = kernel.WHOLE
WIDE = ("mix_kernel", "grad_values_kernel", "grad_scores_kernel")
"""Those whose work grows with the rows."""


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nothing was written to holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # cuBLAS, of the formula, has conditions
    yield
    torch.use_deterministic_algorithms(False)


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[.., heads, L, x] in [.., L, heads, x] memory, as projections leave it."""
    *rows, heads, length, channels = shape
    tensor = torch.randn(*rows, length, heads, channels, generator=torch.Generator().manual_seed(seed))
    return tensor.to(DEVICE, dtype).transpose(-3, -2)


def problem(
    rows: int, heads: int, key_value_heads: int, length: int, head_dim: int, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values, and the output's gradient."""
    inputs = [
        drawn(heads, length, head_dim, seed=1, dtype=dtype),
        drawn(key_value_heads, length, head_dim, seed=2, dtype=dtype),
        drawn(rows, key_value_heads, length, head_dim, seed=3, dtype=dtype),
    ]
    return inputs, drawn(rows, heads, length, head_dim, seed=4, dtype=dtype)


def gradients(function, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """The output and the inputs' gradients."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    return [output, *torch.autograd.grad(output, inputs, upstream)]


def errors(ours: list[Tensor], inputs: list[Tensor], upstream: Tensor) -> list[float]:
    """Relative Euclidean errors of the output and the gradients of queries, keys and values."""
    exact = gradients(reference.fixed_map_attention, [tensor.double() for tensor in inputs], upstream.double())
    for one, tensor in zip(ours, [inputs[0], *inputs], strict=True):
        assert one.dtype == tensor.dtype
        assert one.isfinite().all()
        assert one.transpose(-3, -2).is_contiguous()
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, exact, strict=True)]


@pytest.mark.parametrize(
    ("rows", "heads", "key_value_heads", "length", "head_dim"),
    [
        (3, 2, 2, 1, 64),
        (1, 2, 1, BLOCK - 1, 64),
        pytest.param(3, 2, 2, BLOCK, 40, marks=pytest.mark.slow),
        (5, 2, 1, BLOCK + 1, 32),
        (2, 2, 1, 67, 10),
        (2, 1, 1, 70, 96),
    ],
)
def test_float32(rows: int, heads: int, key_value_heads: int, length: int, head_dim: int):
    inputs, upstream = problem(rows, heads, key_value_heads, length, head_dim)
    ours = gradients(kernel.fixed_map_attention, inputs, upstream)
    found = errors(ours, inputs, upstream)
    if length == 1:  # the map is one, whatever the score: no gradient reaches it
        assert max(ours[1].abs().max(), ours[2].abs().max()) < 10 * TOLERANCE
        found = [found[0], found[3]]
    assert max(found) < TOLERANCE


@pytest.mark.parametrize(
    ("launch", "dtype"),
    [(0, torch.float16), *((launch, torch.bfloat16) for launch in range(len(kernel.CANDIDATES)))],
)
def test_half_precision(launch: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """With the blocks of a large problem: the second one's columns are 256 of which half exist."""
    monkeypatch.setattr(kernel, "ENOUGH", 0)
    inputs, upstream = problem(6, 2, 1, BLOCK + 35, 64, dtype)
    chosen = kernel.CANDIDATES[launch]
    kept = kernel.forward(*inputs, chosen)
    ours = [kept[0], *kernel.backward(upstream, *inputs, *kept, chosen)]
    assert max(errors(ours, inputs, upstream)) < 1e-2


def test_several_strips(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "NARROWEST_STRIP", 1)
    inputs, upstream = problem(2, 2, 1, 150, 16)
    assert kernel._strip(2, 150, 16, kernel.launch_parameters(16, torch.float32, Gpu.HOPPER).grad_scores) == 64
    assert max(errors(gradients(kernel.fixed_map_attention, inputs, upstream), inputs, upstream)) < TOLERANCE


@pytest.mark.slow
def test_several_groups_of_panels():
    """12 heads of 3 blocks of columns, more than the 32 that are worked on side by side."""
    inputs, upstream = problem(9, 12, 12, 70, 16)
    assert max(errors(gradients(kernel.fixed_map_attention, inputs, upstream), inputs, upstream)) < TOLERANCE


def test_any_strides():
    """Views of other layouts, and upstream gradients that are one number or a part of something wider."""
    length, head_dim = 70, 16
    fused = drawn(6, length, head_dim, seed=1)
    queries, keys = fused[:2], fused[2:4].contiguous()
    values = drawn(3, 2, length, head_dim, seed=2).transpose(-1, -2).contiguous().transpose(-1, -2)
    upstream = torch.tensor(0.5, device=DEVICE).expand(3, 2, length, head_dim)
    wide = drawn(3, 2, length, 3 * head_dim, seed=3)[..., :head_dim]
    for grad in (upstream, wide):
        ours = gradients(kernel.fixed_map_attention, [queries, keys, values], grad)
        assert max(errors(ours, [queries, keys, values], grad)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:overflow")  # of weights above the diagonal, which are masked
def test_large_scores():
    """Up to several hundred, where exponentials without the log-sum-exp would overflow."""
    inputs, upstream = problem(2, 2, 2, 100, 16)
    inputs[0] *= 100
    ours = gradients(kernel.fixed_map_attention, inputs, upstream)
    assert max(errors(ours, inputs, upstream)) < 100 * TOLERANCE


def test_equal_inputs_give_equal_bits():
    inputs, upstream = problem(3, 2, 1, 70, 16, torch.bfloat16)
    once, again = (gradients(kernel.fixed_map_attention, inputs, upstream) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("key_value_heads", [1, 2])
def test_operators(key_value_heads: int):
    inputs, upstream = problem(2, 2, key_value_heads, 17, 16)
    kept = torch.ops.deconattn.fixed_map(*inputs)
    torch.library.opcheck(torch.ops.deconattn.fixed_map, [tensor.clone().requires_grad_() for tensor in inputs])
    torch.library.opcheck(torch.ops.deconattn.fixed_map_backward, (upstream, *inputs, *kept))


def test_memory_is_linear_in_length():
    """A strip of dS has at most as many keys as W has columns, or NARROWEST_STRIP."""
    for launch in kernel.CANDIDATES:
        for rows, length in ((1, 100_000), (16, 2048), (64, 2048), (16, 100_000)):
            strip = kernel._strip(rows, length, 64, launch.grad_scores)
            assert strip % max(launch.grad_scores.queries, launch.grad_scores.keys) == 0
            assert strip <= max(64 * rows, kernel.NARROWEST_STRIP)


def calls() -> None:
    """Every kernel by type and head_dim, with many and with few programs, odd sizes and sizes of one."""

    def call(rows: int, heads: int, key_value_heads: int, length: int, head_dim: int, dtype, launch=None) -> None:
        queries = torch.empty(length, heads, head_dim, dtype=dtype).transpose(0, 1)
        keys = torch.empty(length, key_value_heads, head_dim, dtype=dtype).transpose(0, 1)
        values = keys.expand(rows, *keys.shape).contiguous()
        kept = kernel.forward(queries, keys, values, launch)
        kernel.backward(kept[0], queries, keys, values, *kept, launch)

    for head_dim in (64, 128, 40):
        for dtype in (torch.bfloat16, torch.float32):
            call(16, 14, 14, 1536, head_dim, dtype)
    call(16, 14, 2, 1536, 64, torch.float16)
    call(1, 2, 1, 1111, 64, torch.bfloat16)
    call(1, 1, 1, 1, 64, torch.bfloat16)
    if gpu_of(torch.empty(0)) is Gpu.HOPPER:
        for launch in kernel.CANDIDATES[1:]:
            call(16, 14, 14, 1536, 64, torch.bfloat16, launch)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
def test_compiles(target: str):
    kernels = compile_calls(__file__, "calls", target)
    assert {compiled.name for compiled in kernels} == {
        "lse_kernel",
        "delta_kernel",
        "apply_scores_kernel",
        *WIDE,
    }
    for compiled in kernels:
        assert compiled.shared <= SHARED_MEMORY[target]
        # dS at head_dim 128 keeps to half of a multiprocessor's registers, short of two.
        assert compiled.spills <= (8 if compiled.name == "grad_scores_kernel" else 0), compiled
        assert bool(compiled.tensor_cores) == (compiled.name != "delta_kernel")
        if target == "sm_90" and compiled.name in WIDE and "*fp32, *fp32, *fp32" not in compiled.signature:
            assert compiled.tensor_cores == "wgmma"
