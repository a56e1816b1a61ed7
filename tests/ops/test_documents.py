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


def test_given_offsets_go_with_the_rows():
    """Rows left out become empty documents; rows of one document come after those that were empty."""
    given = torch.tensor([0, 3, 5, 6, 8, 12, 18, 18, 18], dtype=torch.int32)
    documents = Documents(IDS, torch.zeros_like(IDS), given)
    assert documents.cumulative_lengths is given
    assert documents.rows(2).cumulative_lengths.tolist() == [0, 3, 5, 6, 8, 12, 12, 12, 12]
    longer = documents.and_rows_of_one(torch.arange(6).expand(2, -1))
    assert longer.cumulative_lengths.tolist() == [*given.tolist(), 24, 30]
    assert longer.cumulative_lengths.dtype == torch.int32
    own = Documents(longer.ids, longer.position_ids).cumulative_lengths
    assert torch.equal(longer.cumulative_lengths.unique(), own)
    assert longer.position_ids[3:].tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert torch.equal(longer.rows(3).cumulative_lengths.unique(), given.unique())
    assert documents.and_rows_of_one(torch.arange(6).expand(0, -1)) is documents


def test_rows():
    documents = Documents(IDS, torch.arange(18).view(3, 6))
    first = documents.rows(2)
    assert torch.equal(first.ids, IDS[:2])
    assert torch.equal(first.position_ids, torch.arange(12).view(2, 6))
    assert first.cumulative_lengths.tolist() == [0, 3, 5, 6, 8, 12]
