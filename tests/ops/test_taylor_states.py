"""The linear form of `approximate` against the formula in float64, across the borders of its chunks and documents."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.ops import reference
from deconattn.ops.blockwise.taylor_states import CHUNK, taylor_states_attention
from deconattn.ops.blockwise.tiles import Visibility

SMALL_CHUNK = 16
LENGTHS = (1, SMALL_CHUNK - 1, SMALL_CHUNK, SMALL_CHUNK + 1, 3 * SMALL_CHUNK, 75)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def document_ids(rows: int, length: int, mean: int) -> Tensor:
    """About `mean` tokens a document, ids with gaps, cut differently in each row."""
    starts = torch.rand(rows, length, generator=torch.Generator().manual_seed(length)) < 1 / mean
    return 2 * starts.long().cumsum(dim=1)


def assert_follows_formula(queries: Tensor, keys: Tensor, values: Tensor, ids: Tensor | None) -> None:
    """Values and all gradients, to float64's precision."""
    inputs = [queries, keys, values]
    ours, theirs = taylor_states_attention(*inputs, ids), reference.taylor_attention(*inputs, ids)
    assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    upstream = drawn(*ours.shape, seed=9).detach()
    got, wanted = torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream)
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-10)


# Documents of a few tokens within a chunk, and of several chunks.
@pytest.mark.parametrize("mean", [None, 4, 40], ids=["plain", "short documents", "long documents"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("head_dim", [4, 16, 40])
def test_follows_the_formula(head_dim: int, group: int, mean: int | None, monkeypatch: pytest.MonkeyPatch):
    """One block of features, exactly one, and several of which the last is not whole."""
    monkeypatch.setattr("deconattn.ops.blockwise.taylor_states.CHUNK", SMALL_CHUNK)
    for length in LENGTHS:
        queries = drawn(2, 2 * group, length, head_dim, seed=0)
        keys, values = drawn(2, 2, length, head_dim, seed=1), drawn(2, 2, length, head_dim, seed=2)
        assert_follows_formula(queries, keys, values, document_ids(2, length, mean) if mean else None)


def test_chunks_of_their_real_length():
    length = 2 * CHUNK + 3
    queries, keys, values = (drawn(1, 2, length, 8, seed=seed) for seed in range(3))
    assert_follows_formula(queries, keys, values, document_ids(1, length, CHUNK))


def test_a_document_ends_with_its_chunk(monkeypatch: pytest.MonkeyPatch):
    """The next chunk inherits nothing, and nothing of what came before."""
    monkeypatch.setattr("deconattn.ops.blockwise.taylor_states.CHUNK", SMALL_CHUNK)
    ids = torch.arange(4 * SMALL_CHUNK)[None] // (2 * SMALL_CHUNK)
    assert_follows_formula(*(drawn(1, 1, 4 * SMALL_CHUNK, 4, seed=seed) for seed in range(3)), ids)


def test_bfloat16_is_computed_in_float32():
    """Keys that share a large part, of which a query sees little: in bf16 the products would not cancel."""
    length = 4 * CHUNK
    shared = drawn(1, 1, 1, 64, seed=3).detach()
    inputs = [drawn(1, 1, length, 64, seed=seed).detach() + shared * (seed == 1) for seed in range(3)]
    inputs = [tensor.bfloat16().requires_grad_() for tensor in inputs]
    output = taylor_states_attention(*inputs)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = reference.taylor_attention(*exact)
    upstream = drawn(*output.shape, seed=9).detach().bfloat16()
    got, wanted = torch.autograd.grad(output, inputs, upstream), torch.autograd.grad(expected, exact, upstream.double())
    for ours, theirs in zip((output, *got), (expected, *wanted), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs).norm() <= 4e-3 * theirs.norm()


def test_document_starts():
    ids = torch.tensor([[0, 0, 3, 3, 3, 8], [5, 7, 7, 7, 9, 9]])
    assert Visibility.of(6, ids).starts.tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 1, 1, 4, 4]]


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
def test_memory_is_linear_in_length(masked: bool, largest_tensor):
    """Forward and backward at 16384 tokens, shapes only: nothing larger than the inputs' features of one chunk."""
    length = 16384
    queries, keys, values = (torch.randn(1, 1, length, 64, device="meta", requires_grad=True) for _ in range(3))
    ids = torch.zeros(1, length, dtype=torch.long, device="meta") if masked else None
    with largest_tensor:
        output = taylor_states_attention(queries, keys, values, ids)
        forward = largest_tensor.operations
        output.sum().backward()
    assert largest_tensor.operations > forward + 10  # the backward pass was watched too
    assert queries.grad.shape == queries.shape
    assert largest_tensor.elements <= 2 * length * 64
