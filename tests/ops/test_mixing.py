"""The paths that train against the formulas in float64, across the borders of their tiles and chunks."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.ops import plain, reference
from deconattn.ops.blockwise.prefix_average import CHUNK
from deconattn.ops.blockwise.tiles import TILE
from deconattn.ops.documents import Documents
from deconattn.ops.fixed_map import fixed_map_attention
from deconattn.ops.prefix_average import prefix_attention, prefix_average
from deconattn.ops.softmax_attention import causal_attention
from deconattn.ops.taylor_attention import taylor_attention

# The scan of chunks is itself cut into chunks beyond CHUNK^2 tokens.
LENGTHS = (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, TILE - 1, TILE, TILE + 1, 2 * TILE, 300)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def document_ids(rows: int, length: int) -> Tensor:
    """About 30 tokens a document, ids with gaps, cut differently in each row."""
    starts = torch.rand(rows, length, generator=torch.Generator().manual_seed(length)) < 1 / 30
    return 2 * starts.long().cumsum(dim=1)


def assert_same(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    """Values and all gradients, to float64's precision."""
    assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    upstream = torch.randn(ours.shape, dtype=torch.double, generator=torch.Generator().manual_seed(9))
    got, wanted = torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream)
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("groups", [1, 3])
def test_taylor_attention(groups: int, masked: bool):
    for length in LENGTHS:
        queries, keys, values = drawn(2, 2 * groups, length, 4), drawn(2, 2, length, 4, seed=1), drawn(2, 2, length, 4)
        ids = document_ids(2, length) if masked else None
        weights = reference.taylor_map(
            queries, keys.repeat_interleave(groups, 1), None if ids is None else ids[:, None]
        )
        expected = weights @ values.repeat_interleave(groups, 1)
        assert_same(taylor_attention(queries, keys, values, ids), expected, [queries, keys, values])


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
def test_prefix_average(masked: bool):
    for length in LENGTHS:
        scores, values = drawn(2, 3, length), drawn(2, 3, length, 5)
        ids = document_ids(2, length) if masked else None
        expected = reference.prefix_map(scores, None if ids is None else ids[:, None]) @ values
        assert_same(prefix_average(scores, values, ids), expected, [scores, values])


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
def test_prefix_average_scans_chunks_of_chunks(masked: bool, monkeypatch: pytest.MonkeyPatch):
    """With small chunks a short sequence takes every level of the recursion (at 64 it starts beyond 4096 tokens)."""
    monkeypatch.setattr("deconattn.ops.blockwise.prefix_average.CHUNK", 4)
    for length in (3, 4, 5, 16, 17, 63, 64, 65, 257):
        scores, values = drawn(2, 3, length), drawn(2, 3, length, 5)
        ids = document_ids(2, length) if masked else None
        expected = reference.prefix_map(scores, None if ids is None else ids[:, None]) @ values
        assert_same(prefix_average(scores, values, ids), expected, [scores, values])


@pytest.mark.parametrize("groups", [1, 3])
def test_fixed_map_attention(groups: int):
    for length in LENGTHS:
        queries, keys, values = drawn(2 * groups, length, 4), drawn(2, length, 4, seed=1), drawn(3, 2, length, 4)
        weights = reference.softmax_map(queries, keys.repeat_interleave(groups, 0))
        expected = weights @ values.repeat_interleave(groups, 1)
        assert_same(fixed_map_attention(queries, keys, values), expected, [queries, keys, values])


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("short", [0, 256], ids=["blocks", "pytorch"])
def test_causal_attention(groups: int, masked: bool, short: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deconattn.ops.softmax_attention.SHORT", short)
    for length in (1, TILE - 1, TILE + 1, 300) if short == 0 else (1, 64, 130):
        queries, keys, values = drawn(2, 2 * groups, length, 4), drawn(2, 2, length, 4, seed=1), drawn(2, 2, length, 4)
        ids = document_ids(2, length)
        documents = Documents(ids, torch.zeros_like(ids)) if masked else None
        weights = reference.softmax_map(queries, keys.repeat_interleave(groups, 1), ids[:, None] if masked else None)
        expected = weights @ values.repeat_interleave(groups, 1)
        assert_same(causal_attention(queries, keys, values, documents), expected, [queries, keys, values])


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("width", [3, 10])
def test_values_of_another_width(width: int, masked: bool):
    ids = document_ids(2, 300)
    documents = Documents(ids, torch.zeros_like(ids)) if masked else None
    queries, keys, values = drawn(2, 4, 300, 6), drawn(2, 2, 300, 6, seed=1), drawn(2, 2, 300, width)
    for way in (causal_attention, plain.causal_attention):
        weights = reference.softmax_map(queries, keys.repeat_interleave(2, 1), ids[:, None] if masked else None)
        expected = weights @ values.repeat_interleave(2, 1)
        with torch.no_grad():
            assert_close(way(queries, keys, values, documents), expected, rtol=1e-10, atol=1e-11)
        assert_same(way(queries, keys, values, documents), expected, [queries, keys, values])


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("groups", [1, 3])
def test_prefix_attention(groups: int, masked: bool):
    for length in (1, CHUNK, 2 * CHUNK + 1, 300):
        queries, keys, values = drawn(2, 2 * groups, length, 4), drawn(2, 2, length, 4, seed=1), drawn(2, 2, length, 4)
        ids = document_ids(2, length) if masked else None
        shared = keys.repeat_interleave(groups, 1)
        scores = reference.token_scores(torch.nn.functional.silu(queries), shared)
        weights = reference.prefix_map(scores, None if ids is None else ids[:, None])
        expected = weights @ values.repeat_interleave(groups, 1)
        assert_same(prefix_attention(queries, keys, values, ids), expected, [queries, keys, values])


def test_all_heads_at_once(monkeypatch: pytest.MonkeyPatch):
    """As on an accelerator, where rows and heads are not computed one by one."""
    monkeypatch.setattr("deconattn.ops.blockwise.heads.one_at_a_time", lambda device: False)
    queries, keys, values = drawn(2, 6, 200, 4), drawn(2, 2, 200, 4, seed=1), drawn(2, 2, 200, 4)
    ids = document_ids(2, 200)
    documents = Documents(ids, torch.zeros_like(ids))
    for ours, exact in (
        (taylor_attention(queries, keys, values, ids), reference.taylor_attention(queries, keys, values, ids)),
        (causal_attention(queries, keys, values, documents), reference.softmax_attention(queries, keys, values, ids)),
        (prefix_attention(queries, keys, values, ids), reference.prefix_attention(queries, keys, values, ids)),
    ):
        assert_same(ours, exact, [queries, keys, values])
    fixed = [queries[0].detach().requires_grad_(), keys[0].detach().requires_grad_(), values]
    assert_same(fixed_map_attention(*fixed), reference.fixed_map_attention(*fixed), fixed)


def extreme_scores(length: int) -> dict[str, Tensor]:
    """Up to a thousand either way: what uniform models reach in late layers."""
    generator = torch.Generator().manual_seed(0)
    mixed = (torch.rand(length, generator=generator) * 2 - 1) * 1e3
    return {
        "mixed": mixed,
        "rising": torch.linspace(-1e3, 1e3, length),
        "falling": torch.linspace(1e3, -1e3, length),
        "alternating": torch.where(torch.arange(length) % 2 == 0, 1e3, -1e3),
        "tied high": torch.full((length,), 1e3),
        "tied low": torch.full((length,), -1e3),
        "near ties": 1e3 + torch.randn(length, generator=generator),
        "one spike": torch.where(torch.arange(length) == length // 2, 1e3, -1e3),
    }


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("name", extreme_scores(1))
def test_prefix_average_at_extreme_scores(name: str, masked: bool):
    length = 300
    scores = extreme_scores(length)[name].expand(1, 2, length).contiguous().requires_grad_()
    values = drawn(1, 2, length, 4).detach().float().requires_grad_()
    ids = document_ids(1, length) if masked else None
    upstream = drawn(1, 2, length, 4, seed=2).detach()
    output = prefix_average(scores, values, ids)
    got = torch.autograd.grad(output, [scores, values], upstream.float())

    exact = [scores.detach().double().requires_grad_(), values.detach().double().requires_grad_()]
    expected = reference.prefix_map(exact[0], None if ids is None else ids[:, None]) @ exact[1]
    wanted = torch.autograd.grad(expected, exact, upstream)
    # fp32 knows a log-normaliser of 1e3 to 3e-5, and with it each weight to a relative 3e-5 (a few times over).
    tolerance = 8 * 1e3 * torch.finfo(torch.float32).eps / 2
    # A score's gradient is a difference of two sums, each as large as its value's gradient.
    sums = (wanted[1] * exact[1]).sum(dim=-1).abs().max().item()
    sizes = (expected.abs().max().item(), sums, wanted[1].abs().max().item())
    for ours, theirs, size in zip([output, *got], [expected, *wanted], sizes, strict=True):
        assert ours.dtype == torch.float32
        assert ours.isfinite().all()
        assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * size)


def test_ties_average_plainly():
    values = drawn(1, 1, 100, 3).detach().float()
    output = prefix_average(torch.full((1, 1, 100), -1e3), values)
    means = values.double().cumsum(dim=2) / torch.arange(1, 101)[:, None]
    assert_close(output.double(), means, rtol=1e-4, atol=1e-4)


def test_bfloat16_values_keep_float32_scores():
    """Two scores that bf16 cannot tell apart keep their weights."""
    scores = torch.tensor([[[100.0, 100.4]]], requires_grad=True)
    values = torch.tensor([0.0, 1.0], dtype=torch.bfloat16).view(1, 1, 2, 1).requires_grad_()
    output = prefix_average(scores, values)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert scores.grad.dtype == torch.float32
    assert values.grad.dtype == torch.bfloat16
    assert abs(output[0, 0, 1, 0].item() - torch.tensor(0.4).sigmoid().item()) < 2**-8


LONG = 16384


def mixing_at(length: int, device: str) -> dict[str, tuple]:
    """Each path with two query heads: (function, inputs)."""

    def empty(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, requires_grad=True)

    ids = torch.zeros(1, length, dtype=torch.long, device=device)
    return {
        "taylor": (taylor_attention, (empty(1, 2, length, 8), empty(1, 1, length, 8), empty(1, 1, length, 8))),
        "taylor documents": (
            taylor_attention,
            (empty(1, 2, length, 8), empty(1, 1, length, 8), empty(1, 1, length, 8), ids),
        ),
        "prefix": (prefix_average, (empty(1, 2, length), empty(1, 2, length, 8))),
        "prefix documents": (prefix_average, (empty(1, 2, length), empty(1, 2, length, 8), ids)),
        "fixed": (fixed_map_attention, (empty(2, length, 8), empty(1, length, 8), empty(3, 1, length, 8))),
    }


@pytest.mark.parametrize("name", mixing_at(1, "cpu"))
def test_memory_is_linear_in_length(name: str, largest_tensor):
    """Forward and backward at 16384 tokens, shapes only: nothing near the 2.7e8 elements of one head's map."""
    function, inputs = mixing_at(LONG, "meta")[name]
    with largest_tensor:
        output = function(*inputs)
        forward = largest_tensor.operations
        output.sum().backward()
    assert largest_tensor.operations > forward + 10  # the backward pass was watched too
    assert inputs[0].grad.shape == inputs[0].shape
    assert largest_tensor.elements <= 2 * TILE * LONG  # one tile of both heads


@pytest.mark.parametrize("name", ["prefix", "prefix documents"])
def test_prefix_average_of_a_long_sequence(name: str, largest_tensor):
    """The same in earnest: 16384 fp32 tokens, against a running sum in float64."""
    function, (scores, values, *rest) = mixing_at(LONG, "cpu")[name]
    with largest_tensor:
        output = function(scores, values, *rest)
        output.sum().backward()
    assert largest_tensor.elements <= LONG * CHUNK * 2
    weights = scores.detach().double().exp()[..., None]
    expected = (weights * values.detach().double()).cumsum(dim=2) / weights.cumsum(dim=2)
    assert_close(output.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_the_recorder_sees_a_map(largest_tensor):
    """So that the tests above can fail."""
    inputs = mixing_at(1024, "meta")["fixed"][1]
    with largest_tensor:
        reference.softmax_map(inputs[0], inputs[1])
    assert largest_tensor.elements >= 1024**2


def test_sdpa_holds_no_map(largest_tensor):
    length = 2048
    queries, keys, values = torch.randn(3, 1, 2, length, 8).requires_grad_().unbind()
    with largest_tensor:
        causal_attention(queries, keys, values).sum().backward()
    assert largest_tensor.elements < length**2
