"""Attention by biased, windowed and sigmoid scores against the formulas in float64, across the borders of tiles."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.ops import cached_attention, plain
from deconattn.ops.blockwise.tiles import TILE
from deconattn.ops.scored_attention import scored_attention
from tests.ops.test_mixing import assert_same, document_ids, drawn

RULES = {
    "levels": {},
    "window": {"window": 7, "sinks": 4},
    "long window": {"window": TILE + 5, "sinks": 2},
    "no sinks": {"window": 30},
    "sigmoid": {"sigmoid": True},
}


def by_the_formula(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    ids: Tensor | None,
    levels: Tensor | None,
    offsets: Tensor | None,
    sigmoid: bool = False,
    window: int = 0,
    sinks: int = 0,
) -> Tensor:
    group, length = queries.shape[1] // keys.shape[1], queries.shape[2]
    scores = queries @ keys.repeat_interleave(group, 1).mT / queries.shape[-1] ** 0.5
    if levels is not None:
        scores = scores + levels[:, :, None] - levels[..., None]
    if offsets is not None:
        scores = scores + offsets[:, None, :, None]
    visible = torch.zeros(len(queries), length, length, dtype=torch.bool)
    for row in range(len(queries)):
        of_row = [0] * length if ids is None else ids[row].tolist()
        for i in range(length):
            start = of_row.index(of_row[i])
            visible[row, i, max(start, i + 1 - (window or length)) : i + 1] = True
            visible[row, i, start : min(start + sinks, i + 1)] = True
    scores = scores.masked_fill(~visible[:, None], -torch.inf)
    return (scores.sigmoid() if sigmoid else scores.softmax(-1)) @ values.repeat_interleave(group, 1)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_values_and_gradients(rule: str, groups: int, masked: bool):
    for length in (1, 6, TILE, TILE + 1, 2 * TILE + 30):
        queries, keys, values = drawn(2, 2 * groups, length, 4), drawn(2, 2, length, 4, seed=1), drawn(2, 2, length, 6)
        ids = document_ids(2, length) if masked else None
        levels = drawn(2, 2 * groups, length, seed=3) if rule == "levels" else None
        offsets = drawn(2, length, seed=4).detach() if rule == "sigmoid" else None
        given = (queries, keys, values, ids, levels, offsets)
        inputs = [queries, keys, values, *([] if levels is None else [levels])]
        for way in (scored_attention, plain.scored_attention):
            assert_same(way(*given, **RULES[rule]), by_the_formula(*given, **RULES[rule]), inputs)


def test_levels_of_all_rows_and_far_apart():
    """Differences of large levels are as exact as of small ones, and rows may share them."""
    queries, keys, values = drawn(2, 4, 300, 4), drawn(2, 2, 300, 4, seed=1), drawn(2, 2, 300, 4)
    slopes = 0.5 ** torch.arange(1, 5, dtype=torch.double)
    levels = (1e6 + slopes[:, None] * torch.arange(300))[None]
    expected = by_the_formula(queries, keys, values, None, levels - 1e6, None)
    assert_close(scored_attention(queries, keys, values, levels=levels), expected, rtol=1e-8, atol=1e-8)
    narrow = scored_attention(queries.float(), keys.float(), values.float(), levels=levels)
    assert_close(narrow, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_some_new_tokens_over_those_held(sigmoid: bool):
    queries, keys, values = (drawn(2, heads, 50, 4, seed=heads).detach() for heads in (4, 2, 2))
    levels, offsets = drawn(2, 4, 50, seed=5).detach(), drawn(1, 50, seed=6).detach()
    slots = torch.arange(40, 50)[None]
    bias = cached_attention.pair_bias(
        slots, torch.arange(50) <= slots[..., None], None if sigmoid else levels, offsets[:, 40:]
    )
    got = cached_attention.biased_attention(queries[:, :, 40:], keys, values, bias, sigmoid)
    expected = by_the_formula(queries, keys, values, None, None if sigmoid else levels, offsets, sigmoid)
    assert_close(got, expected[:, :, 40:], rtol=1e-10, atol=1e-10)
