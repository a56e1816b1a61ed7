"""The state kernels of approximate against the formula in float64: on a GPU, or in Triton's interpreter."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.kernels.compile_matrix import SPILLS
from benchmarks.kernels.compiled import SHARED_MEMORY, compile_calls
from deconattn.ops import reference
from deconattn.ops.kernels import taylor_states as kernel
from deconattn.ops.kernels.gpu import Gpu, gpu_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHUNK = 64
TILE = kernel.Tile(tile=32, block=16, warps=4, stages=2)
SMALL = kernel.Launch(CHUNK, kernel.States(dims=4, tile=32, warps=4, stages=2), TILE, TILE, TILE, TILE)
"""Several chunks of several tiles of several blocks in few tokens."""
# Triton's interpreter rounds to bf16 towards zero, which is twice as coarse, and biased.
BFLOAT16_ERROR = 1e-2 if DEVICE == "cuda" else 1.5e-2


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nothing was written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "launch_parameters", lambda *_: SMALL)


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[R, heads, L, x] in [R, L, heads, x] memory, as projections leave it."""
    rows, heads, length, head_dim = shape
    tensor = torch.randn(rows, length, heads, head_dim, generator=torch.Generator().manual_seed(seed))
    return tensor.to(DEVICE, dtype).transpose(1, 2)


def attended(rows: int, heads: int, key_value_heads: int, length: int, head_dim: int, dtype=torch.float32) -> list:
    """Queries, keys and values."""
    return [
        drawn(rows, heads, length, head_dim, seed=1, dtype=dtype),
        drawn(rows, key_value_heads, length, head_dim, seed=2, dtype=dtype),
        drawn(rows, key_value_heads, length, head_dim, seed=3, dtype=dtype),
    ]


def document_ids(*rows: tuple[int, ...]) -> Tensor:
    """Documents of these lengths, ids with gaps."""
    return torch.stack([torch.arange(len(row)).mul(3).repeat_interleave(torch.tensor(row)) for row in rows]).to(DEVICE)


def gradients(function, inputs: list[Tensor], upstream: Tensor, ids: Tensor | None) -> list[Tensor]:
    """The output and the inputs' gradients."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*inputs, ids)
    return [output, *torch.autograd.grad(output, inputs, upstream)]


def errors(inputs: list[Tensor], ids: Tensor | None = None, upstream: Tensor | None = None) -> list[float]:
    """Relative Euclidean errors of the output and the gradients of queries, keys and values."""
    if upstream is None:
        upstream = drawn(*inputs[0].shape, seed=4, dtype=inputs[0].dtype)
    ours = gradients(kernel.taylor_states_attention, inputs, upstream, ids)
    exact = gradients(reference.taylor_attention, [tensor.double() for tensor in inputs], upstream.double(), ids)
    for one, other in zip(ours, [inputs[0], *inputs], strict=True):
        assert one.dtype == other.dtype
    return [((one - other).norm() / other.norm()).item() for one, other in zip(ours, exact, strict=True)]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "length", [1, CHUNK - 1, CHUNK, CHUNK + 1, pytest.param(3 * CHUNK + 5, marks=pytest.mark.slow)]
)
def test_follows_the_formula(length: int):
    assert max(errors(attended(1, 1, 1, length, 16))) < 1e-5


@pytest.mark.usefixtures("small")
def test_grouped_heads_and_documents():
    """Documents within a chunk, longer than one, ending with one, of one token."""
    ids = document_ids((20, 1, 1, 42, 75), (100, 28, 11))
    assert max(errors(attended(2, 2, 1, 139, 16), ids)) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_halves_of_the_dimensions_and_padding():
    """40 dimensions in 64, of which the lower 32 meet all and the others each other."""
    assert max(errors(attended(1, 1, 1, 2 * CHUNK + 1, 40), document_ids((100, 29)))) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_bfloat16():
    assert max(errors(attended(1, 2, 1, CHUNK + 9, 64, torch.bfloat16))) < BFLOAT16_ERROR


@pytest.mark.usefixtures("small")
def test_any_strides():
    """Every second dimension of wider tensors, and an upstream gradient of stride 0."""
    inputs = [tensor[..., ::2] for tensor in attended(1, 1, 1, CHUNK + 3, 32)]
    upstream = torch.ones((), device=DEVICE).expand(1, 1, CHUNK + 3, 16)
    assert max(errors(inputs, upstream=upstream)) < 1e-5


@pytest.mark.usefixtures("small")
def test_operators():
    queries, keys, values = (tensor.requires_grad_() for tensor in attended(1, 2, 1, 18, 16))
    ids = document_ids((7, 11))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.deconattn.taylor_states, (queries, keys, values, ids), test_utils=tests)
    inputs = [tensor.detach() for tensor in (queries, keys, values)]
    output, normalisers = kernel.forward(*inputs, ids)
    assert output.transpose(1, 2).is_contiguous()
    arguments = (torch.ones_like(output), *inputs, output, normalisers, ids)
    torch.library.opcheck(torch.ops.deconattn.taylor_states_backward, arguments, test_utils=tests[::2])


def test_keys_that_share_a_mean_at_4096_tokens():
    """Rounded states and products of bf16 keep the output: the terms of most weights cancel.

    The kernel's arithmetic, in PyTorch: of the last 64 queries and the state of all keys before them.
    """
    generator = torch.Generator().manual_seed(0)

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.bfloat16().double()

    queries, keys, values = (rounded(torch.randn(4096, 64, generator=generator)) for _ in range(3))
    shared, mean = (torch.randn(64, generator=generator) for _ in range(2))
    keys, values, queries = rounded(keys + shared), rounded(values + mean), queries[-64:]
    products = torch.stack([rounded(values * keys[:, a, None]).T @ keys / 64 for a in range(64)]).transpose(1, 2)
    state, moment, gram = rounded(products), rounded(keys.T @ values / 8), rounded(keys.T @ keys / 64)
    total = sum(rounded(queries * queries[:, a, None]) @ state[a] for a in range(64)) / 2
    total = total + queries @ moment + values.sum(dim=0)
    normaliser = (queries * (queries @ gram / 2 + keys.sum(dim=0) / 8)).sum(dim=1) + len(keys)
    s = queries @ keys.T / 8
    weights = 1 + s + s.square() / 2
    exact = weights @ values / weights.sum(dim=1, keepdim=True)
    assert (total / normaliser[:, None] - exact).norm() < 4e-3 * exact.norm()


def calls() -> None:
    """Every launch: dtypes, head dimensions, documents, odd lengths, groups."""

    def call(length: int, head_dim: int, dtype: torch.dtype, masked: bool, launch: kernel.Launch | None = None) -> None:
        queries = torch.empty(1, 2, length, head_dim, dtype=dtype)
        keys = torch.empty(1, 1, length, head_dim, dtype=dtype)
        ids = torch.zeros(1, length, dtype=torch.long) if masked else None
        output, normalisers = kernel.forward(queries, keys, keys, ids, launch)
        kernel.backward(output, queries, keys, keys, output, normalisers, ids, launch)

    call(16384, 64, torch.bfloat16, False)
    call(16384, 64, torch.bfloat16, True)
    call(4099, 128, torch.bfloat16, True)
    call(4099, 40, torch.float16, True)
    call(4096, 64, torch.float32, True)
    call(4096, 16, torch.float32, False)
    if gpu_of(torch.empty(0)) is Gpu.HOPPER:
        for launch in kernel.CANDIDATES[1:]:
            call(16384, 64, torch.bfloat16, False, launch)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_compiles(target: str):
    kernels = compile_calls(__file__, "calls", target)
    products = ("states", "output", "grad_queries", "grad_keys", "grad_values")
    assert {compiled.name for compiled in kernels} == {f"{name}_program" for name in (*products, "columns", "upstream")}
    for compiled in kernels:
        assert compiled.shared <= SHARED_MEMORY[target]
        if compiled.name.removesuffix("_program") in products:
            assert compiled.tensor_cores
        assert not compiled.serialised, compiled
        if target == "sm_90" and compiled.signature.startswith("*bf16"):
            assert compiled.spills <= SPILLS["bf16"], compiled
