import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deconattn.data import SampleStream, TokenCorpus, mapped, read_manifest
from deconattn.data import corpus as corpus_module
from deconattn.data.manifest import write_manifest
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
    values = corpus._shards[0].shard.values[0]
    assert not values.flags.owndata and not values.flags.writeable


def test_a_corpus_pickles_without_its_maps(demo_folder: Path) -> None:
    corpus = TokenCorpus(demo_folder)
    window = corpus.read(100, 50)
    content = pickle.dumps(corpus)
    assert len(content) < 5000
    assert np.array_equal(pickle.loads(content).read(100, 50), window)


def test_document_lengths(packed_folder: PackedFolder, documents: list[list[list[int]]]) -> None:
    corpus = TokenCorpus(packed_folder(documents))
    assert corpus.document_lengths().tolist() == [len(document) for shard in documents for document in shard]


def test_damaged_document_bounds_are_named(packed_folder: PackedFolder) -> None:
    folder = packed_folder([[[1, 0], [2, 3, 4, 5, 0], [6, 7, 0]]])
    path = folder / "train-00000.arrow"
    content = bytearray(path.read_bytes())
    where = content.index(np.array([0, 2, 7, 10], dtype=np.int32).tobytes())
    content[where + 4 : where + 8] = np.int32(9).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is damaged .its documents are not the 3 of its manifest."):
        TokenCorpus(folder).document_lengths()


def test_thousands_of_shards_are_not_opened(packed_folder: PackedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = packed_folder([[[*range(1, 10), 0]] * 3])
    manifest = read_manifest(folder)
    entries = [dataclasses.replace(manifest.shards[0], name=f"train-{number:05d}.arrow") for number in range(3000)]
    for entry in entries[1:]:
        os.link(folder / entries[0].name, folder / entry.name)
    write_manifest(folder, dataclasses.replace(manifest, shards=tuple(entries)))
    opened: list[str] = []
    opens = Path.open

    def recorded(path: Path, *arguments: object, **named: object) -> object:
        opened.append(path.name)
        return opens(path, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", recorded)
    corpus = TokenCorpus(folder)
    stream = SampleStream([(corpus, 1.0)], seq_len=8, seed=0)
    assert corpus.num_tokens == 90_000
    assert not [name for name in opened if name.endswith(".arrow")]
    stream.batch(range(4), doc_mask=True)
    shards = {name for name in opened if name.endswith(".arrow")}
    assert 1 <= len(shards) <= 8
    (folder / entries[1234].name).unlink()
    with pytest.raises(UserError, match=f"{folder / entries[1234].name} is missing"):
        TokenCorpus(folder)


@pytest.fixture
def large(packed_folder: PackedFolder) -> TokenCorpus:
    """Two shards of many pages of memory each."""
    return TokenCorpus(packed_folder([[[*range(1, 1000), 0]] * 50] * 2))


def test_a_shard_that_vanishes_before_it_is_mapped(large: TokenCorpus) -> None:
    large.read(0, 100)
    path = large.folder / "train-00001.arrow"
    path.unlink()
    (large.folder / "train-00000.arrow").unlink()
    assert large.read(49_000, 3).tolist() == [1, 2, 3]  # a map outlives its file's name
    with pytest.raises(UserError, match=f"{path} is missing .its manifest lists it.; copy it again"):
        large.read(49_000, 2000)


@pytest.mark.skipif(mapped._madvise is None, reason="only Linux can ask")
@pytest.mark.parametrize("whole", [False, True])
def test_a_shard_that_shrinks_after_it_was_mapped(large: TokenCorpus, whole: bool) -> None:
    path = large.folder / "train-00000.arrow"
    stream = SampleStream([(large, 1.0)], seq_len=100, seed=0, shuffle=False)
    stream.batch([0], doc_mask=True)
    os.truncate(path, 0 if whole else 8192)
    fault = "is empty" if whole else "is truncated: 8192 bytes"
    with pytest.raises(UserError, match=f"{path} {fault}.*copy it again"):
        stream.batch([480], doc_mask=False)
    with pytest.raises(UserError, match=f"{path} {fault}.*copy it again"):
        SampleStream([(large, 1.0)], 100, seed=0, packing="best-fit").batch(range(20), doc_mask=True)


def test_a_disk_that_fails_is_told_from_a_damaged_shard(large: TokenCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(address: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(corpus_module, "fetch", fails)
    path = large.folder / "train-00000.arrow"
    with pytest.raises(UserError, match=f"{path} can no longer be read .Input/output error.; check the disk"):
        large.read(0, 10)
