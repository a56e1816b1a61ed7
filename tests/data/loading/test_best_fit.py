"""Best-fit packing: the algorithm against the textbook's, and the samples that come of it."""

import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deconattn.data import SampleStream, TokenCorpus
from deconattn.data.loading.best_fit import BestFit, best_fit

PackedFolder = Callable[..., Path]
IGNORED = -100


def textbook(lengths: list[int], capacity: int) -> list[int]:
    """Loads of the bins of best-fit decreasing, one piece at a time."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, room in enumerate(rooms) if room >= length]
        if not fitting:
            fitting = [len(rooms)]
            rooms.append(capacity)
        rooms[min(fitting, key=lambda number: rooms[number])] -= length
    return sorted(capacity - room for room in rooms)


@given(st.integers(1, 40).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=80))))
@settings(deadline=None, max_examples=200)
def test_it_is_best_fit_decreasing(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    array = np.array(lengths, dtype=np.int32)
    pieces, bounds = best_fit(array, capacity)
    assert sorted(pieces.tolist()) == list(range(len(lengths)))
    bins = [pieces[low:high] for low, high in pairwise(bounds)]
    assert sorted(int(array[members].sum()) for members in bins) == textbook(lengths, capacity)
    assert all(np.all(np.diff(members) > 0) for members in bins)


def test_little_is_wasted_on_documents_of_many_lengths() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 200_000).astype(np.int32).clip(1, 2048)
    _, bounds = best_fit(lengths, 2048)
    assert len(bounds) - 1 == pytest.approx(lengths.sum() / 2048, rel=1e-3)


@pytest.fixture
def documents() -> list[list[list[int]]]:
    """Two shards; every token but the separators is another, and lengths go from 1 to 35."""
    generator = np.random.default_rng(1)
    lengths = [*generator.integers(1, 12, 60), 8, 16, 24, 9, 35, 1]
    found, first = [], 1
    for length in lengths:
        found.append([*range(first, first + length - 1), 0])
        first += length
    return [found[:30], found[30:]]


def stream_of(folder: Path, seq_len: int, **named: bool) -> SampleStream:
    return SampleStream([(TokenCorpus(folder), 1.0)], seq_len, seed=0, packing="best-fit", **named)


@pytest.mark.parametrize("seq_len", [1, 7, 8, 35, 100_000])
def test_no_document_that_fits_is_cut(
    packed_folder: PackedFolder, documents: list[list[list[int]]], seq_len: int
) -> None:
    stream = stream_of(packed_folder(documents), seq_len, shuffle=False)
    batch = stream.batch(range(stream.num_samples), doc_mask=True)
    assert batch.document_ids is not None and batch.position_ids is not None
    pieces = []
    tensors = (batch.input_ids, batch.labels, batch.document_ids, batch.position_ids)
    for ids, labels, numbers, positions in zip(*(tensor.numpy() for tensor in tensors), strict=True):
        assert numbers[0] == 0 and set(np.diff(numbers)) <= {0, 1}
        for number in range(numbers[-1] + 1):
            ours = numbers == number
            assert positions[ours].tolist() == list(range(int(ours.sum())))
            piece, following = ids[ours], labels[ours]
            assert np.array_equal(following[:-1], np.where(following[:-1] == IGNORED, IGNORED, piece[1:]))
            pieces.append((piece.tolist(), following.tolist()))
    wanted = []
    for document in [document for shard in documents for document in shard]:
        for at in range(0, len(document), seq_len):
            piece = document[at : at + seq_len]
            wanted.append((piece, [*piece[1:], document[at + seq_len] if at + seq_len < len(document) else IGNORED]))
    padding = [(ids, labels) for ids, labels in pieces if len(ids) > 1 and set(labels) == {IGNORED}]
    real = [piece for piece in pieces if piece not in padding]
    single = ([0], [IGNORED])  # a document of one token looks like padding of one
    assert sorted(piece for piece in real if piece != single) == sorted(piece for piece in wanted if piece != single)
    assert all(set(ids) == {0} for ids, _ in padding)
    layout = stream.layouts[0]
    assert isinstance(layout, BestFit)
    total = sum(len(document) for shard in documents for document in shard)
    assert layout.packing.cut == sum(len(document) > seq_len for shard in documents for document in shard)
    assert layout.packing.documents == 66
    assert layout.packing.padding == pytest.approx(1 - total / (stream.num_samples * seq_len))


def test_without_masks_labels_go_on_into_the_next_document_but_not_into_padding(packed_folder: PackedFolder) -> None:
    folder = packed_folder([[[1, 2, 0], [3, 4, 5, 6, 7, 8, 9, 10, 0], [11, 0]]])
    batch = stream_of(folder, 6, shuffle=False).batch(range(3), doc_mask=False)
    assert batch.document_ids is None
    assert batch.input_ids.tolist() == [[3, 4, 5, 6, 7, 8], [1, 2, 0, 9, 10, 0], [11, 0, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[4, 5, 6, 7, 8, 9], [2, 0, 9, 10, 0, -100], [0, -100, -100, -100, -100, -100]]
    masked = stream_of(folder, 6, shuffle=False).batch(range(3), doc_mask=True)
    assert masked.document_ids is not None
    assert masked.document_ids.tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    assert masked.labels.tolist() == [[4, 5, 6, 7, 8, 9], [2, 0, -100, 10, 0, -100], [0, *[-100] * 5]]


def test_a_sample_is_a_function_of_its_number(packed_folder: PackedFolder, documents: list[list[list[int]]]) -> None:
    folder = packed_folder(documents)
    whole = stream_of(folder, 9).batch(range(120), doc_mask=True)
    halves = [stream_of(folder, 9).batch(range(rank, 120, 2), doc_mask=True) for rank in range(2)]
    stacked = torch.stack([half.labels for half in halves], dim=1).flatten(0, 1)
    assert torch.equal(whole.labels, stacked)
    copy = pickle.loads(pickle.dumps(stream_of(folder, 9)))
    assert torch.equal(copy.batch(range(120), doc_mask=True).input_ids, whole.input_ids)


def test_what_is_reported(packed_folder: PackedFolder) -> None:
    layout = stream_of(packed_folder([[[1, 2, 0], [3, 4, 5, 6, 7, 8, 9, 10, 0], [11, 0]]]), 6).layouts[0]
    assert isinstance(layout, BestFit)
    assert str(layout.packing) == "3 documents in 3 sequences, 22.22% padding, 1 cut (longer than a sequence)"
