"""The streaming kernels of nonapproximate against the formula in float64: on a GPU, or in Triton's interpreter."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.kernels.compiled import SHARED_MEMORY, compile_calls
from deconattn.ops import reference
from deconattn.ops.kernels import prefix_attention as kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 16


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nothing was written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Into segments as few heads on several multiprocessors are, or not at all."""
    monkeypatch.setattr(kernel, "_multiprocessors", lambda device: 4 if request.param else 0)


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[R, heads, L, x] in [R, L, heads, x] memory, as projections leave it."""
    rows, heads, length, channels = shape
    tensor = torch.randn(rows, length, heads, channels, generator=torch.Generator().manual_seed(seed))
    return tensor.to(DEVICE, dtype).transpose(1, 2)


def document_ids(rows: int, length: int) -> Tensor:
    """Documents of one token and of more than a block, ids with gaps, cut differently in each row."""
    generator = torch.Generator().manual_seed(length)
    starts = torch.rand(rows, length, generator=generator) < 1 / 24
    starts[:, 1:] |= starts[:, :-1] & (torch.rand(rows, length - 1, generator=generator) < 0.5)
    return (3 * starts.long().cumsum(dim=1) + 2**33).to(DEVICE)


def gradients(function, inputs: list[Tensor], upstream: Tensor, ids: Tensor | None) -> list[Tensor]:
    """The output and the inputs' gradients."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*inputs, ids)
    return [output, *torch.autograd.grad(output, inputs, upstream)]


def errors(inputs: list[Tensor], upstream: Tensor, ids: Tensor | None) -> list[float]:
    """Relative Euclidean errors of the output and the gradients of queries, keys and values."""
    ours = gradients(kernel.prefix_attention, inputs, upstream, ids)
    exact = gradients(reference.prefix_attention, [tensor.double() for tensor in inputs], upstream.double(), ids)
    for one, tensor in zip(ours, [inputs[0], *inputs], strict=True):
        assert one.dtype == tensor.dtype and one.isfinite().all() and one.transpose(1, 2).is_contiguous()
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, exact, strict=True)]


@pytest.mark.parametrize(
    ("rows", "heads", "key_value_heads", "length", "head_dim", "masked", "cut"),
    [
        (2, 2, 2, 1, 64, True, False),
        (1, 2, 1, BLOCK - 1, 40, False, True),
        (2, 2, 2, BLOCK, 64, True, True),
        (1, 4, 2, BLOCK + 1, 24, False, False),
        (2, 2, 2, 5 * BLOCK + 3, 64, True, False),
        (2, 4, 2, 6 * BLOCK - 5, 24, True, True),
        (1, 3, 1, 6 * BLOCK, 64, False, True),
        (1, 1, 1, 35 * BLOCK + 7, 10, True, True),  # more summaries than are read at once
    ],
    indirect=["cut"],
)
@pytest.mark.usefixtures("cut")
def test_float32(rows: int, heads: int, key_value_heads: int, length: int, head_dim: int, masked: bool):
    inputs = [
        drawn(rows, heads, length, head_dim, seed=1),
        drawn(rows, key_value_heads, length, head_dim, seed=2),
        drawn(rows, key_value_heads, length, head_dim, seed=3),
    ]
    upstream = drawn(rows, heads, length, head_dim, seed=4)
    found = errors(inputs, upstream, document_ids(rows, length) if masked else None)
    if length == 1:  # one token is mixed with nothing: no gradient reaches its score
        found = [found[0], found[3]]
    assert max(found) < 2e-6


@pytest.mark.parametrize(
    ("dtype", "masked", "cut"),
    [(torch.bfloat16, True, True), (torch.bfloat16, False, False), (torch.float16, True, False)],
    indirect=["cut"],
)
@pytest.mark.usefixtures("cut")
def test_half_precision(dtype: torch.dtype, masked: bool):
    inputs = [drawn(1, 4, 100, 64, seed=1, dtype=dtype), *(drawn(1, 2, 100, 64, seed=s, dtype=dtype) for s in (2, 3))]
    ids = document_ids(1, 100) if masked else None
    assert max(errors(inputs, drawn(1, 4, 100, 64, seed=4, dtype=dtype), ids)) < 1e-2


@pytest.mark.parametrize("cut", [False, True], indirect=True)
@pytest.mark.usefixtures("cut")
def test_any_strides():
    """Views of other layouts, and an upstream gradient that is one number."""
    length, head_dim = 2 * BLOCK + 5, 16
    fused = drawn(2, 6, length, head_dim, seed=1)
    queries, keys = fused[:, :2], fused[:, 2:4].contiguous()
    values = fused[:, 4:].transpose(-1, -2).contiguous().transpose(-1, -2)
    upstream = torch.tensor(0.5, device=DEVICE).expand(2, 2, length, head_dim)
    assert max(errors([queries, keys, values], upstream, document_ids(2, length))) < 2e-6
    wide = drawn(2, 2, length, 3 * head_dim, seed=2)[..., :head_dim]
    assert max(errors([queries, keys, values], wide, None)) < 2e-6


def extreme_scores(length: int) -> Tensor:
    """[8, L], up to a thousand either way: what uniform models reach in late layers."""
    generator = torch.Generator().manual_seed(0)
    rising = torch.linspace(-1e3, 1e3, length)
    high = torch.full((length,), 1e3)
    even = torch.arange(length) % 2 == 0
    return torch.stack(
        [
            (torch.rand(length, generator=generator) * 2 - 1) * 1e3,
            rising,
            -rising,
            torch.where(even, high, -high),
            high,
            -high,
            high + torch.randn(length, generator=generator),
            torch.where(torch.arange(length) == length // 2, high, -high),
        ]
    )


@pytest.mark.parametrize(("masked", "cut"), [(False, True), (True, False)], indirect=["cut"])
@pytest.mark.usefixtures("cut")
def test_extreme_scores(masked: bool):
    length, head_dim = 4 * BLOCK + 1, 16
    queries = torch.full((1, 8, length, head_dim), 8.0)
    share = 1 / (torch.nn.functional.silu(queries[0, 0, 0, 0]) * head_dim**0.5)
    keys = (extreme_scores(length) * share)[None, :, :, None].expand(queries.shape).contiguous()
    inputs = [queries.to(DEVICE), keys.to(DEVICE), drawn(1, 8, length, head_dim, seed=1)]
    ids = document_ids(1, length) if masked else None
    # fp32 knows a score of 1e3 to 6e-5, and with it each weight to a relative 6e-5 (a few times over).
    assert max(errors(inputs, drawn(1, 8, length, head_dim, seed=2), ids)) < 5e-4


@pytest.mark.slow
def test_equal_inputs_give_equal_bits():
    inputs = [drawn(2, 2, 70, 16, seed=seed, dtype=torch.bfloat16) for seed in (1, 2, 3)]
    upstream = drawn(2, 2, 70, 16, seed=4, dtype=torch.bfloat16)
    once, again = (gradients(kernel.prefix_attention, inputs, upstream, None) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_operators(masked: bool):
    queries, keys, values = drawn(1, 2, 17, 16, seed=1), drawn(1, 1, 17, 16, seed=2), drawn(1, 1, 17, 16, seed=3)
    ids = document_ids(1, 17) if masked else None
    kept = torch.ops.deconattn.prefix_attention(queries, keys, values, ids)
    leaves = [tensor.requires_grad_() for tensor in (queries, keys, values)]
    torch.library.opcheck(torch.ops.deconattn.prefix_attention, (*leaves, ids))
    saved = [tensor.detach() for tensor in (queries, keys, values, *kept)]
    grad = drawn(1, 2, 17, 16, seed=4)
    torch.library.opcheck(torch.ops.deconattn.prefix_attention_backward, (grad, *saved, ids))


@pytest.mark.parametrize("rows_heads", [1, 14, 112, 528, 5000])
@pytest.mark.parametrize("length", [1, 16, 2047, 2048, 100_000])
def test_segments_cover_the_length(rows_heads: int, length: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "_multiprocessors", lambda device: 132)
    queries = torch.empty(1, rows_heads, length, 64, device="meta")
    for launch in kernel.CANDIDATES:
        for chosen in (launch.forward, launch.backward):
            segments, segment_length = kernel._cut(queries, chosen)
            assert segment_length % chosen.block == 0
            assert (segments - 1) * segment_length < length <= segments * segment_length
            assert segments == 1 or rows_heads < chosen.enough * 132
            assert segments * rows_heads <= max(rows_heads, chosen.many * 132 / chosen.warps)


def calls() -> None:
    """Every kernel, cut and whole, by type and head_dim; then with documents, padding, odd sizes and sizes of one."""

    def call(heads: int, length: int, head_dim: int, dtype: torch.dtype, masked: bool, launch=None) -> None:
        queries = torch.empty(1, length, heads, head_dim, dtype=dtype).transpose(1, 2)
        keys = queries[:, : 1 if length % 2 else heads]
        ids = torch.zeros(1, length, dtype=torch.long) if masked else None
        kept = kernel.forward(queries, keys, keys, ids, launch)
        kernel.backward(queries, queries, keys, keys, *kept, ids, launch)

    for heads in (2, 16):
        for head_dim in (64, 128):
            call(heads, 64, head_dim, torch.bfloat16, masked=True)
            call(heads, 64, head_dim, torch.float32, masked=True)
        call(heads, 101, 64, torch.bfloat16, masked=False)
        call(heads, 101, 24, torch.float16, masked=True)
    call(1, 1, 64, torch.bfloat16, masked=True)
    for launch in kernel.CANDIDATES[1:]:
        call(2, 128, 64, torch.bfloat16, False, launch)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
def test_compiles(target: str):
    kernels = compile_calls(__file__, "calls", target)
    assert {compiled.name for compiled in kernels} == {
        "summary_kernel",
        "forward_kernel",
        "summary_back_kernel",
        "backward_kernel",
    }
    for compiled in kernels:
        assert compiled.shared <= SHARED_MEMORY[target]
        assert compiled.spills == 0
        assert bool(compiled.tensor_cores) == ("summary" not in compiled.name)
