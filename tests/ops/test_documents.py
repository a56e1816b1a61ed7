"""Document boundaries: masks and offsets."""

import torch

from deconattn.ops import reference
from deconattn.ops.documents import Documents

IDS = torch.tensor([[0, 0, 0, 1, 1, 5], [5, 5, 6, 6, 6, 6], [0, 0, 0, 0, 0, 0]])


def test_cumulative_lengths_start_each_row_anew():
    """Equal ids at the end of one row and the start of the next are two documents."""
    documents = Documents(IDS, torch.zeros_like(IDS))
    assert documents.cumulative_lengths.tolist() == [0, 3, 5, 6, 8, 12, 18]
    assert documents.cumulative_lengths.dtype == torch.int32


def test_single_tokens():
    documents = Documents(torch.arange(4)[None], torch.zeros(1, 4, dtype=torch.long))
    assert documents.cumulative_lengths.tolist() == [0, 1, 2, 3, 4]


def test_causal_mask_is_the_references():
    documents = Documents(IDS, torch.zeros_like(IDS))
    assert torch.equal(documents.causal_mask, reference.allowed(6, IDS[:, None]))
    assert documents.causal_mask is documents.causal_mask  # made once


def test_rows():
    documents = Documents(IDS, torch.arange(18).view(3, 6))
    first = documents.rows(2)
    assert torch.equal(first.ids, IDS[:2])
    assert torch.equal(first.position_ids, torch.arange(12).view(2, 6))
    assert first.cumulative_lengths.tolist() == [0, 3, 5, 6, 8, 12]
