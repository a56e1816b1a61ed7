"""The sums of `approximate` over rows in parts: values and gradients against the formula, and what a sum holds."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.ops import reference, taylor_scan
from deconattn.ops.taylor_state import num_features
from tests.ops.test_taylor_states import SMALL_CHUNK, document_ids, drawn

PARTS = 3


def by_parts(queries: Tensor, keys: Tensor, values: Tensor, ids: Tensor | None) -> Tensor:
    """Each part by itself, from the sums of those before it."""
    parts = list(zip(*(tensor.chunk(PARTS, 2) for tensor in (queries, keys, values)), strict=True))
    documents = [None] * PARTS if ids is None else ids.chunk(PARTS, 1)
    sums = [taylor_scan.last_sums(*part[1:], here) for part, here in zip(parts, documents, strict=True)]
    mixed = []
    for number, (part, here) in enumerate(zip(parts, documents, strict=True)):
        before = torch.zeros_like(sums[0])
        for other in range(number):
            counts = 1 if here is None else (documents[other][:, -1] == here[:, 0])[:, None, None, None]
            before = before + sums[other] * counts
        mixed.append(taylor_scan.following_attention(*part, before, here))
    return torch.cat(mixed, dim=2)


@pytest.mark.parametrize("mean", [None, 4, 40], ids=["plain", "short documents", "long documents"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("head_dim", [4, 16, 40])
def test_parts_follow_the_formula(head_dim: int, group: int, mean: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one chunk and of several, of which the last is not whole."""
    monkeypatch.setattr("deconattn.ops.blockwise.taylor_states.CHUNK", SMALL_CHUNK)
    for length in (PARTS, PARTS * SMALL_CHUNK, PARTS * 37):
        queries = drawn(2, 2 * group, length, head_dim, seed=0)
        keys, values = drawn(2, 2, length, head_dim, seed=1), drawn(2, 2, length, head_dim, seed=2)
        ids = document_ids(2, length, mean) if mean else None
        inputs = [queries, keys, values]
        ours, theirs = by_parts(*inputs, ids), reference.taylor_attention(*inputs, ids)
        assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
        upstream = drawn(*ours.shape, seed=9).detach()
        got, wanted = (torch.autograd.grad(result, inputs, upstream) for result in (ours, theirs))
        for one, other in zip(got, wanted, strict=True):
            assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("head_dim", [4, 16, 40])
def test_sums_hold_each_product_once(head_dim: int) -> None:
    keys, values = drawn(1, 2, 9, head_dim, seed=1).detach(), drawn(1, 2, 9, head_dim, seed=2).detach()
    sums = taylor_scan.last_sums(keys, values)
    assert sums.shape == (1, 2, num_features(head_dim), head_dim + 1)
    extended = torch.nn.functional.pad(values, (0, 1), value=1.0)
    products = [torch.ones_like(keys[..., 0]), *keys.unbind(-1)]
    products += [keys[..., a] * keys[..., b] for a in range(head_dim) for b in range(a, head_dim)]
    wanted = torch.stack(products, dim=-2) @ extended
    assert_close(sums.sort(dim=2)[0], wanted.sort(dim=2)[0])  # in an order of their own
