"""The tile kernels of approximate against the formula in float64: on a GPU, or in Triton's interpreter."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.kernels.compiled import SHARED_MEMORY, compile_calls
from deconattn.ops import reference
from deconattn.ops.kernels import taylor_tiles as kernel
from deconattn.ops.kernels.gpu import Gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 64
"""The longest side of an fp32 tile, and the shorter one of a 16-bit tile."""


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nothing was written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[R, heads, L, x] in [R, L, heads, x] memory, as projections leave it."""
    rows, heads, length, head_dim = shape
    tensor = torch.randn(rows, length, heads, head_dim, generator=torch.Generator().manual_seed(seed))
    return tensor.to(DEVICE, dtype).transpose(1, 2)


def attended(rows: int, heads: int, key_value_heads: int, length: int, head_dim: int, dtype: torch.dtype) -> list:
    """Queries, keys and values."""
    return [
        drawn(rows, heads, length, head_dim, seed=1, dtype=dtype),
        drawn(rows, key_value_heads, length, head_dim, seed=2, dtype=dtype),
        drawn(rows, key_value_heads, length, head_dim, seed=3, dtype=dtype),
    ]


def document_ids(rows: int, length: int) -> Tensor:
    """Documents of one token and of several blocks, ids with gaps, cut differently in each row."""
    generator = torch.Generator().manual_seed(length)
    starts = torch.rand(rows, length, generator=generator) < 1 / 80
    starts[:, 1:] |= starts[:, :-1] & (torch.rand(rows, length - 1, generator=generator) < 0.5)
    return (3 * starts.long().cumsum(dim=1) + 2**33).to(DEVICE)


def gradients(function, inputs: list[Tensor], upstream: Tensor, ids: Tensor | None) -> list[Tensor]:
    """The output and the inputs' gradients."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*inputs, ids)
    return [output, *torch.autograd.grad(output, inputs, upstream)]


def errors(inputs: list[Tensor], upstream: Tensor, ids: Tensor | None) -> list[float]:
    """Relative Euclidean errors of the output and the gradients of queries, keys and values."""
    ours = gradients(kernel.taylor_tiles_attention, inputs, upstream, ids)
    exact = gradients(reference.taylor_attention, [tensor.double() for tensor in inputs], upstream.double(), ids)
    for one, tensor in zip(ours, [inputs[0], *inputs], strict=True):
        assert one.dtype == tensor.dtype and one.isfinite().all() and one.transpose(1, 2).is_contiguous()
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, exact, strict=True)]


@pytest.mark.parametrize(
    ("rows", "heads", "key_value_heads", "length", "head_dim", "masked"),
    [
        (2, 2, 2, 1, 64, True),
        (1, 2, 1, BLOCK // 2 - 1, 40, False),
        (1, 2, 2, BLOCK - 1, 64, True),
        (1, 2, 2, BLOCK, 64, False),
        (1, 4, 2, BLOCK + 1, 24, True),
        (2, 1, 1, 4 * BLOCK + 5, 64, True),
        (1, 4, 2, 3 * BLOCK + 7, 24, True),
        (1, 2, 1, 2 * BLOCK + 33, 64, False),
        (1, 2, 1, BLOCK + 9, 128, True),
    ],
)
def test_float32(rows: int, heads: int, key_value_heads: int, length: int, head_dim: int, masked: bool):
    inputs = attended(rows, heads, key_value_heads, length, head_dim, torch.float32)
    upstream = drawn(rows, heads, length, head_dim, seed=4)
    found = errors(inputs, upstream, document_ids(rows, length) if masked else None)
    if length == 1:  # one token is mixed with nothing: no gradient reaches its query and key
        found = [found[0], found[3]]
    assert max(found) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "heads", "key_value_heads", "length", "head_dim", "masked"),
    [
        (torch.bfloat16, 2, 2, 2 * BLOCK, 64, False),
        (torch.bfloat16, 4, 2, 8 * BLOCK + 31, 64, True),
        (torch.bfloat16, 2, 2, 5 * BLOCK + 1, 128, True),
        (torch.float16, 2, 1, 4 * BLOCK - 1, 40, True),
    ],
)
def test_half_precision(dtype: torch.dtype, heads: int, key_value_heads: int, length: int, head_dim: int, masked: bool):
    inputs = attended(1, heads, key_value_heads, length, head_dim, dtype)
    upstream = drawn(1, heads, length, head_dim, seed=4, dtype=dtype)
    assert max(errors(inputs, upstream, document_ids(1, length) if masked else None)) < 1e-2


@pytest.mark.slow
def test_every_candidate_gives_the_same():
    length = 4 * BLOCK + 3
    inputs = attended(1, 2, 1, length, 64, torch.bfloat16)
    ids, grad = document_ids(1, length), drawn(1, 2, length, 64, seed=4, dtype=torch.bfloat16)
    found = []
    for launch in (*kernel.CANDIDATES, kernel.launch_parameters(64, torch.bfloat16, Gpu.OTHER)):
        mixed, shares = kernel.forward(*inputs, ids, launch)
        found.append([mixed, *kernel.backward(grad, *inputs, mixed, shares, ids, launch)])
    for other in found[1:]:
        for one, first in zip(other, found[0], strict=True):
            assert (one.double() - first.double()).norm() < 5e-3 * first.double().norm()


def test_any_strides():
    """Views of other layouts, and an upstream gradient that is one number."""
    length, head_dim = BLOCK + 5, 16
    fused = drawn(2, 6, length, head_dim, seed=1)
    queries, keys = fused[:, :2], fused[:, 2:4].contiguous()
    values = fused[:, 4:].transpose(-1, -2).contiguous().transpose(-1, -2)
    upstream = torch.tensor(0.5, device=DEVICE).expand(2, 2, length, head_dim)
    assert max(errors([queries, keys, values], upstream, document_ids(2, length))) < 1e-5
    wide = drawn(2, 2, length, 3 * head_dim, seed=2)[..., :head_dim]
    assert max(errors([queries, keys, values], wide, None)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_scores(dtype: torch.dtype):
    """Scores of a thousand, weights beyond fp16's largest number."""
    inputs = attended(1, 1, 1, BLOCK, 64, dtype)
    inputs[0] *= 400
    output = kernel.taylor_tiles_attention(*inputs)
    exact = reference.taylor_attention(*(tensor.double() for tensor in inputs))
    assert (output.double() - exact).norm() < 1e-2 * exact.norm()


def test_equal_inputs_give_equal_bits():
    inputs = attended(1, 2, 1, 150, 64, torch.bfloat16)
    upstream = drawn(1, 2, 150, 64, seed=4, dtype=torch.bfloat16)
    once, again = (gradients(kernel.taylor_tiles_attention, inputs, upstream, None) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("masked", [False, True])
def test_operators(masked: bool):
    inputs = attended(1, 2, 1, 17, 16, torch.float32)
    ids = document_ids(1, 17) if masked else None
    kept = torch.ops.deconattn.taylor_tiles(*inputs, ids)
    torch.library.opcheck(torch.ops.deconattn.taylor_tiles, (*(t.clone().requires_grad_() for t in inputs), ids))
    grad = drawn(1, 2, 17, 16, seed=4)
    torch.library.opcheck(torch.ops.deconattn.taylor_tiles_backward, (grad, *inputs, *kept, ids))


def calls() -> None:
    """By capability: types and head_dims with documents; then without, odd sizes, padding, sizes of one."""

    def call(
        heads: int, key_value_heads: int, length: int, head_dim: int, dtype: torch.dtype, masked: bool, launch=None
    ) -> None:
        queries = torch.empty(1, length, heads, head_dim, dtype=dtype).transpose(1, 2)
        keys = queries[:, :key_value_heads]
        ids = torch.zeros(1, length, dtype=torch.long) if masked else None
        kept = kernel.forward(queries, keys, keys, ids, launch)
        kernel.backward(queries, queries, keys, keys, *kept, ids, launch)

    for dtype in (torch.bfloat16, torch.float32):
        for head_dim in (64, 128):
            call(4, 2, 256, head_dim, dtype, masked=True)
            call(2, 2, 101, head_dim, dtype, masked=False)
    call(1, 1, 1, 64, torch.bfloat16, masked=True)
    call(3, 1, 101, 18, torch.float16, masked=True)
    call(4, 2, 256, 40, torch.bfloat16, masked=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_90"])
def test_compiles(target: str):
    for found in compile_calls(__file__, "calls", target):
        assert found.shared <= SHARED_MEMORY[target], found
        assert found.tensor_cores, found
        assert found.spills <= 128, found  # by keys: pointers, once a head, never within the loops over tiles
