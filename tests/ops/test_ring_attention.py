"""Blocks of attention add up to the whole, and PyTorch's flash attention stands in for them where it is right."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deconattn.ops import flash_blocks, reference, ring_attention
from deconattn.ops.documents import Documents


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    ring_attention._flash_is_right.cache_clear()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("documents", [False, True])
def test_blocks_of_keys_add_up(documents: bool) -> None:
    """Queries of the later 250 of 450 tokens, whose documents begin at 150 or, with two, at 300, too."""
    torch.manual_seed(0)
    queries, keys, values, grad = draw(2, 4, 450, 8), draw(2, 2, 450, 8), draw(2, 2, 450, 6), draw(2, 4, 250, 6)
    ids = torch.bucketize(torch.arange(450), torch.tensor([150, 300] if documents else [150]), right=True).expand(2, -1)
    inputs = [tensor.requires_grad_() for tensor in (queries, keys, values)]
    expected = reference.softmax_attention(*inputs, ids)[:, :, 200:]
    of_inputs = torch.autograd.grad(expected, inputs, grad)

    queries, keys, values = (tensor.detach() for tensor in inputs)
    own = Documents(ids[:, 200:], ids[:, 200:]) if documents else None
    sees = slice(100 if documents else 250)  # queries that see keys 150 to 200
    early, late = slice(150, 200), slice(200, 450)
    later = queries[:, :, late], keys[:, :, late], values[:, :, late]
    mixed, lse = ring_attention.attend(*later, causal=True, documents=own)
    crossing = queries[:, :, late][:, :, sees], keys[:, :, early], values[:, :, early]
    ring_attention.merge_(mixed[:, :, sees], lse[:, :, sees], *ring_attention.attend(*crossing, causal=False))
    torch.testing.assert_close(mixed, expected, atol=1e-12, rtol=0)

    found = [torch.zeros_like(tensor) for tensor in inputs]
    of_own = ring_attention.gradients(*later, mixed, lse, grad, causal=True, documents=own)
    of_crossing = ring_attention.gradients(
        *crossing, *(tensor[:, :, sees] for tensor in (mixed, lse, grad)), causal=False
    )
    for total, share, more, tokens in zip(found, of_own, of_crossing, (late, early, early), strict=True):
        total[:, :, late] += share
        total[:, :, tokens][:, :, : more.shape[2]] += more
    for ours, theirs in zip(found, of_inputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_operators_that_are_not_there_are_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch has them for GPUs alone, so that here they raise."""
    monkeypatch.setattr(flash_blocks, "take", lambda queries, values: True)
    queries = draw(1, 2, 8, 8).bfloat16()
    for _ in range(2):
        mixed, _lse = ring_attention.attend(queries, queries, queries, causal=True)
    torch.testing.assert_close(mixed, reference.softmax_attention(queries, queries, queries), atol=0.02, rtol=0)
    said = capsys.readouterr().err
    assert said.startswith("warning: PyTorch's flash attention cannot be had") and said.count("\n") == 1


@pytest.mark.parametrize("base", [math.e, 2])
def test_operators_are_used_where_they_are_right(
    base: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stand-ins for the operators on a CPU, one of them with log-sum-exps in another base than PyTorch's."""
    used = []

    def masked(offsets: Tensor, of_keys: Tensor, causal: bool) -> Tensor:
        rows, columns = (torch.repeat_interleave(ends.diff()) for ends in (offsets, of_keys))
        same = rows[:, None] == columns
        return same.tril() if causal else same

    def scores(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        products = torch.einsum("qhx,khx->hqk", queries.float(), keys.float()) / math.sqrt(queries.shape[-1])
        return products.masked_fill(~mask, -math.inf)

    def forward(
        q: Tensor, k: Tensor, v: Tensor, ends: Tensor, of_keys: Tensor, longest: int, most: int, *rest: Any
    ) -> tuple[Tensor, ...]:
        dropout, causal, debug = rest
        assert (dropout, debug) == (0.0, False) and ends.dtype == of_keys.dtype == torch.int32
        used.append("forward")
        s = scores(q, k, masked(ends, of_keys, causal))
        mixed = torch.einsum("hqk,khx->qhx", s.softmax(dim=-1), v.float()).to(v.dtype)
        return mixed, s.logsumexp(dim=-1) / math.log(base), q, q, q

    def backward(
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        ends: Tensor,
        of_keys: Tensor,
        *rest: Any,
    ) -> tuple[Tensor, ...]:
        _longest, _most, _dropout, causal, _state, _unused = rest
        used.append("backward")
        s = scores(q, k, masked(ends, of_keys, causal))
        weights = (s - lse[..., None] * math.log(base)).exp()
        of_weights = torch.einsum("qhx,khx->hqk", grad.float(), v.float())
        delta = (grad.float() * out.float()).sum(dim=-1).T[..., None]
        of_scores = weights * (of_weights - delta) / math.sqrt(q.shape[-1])
        of_q = torch.einsum("hqk,khx->qhx", of_scores, k.float())
        of_k = torch.einsum("hqk,qhx->khx", of_scores, q.float())
        of_v = torch.einsum("hqk,qhx->khx", weights, grad.float())
        return of_q.to(q.dtype), of_k.to(k.dtype), of_v.to(v.dtype)

    monkeypatch.setattr(flash_blocks, "take", lambda queries, values: True)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", backward)
    queries, keys = draw(2, 4, 8, 8).bfloat16(), draw(2, 2, 5, 8).bfloat16()
    ring_attention.attend(queries, keys, keys, causal=False)
    tried = len(used)
    ring_attention.attend(queries, keys, keys, causal=False)
    assert (len(used) > tried) == (base == math.e)
    assert bool(capsys.readouterr().err) == (base != math.e)


@pytest.mark.parametrize(
    ("width", "of_values", "dtype", "taken"),
    [(64, 64, torch.bfloat16, True), (64, 32, torch.bfloat16, False), (64, 64, torch.float32, False)],
)
def test_what_operators_take(
    width: int, of_values: int, dtype: torch.dtype, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [torch.empty(1, 2, 3, x, dtype=dtype) for x in (width, of_values)]
    assert not flash_blocks.take(*tensors)  # on a CPU
    monkeypatch.setattr(flash_blocks.flash, "packs", lambda queries: queries.dtype == torch.bfloat16)
    assert flash_blocks.take(*tensors) == taken
