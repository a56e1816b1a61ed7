"""The formulas against the paper's sums, written out number by number."""

import math

import torch
from torch.testing import assert_close

from deconattn.ops import reference

L, DIM = 6, 3
QUERIES, KEYS = torch.randn(2, L, DIM, dtype=torch.double, generator=torch.Generator().manual_seed(0))
DOCUMENTS = torch.tensor([4, 4, 7, 7, 7, 9])


def score(i: int, j: int) -> float:
    return sum(float(QUERIES[i, c] * KEYS[j, c]) for c in range(DIM)) / math.sqrt(DIM)


def expected_map(weight, documents=None):
    result = torch.zeros(L, L, dtype=torch.double)
    for i in range(L):
        seen = [j for j in range(i + 1) if documents is None or documents[i] == documents[j]]
        total = sum(weight(i, j) for j in seen)
        for j in seen:
            result[i, j] = weight(i, j) / total
    return result


def test_softmax_map():
    for documents in (None, DOCUMENTS):
        expected = expected_map(lambda i, j: math.exp(score(i, j)), documents)
        assert_close(reference.softmax_map(QUERIES, KEYS, documents), expected, rtol=1e-12, atol=1e-12)


def test_taylor_map():
    for documents in (None, DOCUMENTS):
        expected = expected_map(lambda i, j: 1 + score(i, j) + score(i, j) ** 2 / 2, documents)
        assert_close(reference.taylor_map(QUERIES, KEYS, documents), expected, rtol=1e-12, atol=1e-12)


def test_prefix_map():
    scores = reference.token_scores(QUERIES, KEYS)
    for documents in (None, DOCUMENTS):
        expected = expected_map(lambda i, j: math.exp(score(j, j)), documents)
        assert_close(reference.prefix_map(scores, documents), expected, rtol=1e-12, atol=1e-12)


def test_taylor_map_is_positive_at_its_lowest():
    """s = -1 for every pair is the minimum of 1 + s + s^2/2: one half each, so plain averages."""
    ones = torch.ones(4, 4, dtype=torch.double)
    weights = reference.taylor_map(ones, -ones / 2)
    assert_close(weights, torch.ones(4, 4, dtype=torch.double).tril() / torch.arange(1, 5)[:, None])
