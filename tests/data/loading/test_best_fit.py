"""Best-fit packing: the algorithm against the textbook's, and the samples that come of it."""

import dataclasses
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.loading import best_fit_before
from deconattn.data import SampleStream, TokenCorpus
from deconattn.data.loading import best_fit_build, best_fit_table
from deconattn.data.loading.best_fit import BestFit
from deconattn.data.loading.best_fit_build import write_arrays
from deconattn.data.loading.best_fit_table import Table, key_of
from deconattn.data.manifest import TABLES_NAME
from deconattn.errors import UserError

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


class Lengths:
    """A corpus of which nothing but the documents' lengths is known, in several shards."""

    def __init__(self, lengths: npt.ArrayLike, shards: int) -> None:
        self._lengths, self._shards = np.asarray(lengths, dtype=np.int32), shards

    def iterate_lengths(self) -> Iterator[npt.NDArray[np.int32]]:
        yield from np.array_split(self._lengths, self._shards)


def arrays_of(lengths: npt.ArrayLike, seq_len: int, shards: int = 1) -> best_fit_before.Tables:
    """The arrays of a table, as they were kept before there were tables."""
    file = BytesIO()
    counts = write_arrays(file, Lengths(lengths, shards), seq_len)  # type: ignore[arg-type]
    sizes = np.array([counts.full, counts.pieces, counts.packed + 1]) * 8
    content = np.frombuffer(file.getvalue(), np.uint8)[best_fit_build.HEADER_BYTES :]
    full, starts, bounds, pieces = np.split(content, np.cumsum(sizes))
    assert len(pieces) == 4 * counts.pieces
    begins = full.view(np.int64)
    return (
        np.concatenate([begins >> 1, starts.view(np.int64)]),
        np.concatenate([np.full(counts.full, seq_len, dtype=np.int32), pieces.view(np.int32)]),
        np.concatenate([np.arange(counts.full), bounds.view(np.int64) + counts.full]),
        (begins & 1).astype(np.bool_),
    )


@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 90), max_size=80),
    st.integers(1, 4),
    st.integers(1, 60),
    st.integers(1, 20),
)
@settings(deadline=None, max_examples=200)
def test_tables_are_those_of_before(seq_len: int, lengths: list[int], shards: int, pieces: int, bins: int) -> None:
    whole = best_fit_before.whole_tables(np.array(lengths, dtype=np.int32), seq_len)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_fit_build, "PIECES_AT_ONCE", pieces)
        patch.setattr(best_fit_build, "_BINS_AT_ONCE", bins)
        patch.setattr(best_fit_build, "_CHUNK", 16)
        patch.setattr(best_fit_build, "_CHUNK_BITS", 4)
        tables = arrays_of(lengths, seq_len, shards)
    assert [part.tolist() for part in tables] == [part.tolist() for part in whole]


@given(st.integers(1, 40).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=80))))
@settings(deadline=None, max_examples=200)
def test_it_is_best_fit_decreasing(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    array = np.array(lengths, dtype=np.int32)
    pieces, bounds = best_fit_before.best_fit(array, capacity)
    assert sorted(pieces.tolist()) == list(range(len(lengths)))
    bins = [pieces[low:high] for low, high in pairwise(bounds)]
    assert sorted(int(array[members].sum()) for members in bins) == textbook(lengths, capacity)
    assert all(np.all(np.diff(members) > 0) for members in bins)


def test_little_is_wasted_on_documents_of_many_lengths() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 200_000).astype(np.int32).clip(1, 2048)
    _, _, bounds, _ = arrays_of(lengths, 2048)
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


def stream_of(folder: Path, seq_len: int, shuffle: bool = True) -> SampleStream:
    return SampleStream([(TokenCorpus(folder), 1.0)], seq_len, seed=0, shuffle=shuffle, packing="best-fit")


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


def table_of(folder: Path) -> Path:
    [path] = (folder / TABLES_NAME).glob("*.table")
    return path


def test_a_table_is_made_once(
    packed_folder: PackedFolder, documents: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packed_folder(documents)
    first = stream_of(folder, 9).arrays(range(50), doc_mask=True)
    assert [path.suffix for path in sorted((folder / TABLES_NAME).iterdir())] == [".lock", ".table"]
    monkeypatch.setattr(best_fit_table, "write_arrays", None)
    assert np.array_equal(stream_of(folder, 9).arrays(range(50), doc_mask=True), first)
    with pytest.raises(TypeError):
        stream_of(folder, 8)  # another length is another table


def test_a_table_is_of_its_corpus(packed_folder: PackedFolder) -> None:
    one, other = (packed_folder([[[1, 2, last, 0], [4, 0]]], name=f"with-{last}") for last in (3, 5))
    keys = {key_of(TokenCorpus(folder), seq_len) for folder in (one, other) for seq_len in (4, 5)}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-4], "it has 5"),
        (lambda content: content[:4096] + bytes([content[4096] ^ 1]) + content[4097:], "its checksum is wrong"),
        (lambda content: content.replace(b'"cut": ', b'"cut": 1', 1), "its header is damaged"),
        (lambda content: b"", "its header is damaged"),
        (lambda content: b"[" * 5000, "its header is damaged"),
    ],
)
def test_a_damaged_table_is_made_anew_and_that_is_said(
    packed_folder: PackedFolder,
    documents: list[list[list[int]]],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
    said: str,
) -> None:
    folder = packed_folder(documents)
    wanted = stream_of(folder, 9).arrays(range(50), doc_mask=True)
    path = table_of(folder)
    sound = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(sound))
    assert np.array_equal(stream_of(folder, 9).arrays(range(50), doc_mask=True), wanted)
    assert path.read_bytes() == sound
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {path} is made anew: {said}")


def test_another_corpus_s_table_is_not_taken(packed_folder: PackedFolder, documents: list[list[list[int]]]) -> None:
    folder = packed_folder(documents)
    stream_of(folder, 9)
    with pytest.raises(ValueError, match="it is of another corpus"):
        Table(table_of(folder), "another", verify=False)


def test_where_the_corpus_cannot_be_written_the_table_is_in_the_run_folder(
    packed_folder: PackedFolder, documents: list[list[list[int]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, spare = packed_folder(documents), tmp_path / "run" / TABLES_NAME
    (folder / TABLES_NAME).write_text("a file where a folder is wanted: root may write anywhere")
    with pytest.raises(UserError, match=TABLES_NAME):
        stream_of(folder, 9)
    made = [SampleStream([(TokenCorpus(folder), 1.0)], 9, 0, packing="best-fit", spare=spare) for _ in range(2)]
    assert np.array_equal(made[0].arrays(range(9), False), made[1].arrays(range(9), False))
    [line] = [line for line in capsys.readouterr().err.splitlines() if "cannot be written" in line]
    assert str(next(spare.glob("*.table"))) in line


def test_two_that_want_a_table_at_once_make_one(
    packed_folder: PackedFolder, documents: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = packed_folder(documents), []
    write = best_fit_table.write_arrays

    def slow(*arguments: Any) -> Any:
        made.append(1)
        time.sleep(0.2)
        return write(*arguments)

    monkeypatch.setattr(best_fit_table, "write_arrays", slow)
    threads = [threading.Thread(target=stream_of, args=(folder, 9)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1] and table_of(folder).is_file()


def test_a_shard_whose_documents_are_not_counted_right_makes_no_table(packed_folder: PackedFolder) -> None:
    folder = packed_folder([[[1, 2, 0], [3, 0]]])
    corpus = TokenCorpus(folder)
    corpus.entries = (dataclasses.replace(corpus.entries[0], documents=3),)
    with pytest.raises(UserError, match="its documents are not the 3 of its manifest"):
        BestFit(corpus, 4)
    assert not [path for path in (folder / TABLES_NAME).iterdir() if path.suffix != ".lock"]
