import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deconattn.data import TokenCorpus
from deconattn.errors import UserError

PackedFolder = Callable[..., Path]


@pytest.fixture
def documents() -> list[list[list[int]]]:
    """Three shards of documents of 1 to 12 tokens."""
    generator = np.random.default_rng(0)
    return [
        [[*generator.integers(1, 1000, generator.integers(0, 12)).tolist(), 0] for _ in range(20)] for _ in range(3)
    ]


def test_windows_equal_the_plain_concatenation(
    packed_folder: PackedFolder, documents: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deconattn.data.shards.TOKENS_PER_RECORD_BATCH", 25)
    corpus = TokenCorpus(packed_folder(documents))
    flat = [document for shard in documents for document in shard]
    plain = np.concatenate(flat)
    begins = np.cumsum([0, *map(len, flat[:-1])])
    assert corpus.num_tokens == len(plain)
    for start in range(len(plain) + 1):
        for length in (0, 1, 7, 26, 60, len(plain) - start):
            if start + length > len(plain):
                continue
            window = corpus.read(start, length)
            assert window.dtype == np.int64
            assert np.array_equal(window, plain[start : start + length])
            expected = begins[(begins >= start) & (begins < start + length)] - start
            assert np.array_equal(corpus.document_starts(start, length), expected)


def test_windows_outside(packed_folder: PackedFolder) -> None:
    corpus = TokenCorpus(packed_folder([[[1, 2, 0]]]))
    for start, length in [(-1, 2), (0, 4), (3, 1), (0, -1)]:
        with pytest.raises(IndexError):
            corpus.read(start, length)
        with pytest.raises(IndexError):
            corpus.document_starts(start, length)


def test_token_beyond_the_vocabulary_is_named(packed_folder: PackedFolder) -> None:
    folder = packed_folder([[[1, 2, 0]], [[3, 4, 0], [777, 0]]])
    path = folder / "train-00001.arrow"
    content = bytearray(path.read_bytes())
    where = content.index(np.array([777, 0], dtype=np.uint16).tobytes())
    content[where : where + 2] = np.uint16(1000).tobytes()
    path.write_bytes(content)
    corpus = TokenCorpus(folder)
    assert corpus.read(0, 6).tolist() == [1, 2, 0, 3, 4, 0]
    with pytest.raises(UserError, match=f"{path}: token 3 is 1000, beyond the vocabulary of 1000"):
        corpus.read(2, 6)


def test_a_split_that_is_not_there(packed_folder: PackedFolder) -> None:
    with pytest.raises(UserError, match="has no val split.*--val-fraction"):
        TokenCorpus(packed_folder([[[1, 0]]]), "val")


def test_tokenizer_path(demo_folder: Path, packed_folder: PackedFolder) -> None:
    assert TokenCorpus(demo_folder).tokenizer_path == demo_folder / "tokenizer.model"
    with pytest.raises(UserError, match="has lost its tokenizer"):
        _ = TokenCorpus(packed_folder([[[1, 0]]])).tokenizer_path


def test_reading_copies_no_shard(demo_folder: Path) -> None:
    corpus = TokenCorpus(demo_folder)
    corpus.read(0, 10)
    values = corpus._shards[0].values[0]
    assert not values.flags.owndata and not values.flags.writeable


def test_a_corpus_pickles_without_its_maps(demo_folder: Path) -> None:
    corpus = TokenCorpus(demo_folder)
    window = corpus.read(100, 50)
    content = pickle.dumps(corpus)
    assert len(content) < 5000
    assert np.array_equal(pickle.loads(content).read(100, 50), window)
