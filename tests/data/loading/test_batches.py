from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deconattn.data import Batch, SampleStream, TokenCorpus, parse_data_argument
from deconattn.errors import UserError
from deconattn.ops.documents import Documents

PackedFolder = Callable[..., Path]


def numbered(total: int, first: int = 1) -> list[list[int]]:
    """Documents of 1 to 9 tokens, together `total` distinct consecutive ids."""
    documents, low, size = [], first, 1
    while low < first + total:
        documents.append(list(range(low, min(low + size, first + total))))
        low, size = low + size, size % 9 + 1
    return documents


def row(stream: SampleStream, number: int) -> list[int]:
    """The tokens of a sample, its last label included."""
    batch = stream.batch([number], doc_mask=False)
    return [*batch.input_ids[0].tolist(), int(batch.labels[0, -1])]


@pytest.fixture
def corpus(packed_folder: PackedFolder) -> TokenCorpus:
    """101 tokens 1 .. 101 in three shards."""
    return TokenCorpus(packed_folder([numbered(30, 1), numbered(41, 31), numbered(30, 72)]))


def test_samples_cover_the_corpus_in_order(corpus: TokenCorpus) -> None:
    stream = SampleStream([(corpus, 1.0)], seq_len=8, seed=0, shuffle=False)
    assert stream.num_samples == 12  # (101 - 1) // 8
    for number in range(24):
        first = number % 12 * 8 + 1
        assert row(stream, number) == list(range(first, first + 9))  # across shards too


def test_the_last_label_may_be_the_last_token(packed_folder: PackedFolder) -> None:
    exact = TokenCorpus(packed_folder([numbered(17)], name="exact"))
    assert SampleStream([(exact, 1.0)], 8, 0).num_samples == 2
    short = TokenCorpus(packed_folder([numbered(16)], name="short"))
    assert SampleStream([(short, 1.0)], 8, 0).num_samples == 1


def test_every_epoch_is_another_permutation(corpus: TokenCorpus) -> None:
    stream = SampleStream([(corpus, 1.0)], seq_len=4, seed=3)
    size = stream.num_samples
    epochs = [[row(stream, n)[0] for n in range(e * size, (e + 1) * size)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(1, 101, 4))
    assert epochs[0] != epochs[1] != epochs[2]
    other = SampleStream([(corpus, 1.0)], seq_len=4, seed=4)
    assert [row(other, n)[0] for n in range(size)] != epochs[0]


def test_order_depends_on_neither_batch_size_nor_ranks(corpus: TokenCorpus) -> None:
    def make() -> SampleStream:
        return SampleStream([(corpus, 1.0)], seq_len=6, seed=1)

    whole = make().batch(range(24), doc_mask=False).input_ids
    pairs = torch.cat([make().batch([n, n + 1], doc_mask=False).input_ids for n in range(0, 24, 2)])
    assert torch.equal(whole, pairs)
    ranks = [make().batch(range(rank, 24, 4), doc_mask=False).input_ids for rank in range(4)]
    assert torch.equal(whole, torch.stack(ranks, dim=1).flatten(0, 1))
    assert torch.equal(whole[17:], make().batch(range(17, 24), doc_mask=False).input_ids)  # a resume


def test_labels_are_the_next_tokens(corpus: TokenCorpus) -> None:
    batch = SampleStream([(corpus, 1.0)], seq_len=8, seed=0).batch([0, 5, 11], doc_mask=False)
    assert batch.input_ids.shape == batch.labels.shape == (3, 8)
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert torch.equal(batch.labels, batch.input_ids + 1)
    assert batch.position_ids is None and batch.document_ids is None and batch.document_offsets is None


def test_document_masks_by_hand(packed_folder: PackedFolder) -> None:
    documents = [[11, 12, 0], [21, 0]], [[31, 32, 33, 34, 0], [41, 42, 0]]
    corpus = TokenCorpus(packed_folder(documents))
    short = SampleStream([(corpus, 1.0)], seq_len=4, seed=0, shuffle=False)
    batch = short.batch([0, 1, 2], doc_mask=True)
    assert batch.position_ids is not None and batch.document_ids is not None
    assert batch.input_ids.tolist() == [[11, 12, 0, 21], [0, 31, 32, 33], [34, 0, 41, 42]]
    assert batch.labels.tolist() == [[12, 0, -100, 0], [-100, 32, 33, 34], [0, -100, 42, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0], [0, 0, 1, 2], [0, 1, 0, 1]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize(("rows", "number"), [(2, 65), (8, 65), (9, 129), (16, 129), (17, 257)])
def test_offsets_of_documents(rows: int, number: int) -> None:
    """Eight documents a row: as many offsets for 64 documents as for one."""
    positions, ids = torch.arange(4).repeat(8).expand(rows, -1), torch.arange(32).expand(rows, -1) // 4
    batch = Batch.of(torch.stack([ids, ids, positions, ids]))
    assert batch.document_ids is not None and batch.document_offsets is not None
    assert (len(batch.document_offsets), batch.document_offsets.dtype) == (number, torch.int32)
    own = Documents(batch.document_ids, positions).cumulative_lengths
    assert torch.equal(batch.document_offsets[: len(own)], own)
    assert (batch.document_offsets[len(own) :] == rows * 32).all()


def test_a_document_that_begins_right_after_the_window(packed_folder: PackedFolder) -> None:
    corpus = TokenCorpus(packed_folder([[[1, 2, 3, 0], [4, 5, 6, 0], [7, 0]]]))
    batch = SampleStream([(corpus, 1.0)], 4, 0, shuffle=False).batch([0, 1], doc_mask=True)
    assert batch.labels.tolist() == [[2, 3, 0, -100], [5, 6, 0, -100]]
    assert batch.document_ids is not None and batch.document_ids.max() == 0


@pytest.mark.parametrize("seq_len", [1, 2, 7, 49, 100])
def test_any_sequence_length(corpus: TokenCorpus, seq_len: int) -> None:
    stream = SampleStream([(corpus, 1.0)], seq_len, seed=0, shuffle=False)
    assert stream.num_samples == 100 // seq_len
    whole = stream.batch(range(stream.num_samples), doc_mask=False)
    covered = stream.num_samples * seq_len
    assert whole.input_ids.flatten().tolist() == list(range(1, covered + 1))
    assert whole.labels.flatten().tolist() == list(range(2, covered + 2))
    masked = stream.batch(range(stream.num_samples), doc_mask=True)
    assert masked.position_ids is not None and masked.document_ids is not None
    starts = set(corpus.document_starts(0, 101).tolist())
    for place, (position, label) in enumerate(
        zip(masked.position_ids.flatten().tolist(), masked.labels.flatten().tolist(), strict=True)
    ):
        assert (position == 0) == (place in starts or place % seq_len == 0)
        assert label == (-100 if place + 1 in starts else place + 2)


def test_a_sequence_longer_than_many_shards(packed_folder: PackedFolder) -> None:
    shard = [[7] * 999 + [0]] * 21
    corpus = TokenCorpus(packed_folder([shard] * 10))
    batch = SampleStream([(corpus, 1.0)], seq_len=100_000, seed=0).batch([0, 1], doc_mask=True)
    assert batch.document_ids is not None and batch.document_ids.max() == 99
    assert int((batch.input_ids == 0).sum()) == 200 and int((batch.labels == -100).sum()) == 200


def test_an_id_beyond_the_vocabulary_is_named(packed_folder: PackedFolder) -> None:
    folder = packed_folder([[[1, 2, 3, 0], [777, 5, 6, 0]]])
    path = folder / "train-00000.arrow"
    content = bytearray(path.read_bytes())
    where = content.index(np.array([777, 5], dtype=np.uint16).tobytes())
    content[where : where + 2] = np.uint16(1001).tobytes()
    path.write_bytes(content)
    for packing in ("concat", "best-fit"):
        stream = SampleStream([(TokenCorpus(folder), 1.0)], seq_len=4, seed=0, shuffle=False, packing=packing)
        with pytest.raises(UserError, match=f"{path}: token 4 is 1001, beyond the vocabulary of 1000"):
            stream.batch(range(stream.num_samples), doc_mask=False)


def test_blending_two_corpora(packed_folder: PackedFolder) -> None:
    small = TokenCorpus(packed_folder([numbered(21, 1)], name="small"))
    large = TokenCorpus(packed_folder([numbered(201, 500)], name="large"))
    stream = SampleStream([(small, 1.0), (large, 3.0)], seq_len=5, seed=0)
    assert stream.num_samples == 4 + 40
    firsts = [row(stream, n)[0] for n in range(64)]
    drawn = np.cumsum([first < 500 for first in firsts])
    assert np.all(np.abs(drawn - 0.25 * np.arange(1, 65)) < 1)
    from_small = [first for first in firsts if first < 500]
    for epoch in range(4):
        assert sorted(from_small[epoch * 4 : epoch * 4 + 4]) == [1, 6, 11, 16]
    from_large = [first for first in firsts if first >= 500]
    assert len(set(from_large[:40])) == 40


def test_a_corpus_too_short(packed_folder: PackedFolder) -> None:
    folder = packed_folder([numbered(8)])
    with pytest.raises(UserError, match=f"{folder} .train. has 8 tokens, too few for one sequence of 8"):
        SampleStream([(TokenCorpus(folder), 1.0)], seq_len=8, seed=0)


def test_different_tokenizers(packed_folder: PackedFolder) -> None:
    one, other = packed_folder([numbered(9)], name="one"), packed_folder([numbered(9)], fingerprint="g", name="other")
    with pytest.raises(UserError, match=f"{one} and {other} were packed with different tokenizers"):
        SampleStream([(TokenCorpus(one), 1.0), (TokenCorpus(other), 1.0)], seq_len=4, seed=0)


def test_a_batch_moves_as_a_whole(corpus: TokenCorpus) -> None:
    batch = SampleStream([(corpus, 1.0)], 8, 0).batch([0], doc_mask=True).to("meta")
    assert isinstance(batch, Batch)
    for tensor in (
        batch.input_ids, batch.labels, batch.position_ids, batch.document_ids, batch.document_offsets
    ):  # fmt: skip
        assert tensor is not None and tensor.device.type == "meta"


def test_data_argument(tmp_path: Path) -> None:
    assert parse_data_argument("some/dir") == (Path("some/dir"), 1.0)
    assert parse_data_argument("some/dir:0.25") == (Path("some/dir"), 0.25)
    (tmp_path / "a:2").mkdir()
    assert parse_data_argument(str(tmp_path / "a:2")) == (tmp_path / "a:2", 1.0)
    for wrong in ("dir:0", "dir:-1", "dir:x", "dir:nan", "dir:inf", "dir:", ":3"):
        with pytest.raises(UserError, match="DIR:WEIGHT"):
            parse_data_argument(wrong)
